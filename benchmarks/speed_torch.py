"""Kalman filters in torch: ldm-filter, torch-kf, and the plain loop that anyone would write."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ldm_filter
from benchmarks.speed_libraries import Entrant, Result, Run
from benchmarks.speed_problems import INPUTS, Problem
from ldm_filter.core.kalman import filter_moments
from ldm_filter.types import Gaussian

__all__ = ["OURS", "PLAIN", "TORCH", "plain_loop", "reference"]

# filtered mean, filtered covariance, log-likelihood (B,)
Outputs = tuple[Tensor, Tensor, Tensor | None]


def _run(filter_all: Callable[[Problem, bool], Outputs], read: Callable[[Outputs], Result], problem: Problem, backward: bool) -> Run:
    """A forward pass without a graph, or one with the gradients of the loss; both return the moments."""
    if not backward:

        def forward() -> tuple[Outputs, None]:
            with torch.no_grad():
                return filter_all(problem, False), None

        return Run(forward, lambda output: read(output[0]))

    def forward_backward() -> tuple[Outputs, tuple[Tensor, ...]]:
        leaves = [getattr(problem, name).detach().requires_grad_() for name in INPUTS]
        mean, cov, log_likelihood = filter_all(problem._replace(**dict(zip(INPUTS, leaves, strict=True))), True)
        assert log_likelihood is not None  # asked for
        loss = (problem.weight * log_likelihood).sum()
        return (mean.detach(), cov.detach(), log_likelihood.detach()), torch.autograd.grad(loss, leaves)

    return Run(forward_backward, lambda output: read(output[0])._replace(gradients=tuple(g.numpy() for g in output[1])))


def _batch_first(outputs: Outputs) -> Result:
    mean, cov, log_likelihood = outputs
    return Result(mean.numpy(), cov.numpy(), None if log_likelihood is None else log_likelihood.numpy())


def _time_first(outputs: Outputs) -> Result:
    """From ``(T, B, n)`` and ``(T, [B,] n, n)``."""
    mean, cov, log_likelihood = outputs
    cov = cov.unsqueeze(1) if cov.dim() == 3 else cov
    return _batch_first((mean.transpose(0, 1), cov.transpose(0, 1), log_likelihood))


# --- ldm-filter


def _filter_moments(problem: Problem, log_likelihood: bool) -> Outputs:
    """Always with the log-likelihood, which `filter_moments` returns unasked."""
    filtered, density = filter_moments(problem.state_space(), Gaussian(problem.z, problem.R))
    return filtered.mean, filtered.cov, density.sum(1)


def _ours(problem: Problem, backward: bool) -> Run:
    return _run(_filter_moments, _batch_first, problem, backward)


def _ours_in_torch(problem: Problem, backward: bool) -> Run:
    run = _ours(problem, backward)

    def call() -> Any:
        with ldm_filter.backend("torch"):
            return run.call()

    return Run(call, run.read)


def reference(problem: Problem, backward: bool) -> Result:
    """What everyone is checked against: ldm-filter's readable torch path, in float64, without its compiled kernels."""
    run = _ours_in_torch(problem, backward)
    return run.read(run.call())


# --- the plain loop


def plain_loop(problem: Problem, log_likelihood: bool) -> Outputs:
    """Predict, invert, update, step by step over the whole batch; keeps the filtered moments, and the log-likelihood where it is asked for."""
    A, Q, C, R, h0, P0, z, _ = problem
    batch, steps, n, m = problem.size
    h, P = h0.expand(batch, n), P0.expand(batch, n, n)
    means, covs, densities = [], [], []
    for t in range(steps):
        if t > 0:
            h = h @ A.mT
            P = A @ P @ A.mT + Q
        e = z[:, t] - h @ C.mT
        S = C @ P @ C.mT + (R if problem.constant else R[:, t])
        inverse = torch.linalg.inv(S)
        K = P @ C.mT @ inverse
        if log_likelihood:
            squares = (e.unsqueeze(1) @ inverse @ e.unsqueeze(2)).squeeze((1, 2))
            densities.append(-0.5 * (squares + torch.logdet(S) + m * math.log(2 * math.pi)))
        h = h + (K @ e.unsqueeze(2)).squeeze(2)
        P = P - K @ C @ P
        means.append(h)
        covs.append(P)
    return torch.stack(means, 1), torch.stack(covs, 1), torch.stack(densities, 1).sum(1) if log_likelihood else None


def _plain(problem: Problem, backward: bool) -> Run:
    return _run(plain_loop, _batch_first, problem, backward)


# --- torch-kf


def _torch_kf_loop(problem: Problem, log_likelihood: bool) -> Outputs:
    """Its own way for a noise that varies and for log-likelihoods: its steps in one's own loop. A covariance that is shared stays shared."""
    from torch_kf import GaussianState, KalmanFilter

    batch, steps, n, _ = problem.size
    kf = KalmanFilter(problem.A, problem.C, problem.Q, problem.R if problem.constant else problem.R[0, 0])
    state = GaussianState(problem.h0.expand(batch, n).unsqueeze(2), problem.P0)
    means, covs, total = [], [], torch.zeros(batch, dtype=problem.z.dtype)
    for t in range(steps):
        state = kf.predict(state) if t else state
        measure, noise = problem.z[:, t].unsqueeze(2), None if problem.constant else problem.R[:, t]
        projection = kf.project(state, measurement_noise=noise)
        if log_likelihood:
            total = total + projection.log_likelihood(measure)
        state = kf.update(state, measure, projection=projection, measurement_noise=noise)
        means.append(state.mean.squeeze(2))
        covs.append(state.covariance)
    return torch.stack(means), torch.stack(covs), total if log_likelihood else None


def _torch_kf_filter(problem: Problem, log_likelihood: bool) -> Outputs:
    """Its ``filter``, for a constant noise."""
    from torch_kf import GaussianState, KalmanFilter

    batch, _, n, _ = problem.size
    kf = KalmanFilter(problem.A, problem.C, problem.Q, problem.R)
    state = GaussianState(problem.h0.expand(batch, n).unsqueeze(2), problem.P0)
    filtered = kf.filter(state, problem.z.transpose(0, 1).unsqueeze(3), return_all=True)
    return filtered.mean.squeeze(3), filtered.covariance, None


def _torch_kf(problem: Problem, backward: bool) -> Run:
    return _run(_torch_kf_filter if problem.constant and not backward else _torch_kf_loop, _time_first, problem, backward)


OURS = Entrant("ldm-filter", None, "ldm_filter", _ours, gradients=True, cut="")
PLAIN = Entrant("plain torch loop", None, "torch", _plain, gradients=True, cut="steps")
TORCH = (
    OURS,
    Entrant("ldm-filter, torch path", None, "ldm_filter", _ours_in_torch, gradients=True, cut="steps"),
    PLAIN,
    Entrant("torch-kf", "torch-kf", "torch_kf", _torch_kf, gradients=True, cut="steps"),
)
