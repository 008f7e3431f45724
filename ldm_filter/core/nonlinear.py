"""Kalman filtering where transition or noise depends on the state: extended, sigma-point, locally linear, adaptive.

Every step is an exact linear-Gaussian step with an affine map (A, a, Q) made at the filtered belief (see
:mod:`ldm_filter.core.linearisation`), so results, smoothing, forecasts and likelihoods are those of :mod:`ldm_filter.core.kalman`, and where
the transition is linear they are equal. Nothing is sampled. :func:`ldm_filter.core.kalman.filter_sequence` and its neighbours take a
:class:`NonlinearStateSpace` in place of a ``StateSpace`` and come here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.backends import StepModel, run_step
from ldm_filter.core.inputs import Problem, check_count, check_kind, check_mask, check_tensors, mask_missing, prepare
from ldm_filter.core.linalg import affine, cholesky, cholesky_psd, matvec, round_cov, symmetrise
from ldm_filter.core.linearisation import Affine, Linearise, Step, Transition
from ldm_filter.core.recursion import Filtered, innovation_cov, per_step, predict_cov
from ldm_filter.types import FilterResult, Gaussian, StateSpace

__all__ = [
    "AdaptiveNoise",
    "NonlinearStateSpace",
    "filter_moments",
    "filter_sequence",
    "forecast",
    "linearised",
    "memories",
    "predict",
    "sample_paths",
]


class AdaptiveNoise(NamedTuple):
    """Process noise that grows after surprises: ``Q_t = Q + D(s_{t-1})``, ``s_t = remember(s_{t-1}, e_t' S_t^-1 e_t / m)``.

    Only innovations before t enter Q_t, so that p(z_t | z_<t) is a density: it has not seen z_t.

    Attributes:
        memory: s before the first step, ``(k,)`` or ``(B, k)``.
        remember: memory ``(B, k)`` and surprise ``(B,)`` (mean 1 in a calibrated filter; 1 is given where nothing is observed) -> memory.
        extra_cov: memory ``(..., k)`` -> D ``(..., n, n)``, positive semi-definite.
    """

    memory: Tensor
    remember: Callable[[Tensor, Tensor], Tensor]
    extra_cov: Callable[[Tensor], Tensor]


class NonlinearStateSpace(NamedTuple):
    """A state-space model with a nonlinear transition, or with noise that is not fixed beforehand.

        h_t ~ N(f(h_{t-1}), Q(h_{t-1})) (+ adaptive noise),     z_t = C h_t + c + v_t,     v_t ~ N(0, s(h_t) R_t s(h_t))

    Attributes:
        transition: p(h_t | h_{t-1}).
        linearise: the affine map that stands for it at a belief.
        observation_matrix, observation_offset, initial: as of :class:`~ldm_filter.types.StateSpace`.
        measurement_scale: states ``(..., n)`` -> ``(..., m)``, positive: factors on the standard deviations of the measurement, taken
            at the predicted mean; None: 1.
        adaptive: None: Q is what the transition says.
    """

    transition: Transition
    linearise: Linearise
    observation_matrix: Tensor
    observation_offset: Tensor
    initial: Gaussian
    measurement_scale: Callable[[Tensor], Tensor] | None = None
    adaptive: AdaptiveNoise | None = None


def filter_sequence(model: NonlinearStateSpace, measurements: Gaussian, observed: Tensor | None = None) -> FilterResult:
    """Filter a batch of sequences; arguments, result and errors as of :func:`ldm_filter.core.kalman.filter_sequence`.

    Covariances are ``(B, T, n, n)``; means and covariances are carried in float64. The first prediction is ``model.initial``; the
    transition into step t is asked for with ``step = t``.
    """
    problem, mask = _prepare(model, measurements, observed)
    steps, scale = _run(model, problem, mask)
    dtype = measurements.mean.dtype
    predicted, filtered = (_stacked([step[k] for step in steps]) for k in (0, 1))
    return FilterResult(
        _rounded(predicted, dtype), _rounded(filtered, dtype), _projected(model, measurements, predicted, scale), _density(steps, dtype)
    )


def filter_moments(model: NonlinearStateSpace, measurements: Gaussian, observed: Tensor | None = None) -> tuple[Gaussian, Tensor]:
    """The filtered states and the log-likelihood alone; as :func:`ldm_filter.core.kalman.filter_moments`."""
    problem, mask = _prepare(model, measurements, observed)
    steps, _ = _run(model, problem, mask)
    filtered = _stacked([step.filtered for step in steps])
    dtype = measurements.mean.dtype
    return _rounded(filtered, dtype), _density(steps, dtype)


def predict(model: NonlinearStateSpace, belief: Gaussian, step: int = 0) -> Gaussian:
    """One step ahead of a belief, mean ``(B, n)``, cov ``(B, n, n)``, in its dtype; the memory of adaptive noise is that of the model."""
    exact = Gaussian(belief.mean.double(), symmetrise(belief.cov.double()))
    A, a, Q = _affine(model, exact, step, None if model.adaptive is None else _start(model.adaptive, len(belief.mean)))
    return _rounded(Gaussian(affine(a, A, exact.mean), symmetrise(predict_cov(exact.cov, A, Q))), belief.mean.dtype)


def forecast(model: NonlinearStateSpace, belief: Gaussian, horizon: int) -> Gaussian:
    """The states 1 .. H steps after a belief; arguments, result and errors as of :func:`ldm_filter.core.kalman.forecast`.

    Each step is linearised at the forecast of the one before; adaptive noise calms down on the way, as nothing surprises it.
    """
    check_count("horizon", horizon)
    check_kind("belief", belief, Gaussian)
    check_tensors({"belief.mean": belief.mean, "belief.cov": belief.cov})
    if belief.mean.dim() != 2:
        raise ValueError(f"belief.mean has shape {tuple(belief.mean.shape)}; expected (batch, state): add the batch with [None]")
    batch, dtype = len(belief.mean), belief.mean.dtype
    mean, cov = belief.mean.double(), symmetrise(belief.cov.double().expand(batch, -1, -1))
    memory = None if model.adaptive is None else _start(model.adaptive, batch)
    states = []
    for step in range(horizon):
        A, a, Q = _affine(model, Gaussian(mean, cov), step, memory)
        mean, cov = affine(a, A, mean), symmetrise(predict_cov(cov, A, Q))
        states.append(Gaussian(mean, cov))
        if model.adaptive is not None and memory is not None:
            memory = model.adaptive.remember(memory, torch.ones_like(mean[:, 0]))
    return _rounded(Gaussian(*(torch.stack(parts, 1) for parts in zip(*states, strict=True))), dtype)


def sample_paths(model: NonlinearStateSpace, steps: int, generator: torch.Generator, num_paths: int = 1) -> Tensor:
    """Draw paths of the state through the transition itself; as :func:`ldm_filter.core.kalman.sample_paths`.

    Raises:
        ValueError: the noise is adaptive: it depends on innovations, which a path of the state alone does not have.
    """
    check_count("steps", steps)
    check_count("num_paths", num_paths)
    if model.adaptive is not None:
        raise ValueError("the process noise is adaptive, so paths depend on what is observed; draw posterior paths, given data, instead")
    start, cov = model.initial
    start, cov = start.reshape(-1, start.shape[-1]), cov.reshape(-1, *cov.shape[-2:])
    batch = max(len(start), len(cov))
    noise = torch.randn(num_paths, batch, steps, start.shape[-1], generator=generator, dtype=start.dtype, device=start.device)
    path = [start + matvec(cholesky_psd(cov, "model.initial.cov").to(start.dtype), noise[:, :, 0])]
    for step in range(1, steps):
        mean, cov = model.transition(path[-1], step)
        path.append(mean.to(start.dtype) + matvec(cholesky_psd(cov, "the transition's covariance").to(start.dtype), noise[:, :, step]))
    return torch.stack(path, dim=2)


def linearised(model: NonlinearStateSpace, result: FilterResult) -> StateSpace:
    """The linear model, varying in time and over the batch, that the filter ran with: smoothing it is smoothing the nonlinear model.

    With :func:`ldm_filter.core.smoothing.smooth_sequence` it gives the extended, or the sigma-point, Rauch-Tung-Striebel smoother.
    """
    check_kind("result", result, FilterResult)
    batch, steps, n = result.filtered.mean.shape
    dtype = result.filtered.mean.dtype
    before = Gaussian(result.filtered.mean[:, :-1].double(), symmetrise(result.filtered.cov[:, :-1].double()))
    A, a, Q = (part.double() for part in model.linearise(before, slice(1, steps)))
    A, a = A.expand(batch, steps - 1, n, n), a.expand(batch, steps - 1, n)
    if model.adaptive is not None:  # what the prediction has beyond A P A'; a sliver against the rounding of the result
        after = result.predicted.cov[:, 1:].double()
        sliver = 4 * n * torch.finfo(dtype).eps * torch.diag_embed(after.diagonal(dim1=-2, dim2=-1))
        Q = after - predict_cov(before.cov, A, torch.zeros_like(after)) + sliver
    Q = Q.expand(batch, steps - 1, n, n)
    eye = torch.eye(n, dtype=A.dtype, device=A.device).expand(batch, 1, n, n)
    fields = (torch.cat([eye, A], 1), torch.cat([torch.zeros_like(result.filtered.mean[:, :1]).double(), a], 1), torch.cat([eye, Q], 1))
    A, a, Q = (field.to(dtype) for field in fields)
    return StateSpace(A, a, Q, model.observation_matrix, model.observation_offset, model.initial)


def memories(adaptive: AdaptiveNoise, measurements: Gaussian, observed: Tensor | None, result: FilterResult) -> Tensor:
    """The memory of adaptive noise after every step of a filtered piece ``(B, T, k)``, so that filtering can go on from any of them."""
    mask = check_mask(observed, measurements.mean)
    innovation = measurements.mean.double() - result.projected.mean.double()
    innovation = innovation if mask is None else torch.where(mask, innovation, 0.0)
    nothing = innovation.new_zeros(*innovation.shape[-1:], 1)
    _, S, innovation = mask_missing(nothing, result.projected.cov.double(), innovation, mask)
    squares = torch.linalg.solve_triangular(cholesky(S), innovation.unsqueeze(-1), upper=False).square().sum((-2, -1))
    seen = squares.new_full(squares.shape, innovation.shape[-1]) if mask is None else mask.sum(-1).double().expand_as(squares)
    memory, after = _start(adaptive, len(squares)), []
    for surprise in torch.where(seen > 0, squares / seen.clamp_min(1.0), 1.0).unbind(1):
        memory = adaptive.remember(memory, surprise)
        after.append(memory)
    return torch.stack(after, 1)


# The loop over time.


def _prepare(model: NonlinearStateSpace, measurements: Gaussian, observed: Tensor | None) -> tuple[Problem, Tensor | None]:
    """The arguments, checked; the transition is not known before it is asked for, and the identity stands in for it here."""
    check_kind("model", model, NonlinearStateSpace)
    check_kind("model.initial", model.initial, Gaussian)
    eye = torch.eye(model.initial.mean.shape[-1], dtype=model.initial.mean.dtype, device=model.initial.mean.device)
    stand_in = StateSpace(eye, torch.zeros_like(eye[0]), eye, model.observation_matrix, model.observation_offset, model.initial)
    return prepare(stand_in, measurements, observed), check_mask(observed, measurements.mean)


def _run(model: NonlinearStateSpace, x: Problem, mask: Tensor | None) -> tuple[list[Filtered], list[Tensor]]:
    """All steps, in float64, and the factors on the measurement's standard deviations (none where they are all 1)."""
    batch, steps, _ = x.z.shape
    Cs, Rs, zs = per_step(x.C.double(), steps), per_step(x.R.double(), steps), x.z.double().unbind(1)
    seen = None if mask is None else per_step(mask.expand(batch, -1, -1), steps)
    eye = torch.eye(x.A.shape[-1], dtype=torch.float64, device=x.A.device)
    mean, cov = x.initial.mean.double(), symmetrise(x.initial.cov.double()).expand(batch, -1, -1)
    memory = None if model.adaptive is None else _start(model.adaptive, batch)
    done: list[Filtered] = []
    count = torch.as_tensor(x.seen, dtype=torch.float64, device=mean.device).expand(batch, steps).unbind(1)
    scales: list[Tensor] = []
    for t in range(steps):
        A, a, Q = (eye, mean.new_zeros(mean.shape), torch.zeros_like(eye)) if t == 0 else _affine(model, Gaussian(mean, cov), t, memory)
        R = Rs[t]
        if model.measurement_scale is not None:
            scale = model.measurement_scale(affine(a, A, mean)).double()
            scales.append(scale)
            scale = scale if seen is None else torch.where(seen[t], scale, 1.0)
            R = scale.unsqueeze(-1) * R * scale.unsqueeze(-2)
        step = run_step(StepModel(A, a, Q, Cs[t], R, x.seen if isinstance(x.seen, int) else count[t]), zs[t], Gaussian(mean, cov), t)
        done.append(step)
        if model.adaptive is not None and memory is not None:
            memory = model.adaptive.remember(memory, _surprise(step.predicted, Cs[t], R, zs[t], count[t]))
        mean, cov = step.filtered
    return done, scales


def _surprise(predicted: Gaussian | None, C: Tensor, R: Tensor, z: Tensor, seen: Tensor) -> Tensor:
    """e' S^-1 e over the number of observed channels, ``(B,)``; 1 where there is none."""
    assert predicted is not None  # a step always gives it
    factor = cholesky(innovation_cov(predicted.cov, C, R), "innovation covariance")
    white = torch.linalg.solve_triangular(factor, affine(z, C, predicted.mean, -1.0).unsqueeze(-1), upper=False)
    return torch.where(seen > 0, white.square().sum((-2, -1)) / seen.clamp_min(1.0), 1.0)


def _affine(model: NonlinearStateSpace, belief: Gaussian, step: Step, memory: Tensor | None) -> Affine:
    A, a, Q = (part.double() for part in model.linearise(belief, step))
    n = belief.mean.shape[-1]
    if A.shape[-2:] != (n, n) or a.shape[-1:] != (n,) or Q.shape[-2:] != (n, n):
        shapes = ", ".join(str(tuple(part.shape)) for part in (A, a, Q))
        raise ValueError(f"model.linearise gave A, a, Q of shapes {shapes}; expected (..., {n}, {n}), (..., {n}), (..., {n}, {n}) for {n} states")
    return Affine(A, a, Q if model.adaptive is None or memory is None else Q + model.adaptive.extra_cov(memory).double())


def _start(adaptive: AdaptiveNoise, batch: int) -> Tensor:
    return adaptive.memory.double().expand(batch, -1)


def _stacked(beliefs: list[Any]) -> Gaussian:
    """Over time."""
    return Gaussian(*(torch.stack(parts, 1) for parts in zip(*beliefs, strict=True)))


def _rounded(gaussian: Gaussian, dtype: torch.dtype) -> Gaussian:
    return Gaussian(gaussian.mean.to(dtype), round_cov(gaussian.cov, dtype))


def _projected(model: NonlinearStateSpace, measurements: Gaussian, predicted: Gaussian, scales: list[Tensor]) -> Gaussian:
    """p(z_t | z_<t) of all channels, observed or not."""
    C, R = model.observation_matrix.double(), measurements.cov.double()
    if scales:
        scale = torch.stack(scales, 1)
        R = scale.unsqueeze(-1) * R * scale.unsqueeze(-2)
    cov = symmetrise(innovation_cov(predicted.cov, C, R))
    return _rounded(Gaussian(matvec(C, predicted.mean) + model.observation_offset.double(), cov), measurements.mean.dtype)


def _density(steps: list[Filtered], dtype: torch.dtype) -> Tensor:
    return torch.stack([step.log_likelihood for step in steps], 1).to(dtype)
