"""One filter step in NumPy and float64, for streams: an observation at a time is too little work for a tensor library.

    h^- = A h + a,  P^- = A P A' + Q;   S = C P^- C' + R,  K = P^- C' S^-1,  h = h^- + K e,  P in Joseph's form

The same arithmetic as :mod:`ldm_filter.core.kalman`, with any leading dimensions (streams side by side), and optionally a
gate against outliers. Shapes are the caller's duty: this is the inside of a loop.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ldm_filter.core import native
from ldm_filter.core.gating import Gate, gated_weight
from ldm_filter.core.linalg import NotPositiveDefiniteError

__all__ = ["NOT_POSITIVE", "Belief", "Corrected", "StepFilter", "Transition", "compose", "correct", "predict", "release", "select", "smooth_back"]

_LOG_2PI = math.log(2.0 * math.pi)
NOT_POSITIVE = (
    "the innovation covariance C P C' + R is not positive definite; expected positive definite measurement and state covariances: "
    "raise the measurement covariance, and check that the transition does not blow up"
)


class Belief(NamedTuple):
    """A Gaussian over the state, mean ``(..., n)``, cov ``(..., n, n)``."""

    mean: np.ndarray
    cov: np.ndarray


class Transition(NamedTuple):
    """h = A h + a + w, w ~ N(0, Q): ``(n, n)``, ``(n,)``, ``(n, n)``, or with leading dimensions."""

    matrix: np.ndarray
    offset: np.ndarray
    cov: np.ndarray


class Corrected(NamedTuple):
    """A belief after one measurement.

    Attributes:
        belief: what is known with the measurement.
        log_likelihood: log N(z; C h^- + c, S) of the model, whatever the gate did, ``(...)``.
        distance: e' S^-1 e, chi-square with m degrees of freedom where the model holds, ``(...)``.
        weight: 1 where the measurement was taken as it came, 0 where it was rejected, between where its R was raised to R / weight.
        run: measurements outside the gate on end, this one included, ``(...)``.
        latents: how many were seen, ``(...)`` or a number.
    """

    belief: Belief
    log_likelihood: np.ndarray
    distance: np.ndarray
    weight: np.ndarray
    run: np.ndarray
    latents: np.ndarray | int


def predict(belief: Belief, way: Transition) -> Belief:
    """N(A h + a, A P A' + Q)."""
    A = way.matrix
    return Belief(_times(A, belief.mean) + way.offset, A @ belief.cov @ A.swapaxes(-1, -2) + way.cov)


def compose(first: Transition, then: Transition) -> Transition:
    """Two transitions as one."""
    A = then.matrix
    return Transition(A @ first.matrix, _times(A, first.offset) + then.offset, A @ first.cov @ A.swapaxes(-1, -2) + then.cov)


def correct(
    predicted: Belief,
    z: np.ndarray,
    R: np.ndarray,
    C: np.ndarray,
    c: np.ndarray,
    gate: Gate | None = None,
    run: np.ndarray | int = 0,
    mask: np.ndarray | None = None,
) -> Corrected:
    """Condition on a measurement.

    Args:
        predicted: p(h_t | y_<t).
        z: measurement ``(..., m)``. R: its covariance, ``(m, m)`` or ``(..., m, m)``. C, c: ``(m, n)``, ``(m,)``, or with leading dimensions.
        gate: what to do with measurements that the prediction makes improbable; None takes all as they come.
        run: measurements outside the gate on end before this one, ``(...)``.
        mask: bool ``(..., m)``, False where a single latent was not seen; None: all were.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where C P^- C' + R is not positive definite.
    """
    innovation, count = z - c - _times(C, predicted.mean), z.shape[-1]
    if mask is not None:
        # A latent with zero row in C, unit noise and zero innovation changes nothing.
        seen = mask.astype(np.float64)
        count, innovation, C = seen.sum(-1), np.where(mask, innovation, 0.0), seen[..., None] * C
        R = seen[..., None] * R * seen[..., None, :] + (1.0 - seen)[..., None] * np.eye(z.shape[-1])
    root = _inverse_factor(predicted.cov, R, C)
    white = (root @ innovation[..., None])[..., 0]
    distance = (white * white).sum(-1)
    log_det = np.log(root.diagonal(0, -2, -1)).sum(-1)  # of S^-1/2
    log_likelihood = log_det - 0.5 * (distance + count * _LOG_2PI)
    if gate is None:
        belief = _condition(predicted, innovation, R, C, root)
        return Corrected(belief, log_likelihood, distance, np.ones_like(distance), np.zeros_like(distance), count)
    run = np.where(distance > gate.edges(count), np.asarray(run) + 1.0, 0.0)
    belief, weight = _gated(predicted, innovation, R, C, distance, count, gate, run)
    return Corrected(belief, log_likelihood, distance, weight, run, count)


class StepFilter:
    """:func:`predict` and :func:`correct` in one compiled call, for a model whose steps are all alike; where there is no compiled kernel, the two.

    Args:
        way: ``(n, n)``, ``(n,)``, ``(n, n)``. C, c: ``(m, n)``, ``(m,)``. Copied.

    >>> step = StepFilter(Transition(np.eye(2), np.zeros(2), np.eye(2)), np.eye(2), np.zeros(2))
    >>> _, after = step(Belief(np.zeros(2), np.eye(2)), np.ones(2), 2.0 * np.eye(2))
    >>> after.belief.mean
    array([0.5, 0.5])
    """

    def __init__(self, way: Transition, C: np.ndarray, c: np.ndarray) -> None:
        arrays = [np.array(x, dtype=np.float64, order="C") for x in (*way, C, c)]
        self._way, self._C, self._c = Transition(*arrays[:3]), arrays[3], arrays[4]
        self._run = native.step_of(*arrays) if native.available() else None
        n = len(self._way.offset)
        self._sizes = n, n + n * n, 2 * (n + n * n + 1)

    def __call__(self, belief: Belief, z: np.ndarray, R: np.ndarray) -> tuple[Belief, Corrected]:
        """The prediction and the belief with the measurement.

        Args:
            belief: before the step, contiguous float64, ``(n,)`` and ``(n, n)``, or ``(B, n)`` and ``(B, n, n)`` side by side.
            z: ``(m,)`` or ``(B, m)``. R: ``(m, m)``, or one for each.

        Raises:
            NotPositiveDefiniteError: (a ValueError) where C P^- C' + R is not positive definite.
        """
        if self._run is None:
            predicted = predict(belief, self._way)
            return predicted, correct(predicted, z, R, self._C, self._c)
        if belief.mean.ndim == 2:
            return self._together(belief, z, R)
        n, moments, size = self._sizes
        out = np.empty(size)
        if self._run(belief.mean, belief.cov, z, R, out) >= 0:
            raise NotPositiveDefiniteError(NOT_POSITIVE)
        after, before = (Belief(out[k : k + n], out[k + n : k + moments].reshape(n, n)) for k in (0, moments))
        return before, Corrected(after, out[-2], out[-1], _ONE, _ZERO, z.size)

    def _together(self, belief: Belief, z: np.ndarray, R: np.ndarray) -> tuple[Belief, Corrected]:
        (batch, n), (_, moments, size) = belief.mean.shape, self._sizes
        out = np.empty(batch * size)
        assert self._run is not None
        if self._run(np.ascontiguousarray(belief.mean), np.ascontiguousarray(belief.cov), np.ascontiguousarray(z), np.ascontiguousarray(R), out) >= 0:
            raise NotPositiveDefiniteError(NOT_POSITIVE)
        half, cut = batch * moments, batch * n
        after, before = (Belief(out[k : k + cut].reshape(batch, n), out[k + cut : k + half].reshape(batch, n, n)) for k in (0, half))
        density, distance = out[2 * half :].reshape(2, batch)
        return before, Corrected(after, density, distance, np.ones(batch), np.zeros(batch), z.shape[-1])


_ONE, _ZERO = np.ones(()), np.zeros(())


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return vector @ matrix.T if matrix.ndim == 2 else (matrix @ vector[..., None])[..., 0]


def select(seen: np.ndarray, corrected: Corrected, predicted: Belief, run: np.ndarray) -> Corrected:
    """Where nothing was seen the prediction stands, and a run of measurements outside the gate is neither longer nor over.

    Args:
        seen: bool ``(B,)``. The others have that leading dimension.
    """
    if seen.all():
        return corrected
    belief = Belief(
        np.where(seen[:, None], corrected.belief.mean, predicted.mean), np.where(seen[:, None, None], corrected.belief.cov, predicted.cov)
    )
    _, density, distance, weight, runs, count = corrected
    return Corrected(
        belief, np.where(seen, density, 0.0), np.where(seen, distance, math.nan), np.where(seen, weight, 1.0), np.where(seen, runs, run), count
    )


def release(distance: np.ndarray, count: np.ndarray | int, gate: Gate, run: np.ndarray) -> np.ndarray:
    """Factor on the prediction's covariance ``(...)``, 1 where the gate does not open.

    Enough on end outside, and it is the state that has moved: the prediction is wrong by about its distance, once; then it is followed.
    """
    released = run == gate.patience + 1
    return np.where(released, np.maximum(distance / np.maximum(count, 1), 1.0), 1.0) if released.any() else np.ones_like(distance)


def _inverse_factor(P: np.ndarray, R: np.ndarray, C: np.ndarray) -> np.ndarray:
    """L^-1 of S = L L' = C P C' + R."""
    S = C @ P @ C.swapaxes(-1, -2) + R
    try:
        return np.linalg.inv(np.linalg.cholesky(0.5 * (S + S.swapaxes(-1, -2))))
    except np.linalg.LinAlgError as error:
        raise NotPositiveDefiniteError(NOT_POSITIVE) from error


def _condition(predicted: Belief, innovation: np.ndarray, R: np.ndarray, C: np.ndarray, root: np.ndarray) -> Belief:
    """h = h^- + K e,  P = (I - K C) P^- (I - K C)' + K R K'."""
    P = predicted.cov
    K = ((root @ (C @ P)).swapaxes(-1, -2)) @ root
    rest = -(K @ C)
    np.einsum("...ii->...i", rest)[...] += 1.0
    cov = rest @ P @ rest.swapaxes(-1, -2) + K @ R @ K.swapaxes(-1, -2)
    return Belief(predicted.mean + (K @ innovation[..., None])[..., 0], 0.5 * (cov + cov.swapaxes(-1, -2)))


def _gated(
    predicted: Belief,
    innovation: np.ndarray,
    R: np.ndarray,
    C: np.ndarray,
    distance: np.ndarray,
    count: np.ndarray | int,
    gate: Gate,
    run: np.ndarray,
) -> tuple[Belief, np.ndarray]:
    """The belief that a gate allows, and the weight that it gave the measurement."""
    predicted = predicted._replace(cov=predicted.cov * release(distance, count, gate, run)[..., None, None])
    open_ = run > gate.patience
    weight = np.where(open_, 1.0, gated_weight(gate, predicted.cov, innovation, R, C, distance, count))
    taken = np.maximum(weight, 1e-12)[..., None, None]
    scaled = R / taken
    belief = _condition(predicted, innovation, scaled, C, _inverse_factor(predicted.cov, scaled, C))
    shut = weight == 0.0
    if not shut.any():
        return belief, weight
    return Belief(np.where(shut[..., None], predicted.mean, belief.mean), np.where(shut[..., None, None], predicted.cov, belief.cov)), weight


def smooth_back(filtered: Belief, predicted: Belief, smoothed: Belief, A: np.ndarray) -> Belief:
    """One Rauch-Tung-Striebel step: from p(h_{t+1} | all) to p(h_t | all), with G = P_t A' (P^-_{t+1})^-1.

    Args:
        filtered: p(h_t | y_<=t). predicted: p(h_{t+1} | y_<=t). smoothed: p(h_{t+1} | all). A: the transition between the two.
    """
    gain = np.linalg.solve(predicted.cov, A @ filtered.cov).swapaxes(-1, -2)
    mean = filtered.mean + (gain @ (smoothed.mean - predicted.mean)[..., None])[..., 0]
    cov = filtered.cov + gain @ (smoothed.cov - predicted.cov) @ gain.swapaxes(-1, -2)
    return Belief(mean, 0.5 * (cov + cov.swapaxes(-1, -2)))
