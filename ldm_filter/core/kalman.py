"""The Kalman filter: predict, project, update, whole sequences, forecasts, prior sample paths.

The covariances never see the data: they are computed in float64, over the batch that A, Q, C, R, the initial covariance
and the mask span among themselves, which in the constant regime is one series for the whole batch.
:mod:`ldm_filter.core.backends` chooses what computes a sequence: compiled kernels or the readable loops of
:mod:`ldm_filter.core.recursion`.

Reference: R. E. Kalman, J. Basic Eng. 82 (1960); the Joseph form, R. S. Bucy and P. D. Joseph, *Filtering for
Stochastic Processes* (1968).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core import nonlinear
from ldm_filter.core.backends import run, run_usual
from ldm_filter.core.inputs import (
    Given,
    check_count,
    check_kind,
    check_mask,
    check_numbers,
    check_tensors,
    check_transition,
    fill_missing,
    lay_out,
    mask_missing,
)
from ldm_filter.core.linalg import affine, cholesky_psd, matvec, round_cov, symmetrise
from ldm_filter.core.nonlinear import NonlinearStateSpace
from ldm_filter.core.recursion import (
    correct_cov,
    gain_of,
    innovation_cov,
    join,
    log_density_of,
    per_step,
    predict_cov,
    raise_if_not_positive,
)
from ldm_filter.types import FilterResult, Gaussian, StateSpace

__all__ = ["filter_moments", "filter_sequence", "forecast", "predict", "project", "sample_paths", "update"]


def predict(belief: Gaussian, transition_matrix: Tensor, transition_offset: Tensor, transition_cov: Tensor) -> Gaussian:
    """One step ahead: ``N(A h + a, A P A' + Q)``.

    Args:
        belief: mean ``(..., n)``, cov ``(..., n, n)``; leading dimensions broadcast throughout.
        transition_matrix: A, ``(..., n, n)``.
        transition_offset: a, ``(..., n)``.
        transition_cov: Q, ``(..., n, n)``.

    Returns:
        The predicted state.

    Raises:
        ValueError, TypeError: for shapes, dtypes, devices that do not fit and numbers that are not finite.

    >>> belief = Gaussian(torch.ones(1, 1), torch.eye(1))
    >>> predict(belief, torch.tensor([[2.0]]), torch.tensor([0.5]), torch.tensor([[1.0]])).mean
    tensor([[2.5000]])
    """
    check_kind("belief", belief, Gaussian)
    n = belief.mean.shape[-1]
    _check_step(
        {"belief.cov": (belief.cov, (n, n)), "transition_cov": (transition_cov, (n, n))},
        {
            "belief.mean": (belief.mean, (n,)),
            "transition_matrix": (transition_matrix, (n, n)),
            "transition_offset": (transition_offset, (n,)),
        },
    )
    cov = predict_cov(belief.cov.double(), transition_matrix.double(), transition_cov.double())
    return Gaussian(matvec(transition_matrix, belief.mean) + transition_offset, round_cov(symmetrise(cov), belief.mean.dtype))


def project(belief: Gaussian, observation_matrix: Tensor, observation_offset: Tensor, measurement_cov: Tensor) -> Gaussian:
    """The measurement that a state predicts: ``N(C h + c, C P C' + R)``.

    Args:
        belief: mean ``(..., n)``, cov ``(..., n, n)``; leading dimensions broadcast throughout.
        observation_matrix: C, ``(..., m, n)``.
        observation_offset: c, ``(..., m)``.
        measurement_cov: R, ``(..., m, m)``.

    Returns:
        The distribution of the measurement, mean ``(..., m)``, cov ``(..., m, m)``.

    Raises:
        ValueError, TypeError: for shapes, dtypes, devices that do not fit and numbers that are not finite.
    """
    check_kind("belief", belief, Gaussian)
    n, m = belief.mean.shape[-1], observation_offset.shape[-1]
    _check_step(
        {"belief.cov": (belief.cov, (n, n)), "measurement_cov": (measurement_cov, (m, m))},
        {
            "belief.mean": (belief.mean, (n,)),
            "observation_matrix": (observation_matrix, (m, n)),
            "observation_offset": (observation_offset, (m,)),
        },
    )
    cov = innovation_cov(belief.cov.double(), observation_matrix.double(), measurement_cov.double())
    return Gaussian(matvec(observation_matrix, belief.mean) + observation_offset, round_cov(symmetrise(cov), belief.mean.dtype))


def update(
    predicted: Gaussian, measurement: Gaussian, observation_matrix: Tensor, observation_offset: Tensor, observed: Tensor | None = None
) -> tuple[Gaussian, Tensor]:
    """Condition a prediction on one measurement: ``h = h^- + K (z - C h^- - c)``, ``K = P^- C' (C P^- C' + R)^-1``.

    Args:
        predicted: mean ``(..., n)``, cov ``(..., n, n)``; leading dimensions broadcast throughout.
        measurement: mean z ``(..., m)``, anything (also NaN) where it is not observed; cov R ``(..., m, m)``.
        observation_matrix: C, ``(..., m, n)``.
        observation_offset: c, ``(..., m)``.
        observed: bool ``(...)`` per measurement or ``(..., m)`` per channel; None: all of it.

    Returns:
        The filtered state and the log-density of the observed channels ``(...)``, 0 where nothing is observed.

    Raises:
        ValueError, TypeError: for shapes, dtypes, devices that do not fit and observed numbers that are not finite.
        NotPositiveDefiniteError: (a ValueError) where ``C P^- C' + R`` is not positive definite.
    """
    check_kind("predicted", predicted, Gaussian)
    check_kind("measurement", measurement, Gaussian)
    n, m = predicted.mean.shape[-1], measurement.mean.shape[-1]
    mask = check_mask(observed, measurement.mean)
    z = fill_missing(measurement.mean, mask)
    _check_step(
        {"predicted.cov": (predicted.cov, (n, n)), "measurement.cov": (measurement.cov, (m, m))},
        {
            "predicted.mean": (predicted.mean, (n,)),
            "measurement.mean": (z, (m,)),
            "observation_matrix": (observation_matrix, (m, n)),
            "observation_offset": (observation_offset, (m,)),
        },
    )
    C, R, z = mask_missing(observation_matrix, measurement.cov, z - observation_offset, mask)
    P = predicted.cov.double()
    K, factor, info = gain_of(P, C.double(), R.double())
    raise_if_not_positive(info.reshape(-1))
    innovation = z - matvec(C, predicted.mean)
    mean = predicted.mean + matvec(K.to(z.dtype), innovation)
    whitened = torch.linalg.solve_triangular(factor, innovation.double().unsqueeze(-1), upper=False).squeeze(-1)
    density = log_density_of(innovation, whitened, factor, m if mask is None else mask.sum(-1, dtype=torch.float64))
    return Gaussian(mean, round_cov(correct_cov(P, K, C.double(), R.double()), z.dtype)), density


# Whole sequences.


def filter_sequence(ssm: StateSpace | NonlinearStateSpace, measurements: Gaussian, observed: Tensor | None = None) -> FilterResult:
    """Filter a batch of sequences, keeping everything: predictions, estimates, projections, log-likelihoods.

    Args:
        ssm: the model; its fields are constant or vary over time and batch, see :class:`ldm_filter.types.StateSpace`. Here and below also a
            :class:`ldm_filter.core.nonlinear.NonlinearStateSpace`.
        measurements: mean z ``(B, T, m)``, anything (also NaN) where it is not observed; cov R ``(m, m)`` or
            ``(1 | B, 1 | T, m, m)``, finite everywhere.
        observed: bool ``(1 | B, T)`` per step or ``(1 | B, T, m)`` per channel, True where observed; None: everything.

    Returns:
        Means ``(B, T, n)``; covariances ``(1, T, n, n)`` where nothing that they depend on differs within the batch (a
        mask that is True throughout counts as none), else ``(B, T, n, n)``; log-likelihoods ``(B, T)``. All in the dtype
        of the measurements; the covariances are computed in float64. The projected covariance has the R that came, also
        in channels that are missing.

    Raises:
        ValueError, TypeError: for shapes, dtypes, devices that do not fit and observed numbers that are not finite.
        NotPositiveDefiniteError: (a ValueError) naming step and series where C P^- C' + R is not positive definite.

    >>> one = torch.eye(1)
    >>> ssm = StateSpace(one, torch.zeros(1), one, one, torch.zeros(1), Gaussian(torch.zeros(1), one))
    >>> filter_sequence(ssm, Gaussian(torch.ones(1, 2, 1), one)).filtered.mean.flatten()
    tensor([0.5000, 0.8000])
    """
    if isinstance(ssm, NonlinearStateSpace):
        return nonlinear.filter_sequence(ssm, measurements, observed)
    given = lay_out(ssm, measurements, observed)
    predicted, filtered, log_likelihood = run(given, predicted=True)
    assert predicted is not None  # asked for
    return FilterResult(predicted, filtered, _project_all(given, predicted), log_likelihood)


def filter_moments(ssm: StateSpace | NonlinearStateSpace, measurements: Gaussian, observed: Tensor | None = None) -> tuple[Gaussian, Tensor]:
    """What most callers need of :func:`filter_sequence`, by the same computation: the filtered states and the log-likelihood.

    Args:
        ssm, measurements, observed: as for :func:`filter_sequence`.

    Returns:
        The filtered states, mean ``(B, T, n)``, cov ``(1 | B, T, n, n)``, and the log-likelihood ``(B, T)``.

    Raises:
        ValueError, TypeError: as :func:`filter_sequence`.
    """
    if isinstance(ssm, NonlinearStateSpace):
        return nonlinear.filter_moments(ssm, measurements, observed)
    usual = run_usual(ssm, measurements, observed)
    if usual is not None:
        return usual
    _, filtered, log_likelihood = run(lay_out(ssm, measurements, observed), predicted=False)
    return filtered, log_likelihood


def forecast(ssm: StateSpace | NonlinearStateSpace, belief: Gaussian, horizon: int) -> Gaussian:
    """The states 1 .. H steps after a belief: ``N(A h + a, A P A' + Q)`` again and again.

    Args:
        ssm: the model; only its transition is used. Where that varies in time its T must be H, and index 0 leads to the
            first step after the belief.
        belief: mean ``(B, n)``, cov ``(n, n)`` or ``(1 | B, n, n)``, say the last filtered state.
        horizon: H, at least 1.

    Returns:
        Mean ``(B, H, n)``, cov ``(1 | B, H, n, n)``.

    Raises:
        ValueError, TypeError: for shapes, dtypes, devices that do not fit, numbers that are not finite and H < 1.
    """
    if isinstance(ssm, NonlinearStateSpace):
        return nonlinear.forecast(ssm, belief, horizon)
    check_count("horizon", horizon)
    check_kind("ssm", ssm, StateSpace)
    check_kind("belief", belief, Gaussian)
    check_tensors({"belief.mean": belief.mean, "belief.cov": belief.cov})
    if belief.mean.dim() != 2:
        raise ValueError(f"belief.mean has shape {tuple(belief.mean.shape)}; expected (batch, state): add the batch with [None]")
    batch, dtype = belief.mean.shape[0], belief.mean.dtype
    way = check_transition(ssm._replace(initial=belief), belief.mean, batch, horizon, initial="belief")
    shared = way.A.shape[0] == way.Q.shape[0] == way.initial.cov.shape[0] == 1
    P = way.initial.cov.double()
    P = P[0] if shared else P.expand(batch, -1, -1)
    h = belief.mean[0] if batch == 1 else belief.mean
    means, covs = [], []
    for A, a, Q in zip(*(per_step(x, horizon) for x in (way.A, way.a, way.Q)), strict=True):
        h = affine(a, A, h)
        P = predict_cov(P, A.double(), Q.double())
        means.append(h)
        covs.append(P)
    return Gaussian(join(means, 1), round_cov(symmetrise(join(covs, 2)), dtype))


def sample_paths(ssm: StateSpace | NonlinearStateSpace, steps: int, generator: torch.Generator, num_paths: int = 1) -> Tensor:
    """Draw paths of the state from the model alone: ``h_0 ~ initial``, ``h_t = A h_{t-1} + a + w``.

    Args:
        ssm: the model; index 0 of its transition is unused. Replace ``initial`` by a belief to start there.
        steps: T, at least 1.
        generator: source of the randomness, on the device of the model.
        num_paths: paths for each series of the model's batch.

    Returns:
        ``(num_paths, b, T, n)``, b the batch size of the model (1 where it is constant). Differentiable in the model.

    Raises:
        ValueError, TypeError: for a model that does not fit together, and for counts below 1.
    """
    if isinstance(ssm, NonlinearStateSpace):
        return nonlinear.sample_paths(ssm, steps, generator, num_paths)
    check_count("steps", steps)
    check_count("num_paths", num_paths)
    check_kind("ssm", ssm, StateSpace)
    like = ssm.transition_matrix
    way = check_transition(ssm, like, None, steps)
    batch = max(x.shape[0] for x in (way.A, way.a, way.Q, *way.initial))
    noise = torch.randn(num_paths, batch, steps, like.shape[-1], generator=generator, dtype=like.dtype, device=like.device)
    start = matvec(cholesky_psd(way.initial.cov, "ssm.initial.cov").to(like.dtype), noise[:, :, 0])
    noise = matvec(cholesky_psd(way.Q, "ssm.transition_cov").to(like.dtype), noise)
    As, pushes = per_step(way.A, steps), (noise + way.a).unbind(2)
    path = [way.initial.mean + start]
    for t in range(1, steps):
        path.append(matvec(As[t], path[-1]) + pushes[t])
    return torch.stack(path, dim=2)


def _project_all(x: Given, predicted: Gaussian) -> Gaussian:
    """p(z_t | z_<t) of all channels, observed or not."""
    mean = predicted.mean
    shared = x.C[0, 0] if x.C.shape[:2] == (1, 1) else x.C
    cov = innovation_cov(predicted.cov.double(), x.C.double(), x.R.double())
    return Gaussian(matvec(shared, mean) + x.c, round_cov(symmetrise(cov), mean.dtype))


def _check_step(covs: dict[str, tuple[Tensor, tuple[int, ...]]], others: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Tensors with the dimensions that they must end in; what leads must broadcast."""
    everything = covs | others
    check_tensors({name: x for name, (x, _) in everything.items()})
    for name, (x, event) in everything.items():
        if x.shape[-len(event) :] != event:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (..., {', '.join(map(str, event))}): check its last dimensions")
    try:
        torch.broadcast_shapes(*(x.shape[: x.dim() - len(event)] for x, event in everything.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, (x, _) in everything.items())
        raise ValueError(f"leading dimensions do not broadcast: {shapes}; expected equal ones or 1: check the batch sizes") from None
    check_numbers({name: x for name, (x, _) in covs.items()}, {name: x for name, (x, _) in others.items()})
