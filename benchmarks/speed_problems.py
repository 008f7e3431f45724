"""The workloads of the speed benchmark, and the work that no filter can avoid on them: the floor.

Two regimes: (i) ``constant``, where A, C, Q and R never change, so that the covariance is one series for the whole batch; (ii)
``per-sequence``, where R_t belongs to the observation, so that every sequence has a covariance of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from datasets.linear_gaussian import random_model
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["INPUTS", "REGIMES", "WORKLOADS", "Floor", "Problem", "Size", "floor", "problem"]

REGIMES = ("constant", "per-sequence")
INPUTS = ("A", "Q", "C", "R", "h0", "P0", "z")  # what gradients are taken with respect to


class Size(NamedTuple):
    """Sequences, steps, state dimension, measurement dimension."""

    batch: int
    steps: int
    n: int
    m: int


WORKLOADS = {
    "W1": Size(256, 100, 4, 2),
    "W2": Size(64, 1000, 8, 8),
    "W3": Size(1, 100_000, 4, 2),
    "W4": Size(1024, 200, 16, 8),
}


class Problem(NamedTuple):
    """One filtering problem in float64. The loss is ``sum_b weight_b sum_t log p(z_bt | z_b,<t)``; the weights are 1 where time is taken.

    Attributes:
        A, Q, C: ``(n, n)``, ``(n, n)``, ``(m, n)``.
        R: ``(m, m)``, or ``(B, T, m, m)`` in the regime per-sequence.
        h0, P0: the prediction for the first step, ``(n,)`` and ``(n, n)``.
        z: ``(B, T, m)``.
        weight: ``(B,)``.
    """

    A: Tensor
    Q: Tensor
    C: Tensor
    R: Tensor
    h0: Tensor
    P0: Tensor
    z: Tensor
    weight: Tensor

    @property
    def size(self) -> Size:
        return Size(self.z.shape[0], self.z.shape[1], self.A.shape[0], self.C.shape[0])

    @property
    def constant(self) -> bool:
        return self.R.dim() == 2

    def cut(self, batch: int, steps: int) -> Problem:
        """The first sequences and steps of it. A filter is causal, so its outputs are the first of the whole; its gradients are others."""
        R = self.R if self.constant else self.R[:batch, :steps].contiguous()
        return self._replace(R=R, z=self.z[:batch, :steps].contiguous(), weight=self.weight[:batch])

    def watching(self, sequences: int) -> Problem:
        """The loss of the first sequences alone: its gradients are those of the problem cut to them."""
        return self._replace(weight=(torch.arange(len(self.weight)) < sequences).double())

    def state_space(self) -> StateSpace:
        zero = torch.zeros(self.C.shape[0], dtype=torch.float64)
        return StateSpace(self.A, torch.zeros_like(self.h0), self.Q, self.C, zero, Gaussian(self.h0, self.P0))


def problem(size: Size, regime: str, seed: int = 0) -> Problem:
    """A random stable model and white measurements of the scale that it predicts (no filter's time depends on their values).

    R_t is R times a log-normal factor, drawn per sequence and step.

    Raises:
        ValueError: another regime than those of ``REGIMES``.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime is {regime!r}, expected {' or '.join(REGIMES)}")
    generator = torch.Generator().manual_seed(seed)
    batch, steps, n, m = size
    model = random_model(n, m, generator)
    A, Q, C, P0 = model.transition_matrix, model.transition_cov, model.observation_matrix, model.initial.cov
    R = 0.5 * torch.eye(m, dtype=torch.float64) + 0.1
    spread = torch.linalg.cholesky(C @ P0 @ C.mT + R)
    z = torch.randn(batch, steps, m, generator=generator, dtype=torch.float64) @ spread.mT
    if regime == "per-sequence":
        R = R * torch.randn(batch, steps, 1, 1, generator=generator, dtype=torch.float64).exp()
    return Problem(A, Q, C, R, torch.zeros(n, dtype=torch.float64), P0, z, torch.ones(batch, dtype=torch.float64))


class Floor(NamedTuple):
    """The least work of one run: arithmetic, memory traffic, and the steps that must wait for each other.

    Attributes:
        flops: floating-point operations.
        bytes: read and written, each array once.
        chain: multiply-adds of one sequence that wait for each other, the sums taken in order.
        divisions: divisions and square roots in that chain.
    """

    flops: float
    bytes: float
    chain: float
    divisions: float

    def seconds(self, gflops: float, copy_gbs: float, multiply_ns: float, divide_ns: float, serial: bool) -> float:
        """The time that the slowest of them takes on one core; the chain counts where there is one sequence (``serial``)."""
        latency = 1e-9 * (self.chain * multiply_ns + self.divisions * divide_ns)
        return max(self.flops / (gflops * 1e9), self.bytes / (copy_gbs * 1e9), latency if serial else 0.0)


def floor(size: Size, regime: str, backward: bool) -> Floor:
    """Counted by hand. Nothing is computed twice, symmetric products are formed once, and the covariance recursion of regime (i), which
    ends when it has converged, counts as nothing but its output; what a backward pass needs is read again from the inputs and outputs.
    """
    own = regime == "per-sequence"
    batch, steps, n, m = size
    flops = _mean_flops(n, m) + own * _cov_flops(n, m)
    numbers = m + n + 1 + own * (m * m + n * n)  # in: z, R;  out: mean, covariance, log-likelihood
    chain, divisions = (4 * n + 3 * m, 2 * m) if own else (2 * n + m, 0)
    if backward:
        flops += _mean_adjoint_flops(n, m) + own * _cov_adjoint_flops(n, m)
        numbers += 2 * m + n + own * (2 * m * m + n * n)  # in: z, mean, R, covariance;  out: the gradients of z and R
        chain += 4 * n + 2 * m if own else 2 * n + m
    shared = 0 if own else 8 * n * n * steps
    return Floor(flops * batch * steps, 8 * numbers * batch * steps + shared, chain * steps, divisions * steps)


def _mean_flops(n: int, m: int) -> float:
    """A h, C h, K e, and w = L^-1 e for the log-likelihood."""
    return 2 * n * n + 4 * n * m + m * m


def _cov_flops(n: int, m: int) -> float:
    """A P, (A P) A', C P, (C P) C', Cholesky of S, L^-1 C P = W, P - W' W."""
    predict = 2 * n**3 + n * n * (n + 1)
    innovation = 2 * m * n * n + m * (m + 1) * n
    return predict + innovation + m**3 / 3 + m * m * n + n * (n + 1) * m


def _mean_adjoint_flops(n: int, m: int) -> float:
    """K' g - v, C' e~, A' h-~, v from w, and the outer products that become the gradients of A, C, K and S."""
    return 2 * n * m + m + 2 * n * m + 2 * n * n + m * m + 2 * n * n + 4 * n * m + 2 * m * m


def _cov_adjoint_flops(n: int, m: int) -> float:
    """Those of ``D``, ``S~``, ``P-~``, ``C~``, ``A~`` and ``A' P-~ A``; see the adjoint of one step."""
    gain = 2 * n * n * m + 2 * n * m
    innovation = n * m * (m + 1) + m**3 + 4 * m * m
    predicted = 2 * n * n * m + 2 * m * m * n + n * (n + 1) * m
    models = 2 * n * n * m + 2 * m * m * n + 2 * n**3
    return gain + innovation + predicted + models + 2 * n**3 + n * n * (n + 1)
