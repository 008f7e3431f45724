"""One filter step of many streams side by side on a CUDA device: predict and correct as one recorded graph, one transfer each way."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.linalg import NotPositiveDefiniteError, affine, symmetrise, whiten
from ldm_filter.core.recording import Recorded, Recorder
from ldm_filter.core.recursion import correct_cov, gain_of, log_density_of, predict_cov
from ldm_filter.core.step import NOT_POSITIVE, Belief, Corrected, StepFilter, Transition

__all__ = ["DeviceStep"]

# The step on the CPU takes 0.25 us for each stream of 8 states and 2 us for one of 16; its beliefs, up and down, 1.8 and 6.5 kB, as
# long or less at 8 GB/s only from 16 states on, and a launch with its waiting some 50 us. (Reckoned, not measured on a device.)
FEWEST, SMALLEST = 256, 16  # streams, states


class DeviceStep:
    """:class:`~ldm_filter.core.step.StepFilter` with the same arguments and results, on a device where there are many streams.

        h^- = A h + a,  P^- = A P A' + Q;   S = C P^- C' + R,  K = P^- C' S^-1,  h = h^- + K e,  P in Joseph's form, all float64

    Args:
        way: ``(n, n)``, ``(n,)``, ``(n, n)``. C, c: ``(m, n)``, ``(m,)``.
        device: a CUDA device; on another the same runs without a recording.
        fewest: streams from which on the device is used; fewer are stepped on the CPU. None: 256 of at least 16 states, and none of smaller ones.
        recorder: as of :class:`~ldm_filter.core.recording.Recorded`.

    >>> step = DeviceStep(Transition(np.eye(2), np.zeros(2), np.eye(2)), np.eye(2), np.zeros(2), torch.device("cpu"), fewest=1)
    >>> _, after = step(Belief(np.zeros((3, 2)), np.tile(np.eye(2), (3, 1, 1))), np.ones((3, 2)), 2.0 * np.eye(2))
    >>> after.belief.mean[0]
    array([0.5, 0.5])
    """

    def __init__(
        self, way: Transition, C: np.ndarray, c: np.ndarray, device: torch.device, fewest: int | None = None, recorder: Recorder | None = None
    ) -> None:
        self._few = StepFilter(way, C, c)
        worth = FEWEST if len(way.offset) >= SMALLEST else math.inf
        self._fewest = worth if fewest is None else fewest
        self._model = [torch.from_numpy(np.array(x, dtype=np.float64)).to(device) for x in (*way, C, c)]
        self._run = Recorded(self._step, device, "the filter step", recorder)

    def __call__(self, belief: Belief, z: np.ndarray, R: np.ndarray) -> tuple[Belief, Corrected]:
        """As of :class:`~ldm_filter.core.step.StepFilter`.

        Raises:
            NotPositiveDefiniteError: (a ValueError) where C P^- C' + R is not positive definite.
        """
        if belief.mean.ndim == 1 or len(belief.mean) < self._fewest:
            return self._few(belief, z, R)
        batch, n = belief.mean.shape
        (out,) = self._run(*belief, z, R)
        mean, cov, filtered, filtered_cov, density, distance, failed = np.split(out, np.cumsum([n, n * n, n, n * n, 1, 1]), axis=1)
        if failed.any():
            raise NotPositiveDefiniteError(NOT_POSITIVE)
        before, after = (Belief(*map(np.ascontiguousarray, (h, P.reshape(batch, n, n)))) for h, P in ((mean, cov), (filtered, filtered_cov)))
        return before, Corrected(after, density[:, 0].copy(), distance[:, 0].copy(), np.ones(batch), np.zeros(batch), z.shape[-1])

    def _step(self, mean: Tensor, cov: Tensor, z: Tensor, R: Tensor) -> tuple[Tensor]:
        """Everything about a stream in one row, so that it comes back at once."""
        A, a, Q, C, c = self._model
        P = symmetrise(predict_cov(cov, A, Q))
        K, factor, info = gain_of(P, C, R)
        h = affine(a, A, mean)
        e = affine(z - c, C, h, -1.0)
        white = whiten(factor.unsqueeze(1), e.unsqueeze(1))[:, 0]
        density = log_density_of(e, white, factor, z.shape[-1])
        after = correct_cov(P, K, C, R)
        row = (h, P.flatten(1), affine(h, K, e), after.flatten(1), density[:, None], white.square().sum(-1, keepdim=True), info[:, None].to(h.dtype))
        return (torch.cat(row, dim=1),)
