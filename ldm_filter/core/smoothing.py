"""Fixed-interval smoothing (Rauch, Tung, Striebel) and posterior sample paths, on top of a finished filter run.

Reference: H. E. Rauch, F. Tung, C. T. Striebel, AIAA J. 3 (1965); for the paths, S. Frühwirth-Schnatter, J. Time Ser.
Anal. 15 (1994).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core import kernels
from ldm_filter.core.backends import compiled
from ldm_filter.core.inputs import check_count, check_kind, check_transition
from ldm_filter.core.linalg import cholesky_psd, matvec, round_cov, solve_psd, symmetrise
from ldm_filter.core.nonlinear import NonlinearStateSpace, linearised
from ldm_filter.core.recursion import join, per_step, predict_cov
from ldm_filter.types import FilterResult, Gaussian, SmootherResult, StateSpace

__all__ = ["sample_posterior", "smooth_sequence"]


def smooth_sequence(ssm: StateSpace | NonlinearStateSpace, result: FilterResult) -> SmootherResult:
    """Condition every state on the whole sequence: ``h_t^s = h_t + G_t (h_{t+1}^s - h_{t+1}^-)``, ``G_t = P_t A' (A P_t A' + Q)^-1``.

    The covariance runs back as ``P_t^s = (I - G A) P_t (I - G A)' + G (P_{t+1}^s + Q) G'``, a sum of positive terms, in
    float64; a state that is known exactly (singular ``A P A' + Q``) is allowed.

    Args:
        ssm: the model that the filter ran with.
        result: what :func:`ldm_filter.core.kalman.filter_sequence` returned.

    Returns:
        Smoothed mean ``(B, T, n)``, cov ``(1, T, n, n)`` where the filter's is shared by the batch, else ``(B, T, n, n)``;
        gain ``(1 | B, T - 1, n, n)``.

    Raises:
        ValueError, TypeError: where the model does not fit the result.
    """
    back = _backward(ssm, result)
    last = result.filtered.cov[:, -1].double().expand(back.cov.shape[0], -1, -1)
    dtype = result.filtered.mean.dtype
    cov = _link_covs(back.gain, torch.cat([back.cov, last.unsqueeze(1)], 1), compiled(result.filtered.mean))
    mean = _run_back(back.gain, result, result.filtered.mean[:, -1], None)
    return SmootherResult(Gaussian(mean, round_cov(symmetrise(cov), dtype)), back.gain.to(dtype))


def _link_covs(gain: Tensor, cov: Tensor, fast: bool) -> Tensor:
    """``P_t = M_t + G_t P_{t+1} G_t'`` back from the last of ``cov``, ``(1 | B, T, n, n)``."""
    if fast:
        return kernels.link(gain, cov)
    steps = cov.shape[1]
    Ms, Gs = per_step(cov, steps), per_step(gain, steps - 1)
    covs = [Ms[-1]]
    for t in range(steps - 2, -1, -1):
        covs.append(Ms[t] + Gs[t] @ covs[-1] @ Gs[t].mT)
    return join(covs[::-1], 2)


def sample_posterior(ssm: StateSpace | NonlinearStateSpace, result: FilterResult, generator: torch.Generator, num_paths: int = 1) -> Tensor:
    """Draw whole paths from p(h_1..T | z_1..T) by backward sampling: ``h_t ~ N(h_t + G_t (h_{t+1} - h_{t+1}^-), M_t)``.

    ``M_t = (I - G A) P_t (I - G A)' + G Q G'`` is the covariance of a state given the next one and the data so far.

    Args:
        ssm: the model that the filter ran with.
        result: what :func:`ldm_filter.core.kalman.filter_sequence` returned.
        generator: source of the randomness, on the device of the result.
        num_paths: paths for each series.

    Returns:
        ``(num_paths, B, T, n)``. Differentiable in the model and the result.

    Raises:
        ValueError, TypeError: where the model does not fit the result, and for num_paths < 1.
    """
    check_count("num_paths", num_paths)
    back = _backward(ssm, result)
    mean = result.filtered.mean
    noise = torch.randn(num_paths, *mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    last = matvec(cholesky_psd(result.filtered.cov[:, -1], "result.filtered.cov").to(mean.dtype), noise[:, :, -1])
    kicks = matvec(cholesky_psd(back.cov, "backward covariance").to(mean.dtype), noise[:, :, :-1])
    return _run_back(back.gain, result, mean[:, -1] + last, kicks)


class _Backward(NamedTuple):
    gain: Tensor  # G_t, (1 | B, T - 1, n, n), float64
    cov: Tensor  # M_t, of h_t given h_{t+1} and z_<=t, (1 | B, T - 1, n, n), float64


def _backward(ssm: StateSpace | NonlinearStateSpace, result: FilterResult) -> _Backward:
    """All gains at once. The prediction is taken anew from the filtered covariance, so that gain and covariance agree to the last bit."""
    check_kind("result", result, FilterResult)
    if isinstance(ssm, NonlinearStateSpace):
        ssm = linearised(ssm, result)
    batch, steps, n = result.filtered.mean.shape
    way = check_transition(ssm, result.filtered.mean, batch, steps)
    if way.A.shape[-1] != n:
        raise ValueError(
            f"ssm.transition_matrix has shape {tuple(ssm.transition_matrix.shape)}; expected ({n}, {n}) at its end, as the result's states"
        )
    A, Q = (x.double()[:, 1:] if x.shape[1] > 1 else x.double() for x in (way.A, way.Q))
    P = result.filtered.cov[:, :-1].double()
    G = solve_psd(symmetrise(predict_cov(P, A, Q)), A @ P, "predicted covariance").mT
    J = torch.eye(n, dtype=P.dtype, device=P.device) - G @ A
    return _Backward(G, symmetrise(J @ P @ J.mT + G @ Q @ G.mT))


def _run_back(gain: Tensor, result: FilterResult, last: Tensor, kicks: Tensor | None) -> Tensor:
    """``h_t = f_t + G_t (h_{t+1} - p_{t+1}) + kick_t`` from the last step to the first; ``last (..., B, n)``, result ``(..., B, T, n)``."""
    if compiled(result.filtered.mean):
        return _link_means(gain, result, last, kicks).to(last.dtype)
    gain, steps = gain.to(last.dtype), result.filtered.mean.shape[1]
    filtered, predicted, gains = result.filtered.mean.unbind(1), result.predicted.mean.unbind(1), per_step(gain, steps - 1)
    path = [last]
    for t in range(steps - 2, -1, -1):
        h = filtered[t] + matvec(gains[t], path[-1] - predicted[t + 1])
        path.append(h if kicks is None else h + kicks[..., t, :])
    return torch.stack(path[::-1], dim=-2)


def _link_means(gain: Tensor, result: FilterResult, last: Tensor, kicks: Tensor | None) -> Tensor:
    """The same as a recursion ``h_t = (f_t - G_t p_{t+1} + kick_t) + G_t h_{t+1}``, in float64."""
    start = result.filtered.mean[:, :-1].double() - matvec(gain, result.predicted.mean[:, 1:].double())
    start = start.expand(*last.shape[:-1], *start.shape[-2:]) if kicks is None else start + kicks.double()
    pieces = torch.cat([start, last.double().unsqueeze(-2)], -2)
    if pieces.dim() > 3 and gain.shape[0] > 1:  # paths of every series
        gain = gain.expand(pieces.shape[0], -1, -1, -1, -1).flatten(0, 1)
    return kernels.link(gain, pieces.flatten(0, -3)).reshape(pieces.shape)
