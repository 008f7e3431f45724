"""Bad input gets one error that names the argument, what came, what was expected, and the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm_filter.core.kalman import filter_moments, filter_sequence, forecast, predict, project, sample_paths, update
from ldm_filter.core.linalg import NotPositiveDefiniteError
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, random_measurements, rng, varying_ssm

B, T, N, M = 3, 5, 4, 2
SSM, Z = constant_ssm(N, M), random_measurements(B, T, M)
NAN = float("nan")


def ssm_with(**fields: Any) -> StateSpace:
    return SSM._replace(**fields)


def eye(n: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.eye(n, dtype=torch.float64)


MODELS: list[tuple[StateSpace, type[Exception], str]] = [
    (ssm_with(transition_matrix=normal(0, N)), ValueError, r"ssm.transition_matrix has shape \(4,\); expected \(4, 4\) or \(1 or 3, 1 or 5, 4, 4\)"),
    (ssm_with(transition_matrix=normal(0, T, N, N)), ValueError, r"ssm.transition_matrix has shape \(5, 4, 4\); expected .* \[None\]"),
    (ssm_with(transition_matrix=normal(0, B, T + 1, N, N)), ValueError, r"ssm.transition_matrix has shape \(3, 6, 4, 4\)"),
    (ssm_with(transition_offset=normal(0, N + 1)), ValueError, r"ssm.transition_offset has shape \(5,\); expected \(4,\)"),
    (ssm_with(transition_cov=normal(0, N)), ValueError, r"ssm.transition_cov has shape \(4,\)"),
    (ssm_with(observation_matrix=normal(0, N, M)), ValueError, r"ssm.observation_matrix has shape \(4, 2\); expected \(2, 4\)"),
    (ssm_with(observation_offset=normal(0, B, M)), ValueError, r"ssm.observation_offset has shape \(3, 2\)"),
    (ssm_with(initial=Gaussian(normal(0, B + 1, N), eye(N))), ValueError, r"ssm.initial.mean has shape \(4, 4\); expected \(4,\) or \(1 or 3, 4\)"),
    (ssm_with(initial=Gaussian(normal(0, N), normal(0, N))), ValueError, r"ssm.initial.cov has shape \(4,\)"),
    (ssm_with(initial=normal(0, N)), TypeError, r"ssm.initial is a Tensor; expected a Gaussian"),
    (ssm_with(transition_matrix=eye(N).float()), TypeError, r"ssm.transition_matrix has dtype torch.float32; expected torch.float64 .* convert"),
    (ssm_with(transition_offset=torch.zeros(N, dtype=torch.int64)), TypeError, r"ssm.transition_offset has dtype torch.int64; expected a floating"),
    (ssm_with(transition_offset=[0.0] * N), TypeError, r"ssm.transition_offset is a list; expected a torch.Tensor"),
    (ssm_with(transition_cov=eye(N).to("meta")), ValueError, r"ssm.transition_cov is on meta; expected cpu .* move"),
    (ssm_with(transition_matrix=eye(N, NAN)), ValueError, r"ssm.transition_matrix is not finite at index \[0, 0, 0, 0\]"),
    (ssm_with(transition_cov=eye(N, -1.0)), ValueError, r"ssm.transition_cov has a negative variance .* check its sign"),
    (ssm_with(initial=Gaussian(normal(0, N), eye(N, -1.0))), ValueError, r"ssm.initial.cov has a negative variance"),
    (ssm_with(observation_offset=torch.full((M,), float("inf"), dtype=torch.float64)), ValueError, r"ssm.observation_offset is not finite"),
]


@pytest.mark.parametrize("call", [filter_sequence, filter_moments])
@pytest.mark.parametrize("ssm, error, message", MODELS)
def test_models(call: Callable[..., Any], ssm: StateSpace, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(ssm, Z)


def broken(mean: torch.Tensor) -> torch.Tensor:
    mean = mean.clone()
    mean[1, 2, 0] = NAN
    return mean


MEASUREMENTS: list[tuple[Any, Any, type[Exception], str]] = [
    (Z.mean, None, TypeError, r"measurements is a Tensor; expected a Gaussian"),
    (Z._replace(mean=Z.mean[0]), None, ValueError, r"measurements.mean has shape \(5, 2\); expected \(batch, time, dim\).*mean\[None\]"),
    (Z._replace(mean=Z.mean[:, :0]), None, ValueError, r"measurements.mean has shape \(3, 0, 2\)"),
    (Z._replace(mean=Z.mean[:0]), None, ValueError, r"measurements.mean has shape \(0, 5, 2\)"),
    (Z._replace(mean=Z.mean.numpy()), None, TypeError, r"measurements.mean is a ndarray"),
    (Z._replace(cov=normal(0, M)), None, ValueError, r"measurements.cov has shape \(2,\); expected \(2, 2\)"),
    (Z._replace(cov=eye(M, NAN)), None, ValueError, r"measurements.cov is not finite"),
    (Z._replace(cov=eye(M, -1.0)), None, ValueError, r"measurements.cov has a negative variance"),
    (
        Z._replace(mean=broken(Z.mean)),
        None,
        ValueError,
        r"measurements.mean is not finite at index \[1, 2, 0\].*mark missing entries False in observed",
    ),
    (Z, torch.ones(B, T), TypeError, r"observed is torch.float32; expected a boolean .* convert with .bool\(\)"),
    (Z, [[True] * T] * B, TypeError, r"observed is a list; expected a boolean"),
    (Z, torch.ones(B, T + 1, dtype=torch.bool), ValueError, r"observed has shape \(3, 6\); expected \(3, 5\) per step or \(3, 5, 2\) per channel"),
    (Z, torch.ones(B, T, M + 1, dtype=torch.bool), ValueError, r"observed has shape \(3, 5, 3\)"),
    (Z, torch.ones(T, dtype=torch.bool), ValueError, r"observed has shape \(5,\)"),
    (Z, torch.ones(B, 1, dtype=torch.bool), ValueError, r"observed has shape \(3, 1\)"),
]


@pytest.mark.parametrize("measurements, observed, error, message", MEASUREMENTS)
def test_measurements(measurements: Any, observed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        filter_sequence(SSM, measurements, observed)


def test_a_seen_nan_beside_a_hidden_one() -> None:
    mean = broken(Z.mean)
    observed = torch.isfinite(mean)
    filter_sequence(SSM, Z._replace(mean=mean), observed)
    mean[0, 0, 1] = NAN
    with pytest.raises(ValueError, match=r"not finite at index \[0, 0, 1\]"):
        filter_sequence(SSM, Z._replace(mean=mean), observed)


def test_indefinite_covariance_names_step_and_series() -> None:
    cov = eye(M).repeat(B, T, 1, 1)
    cov[2, 3] = torch.tensor([[1.0, 50.0], [50.0, 1.0]])
    cov[1, 4] = cov[2, 3]
    with pytest.raises(NotPositiveDefiniteError, match=r"not positive definite at step 3 of series 2; .* raise the measurement covariance"):
        filter_sequence(SSM, Z._replace(cov=cov))
    with pytest.raises(NotPositiveDefiniteError, match=r"at step 3 \(the covariance is shared by all series\)"):
        filter_moments(SSM, Z._replace(cov=cov[2:]))


def test_a_transition_that_blows_up_is_named() -> None:
    ssm = ssm_with(transition_matrix=eye(N, 1e80), observation_matrix=torch.zeros(M, N, dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match=r"at step [1-4] .*transition does not blow up"):
        filter_sequence(ssm, Z)


@pytest.mark.parametrize("horizon, error, message", [(0, ValueError, "horizon is 0; expected at least 1"), (1.5, TypeError, "horizon is a float")])
def test_horizon(horizon: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        forecast(SSM, Gaussian(normal(0, B, N), eye(N)), horizon)


def test_forecast() -> None:
    with pytest.raises(ValueError, match=r"belief.mean has shape \(4,\); expected \(batch, state\)"):
        forecast(SSM, Gaussian(normal(0, N), eye(N)), 2)
    with pytest.raises(ValueError, match=r"belief.mean has shape \(3, 5\); expected \(4,\) or \(1 or 3, 4\)"):
        forecast(SSM, Gaussian(normal(0, B, N + 1), eye(N)), 2)
    with pytest.raises(ValueError, match=r"ssm.transition_matrix has shape \(3, 5, 4, 4\); expected \(4, 4\) or \(1 or 3, 1 or 2, 4, 4\)"):
        forecast(varying_ssm(B, T, N, M), Gaussian(normal(0, B, N), eye(N)), 2)
    with pytest.raises(TypeError, match=r"belief is a Tensor"):
        forecast(SSM, normal(0, B, N), 2)  # type: ignore[arg-type]


def test_single_steps() -> None:
    belief, z = Gaussian(normal(0, B, N), eye(N)), Gaussian(normal(1, B, M), eye(M))
    A, a, Q, C, c, _ = SSM
    with pytest.raises(ValueError, match=r"transition_matrix has shape \(3, 3\); expected \(\.\.\., 4, 4\)"):
        predict(belief, A[:3, :3], a, Q)
    with pytest.raises(ValueError, match=r"measurement_cov has shape \(4, 4\); expected \(\.\.\., 2, 2\)"):
        project(belief, C, c, Q)
    with pytest.raises(ValueError, match=r"leading dimensions do not broadcast: .*observation_matrix \(2, 2, 4\)"):
        update(belief, z, C.expand(2, M, N), c)
    with pytest.raises(ValueError, match=r"measurement.mean is not finite at index \[0, 0\].*observed"):
        update(belief, z._replace(mean=z.mean * NAN), C, c)
    with pytest.raises(NotPositiveDefiniteError, match=r"not positive definite"):
        update(belief, z._replace(cov=torch.tensor([[1.0, 50.0], [50.0, 1.0]], dtype=torch.float64)), C, c)
    with pytest.raises(ValueError, match=r"observed has shape \(3, 3\)"):
        update(belief, z, C, c, torch.ones(B, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"belief is a Tensor"):
        predict(belief.mean, A, a, Q)  # type: ignore[arg-type]


def test_smoothing_and_paths() -> None:
    result = filter_sequence(SSM, Z)
    with pytest.raises(ValueError, match=r"ssm.transition_matrix has shape \(3, 3\); expected \(4, 4\) at its end"):
        smooth_sequence(constant_ssm(3, M), result)
    with pytest.raises(ValueError, match=r"ssm.transition_matrix has shape \(3, 2, 4, 4\)"):
        smooth_sequence(varying_ssm(B, 2, N, M), result)
    with pytest.raises(TypeError, match=r"result is a Gaussian; expected a FilterResult"):
        smooth_sequence(SSM, result.filtered)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_paths is 0"):
        sample_posterior(SSM, result, rng(0), 0)
    with pytest.raises(ValueError, match=r"steps is 0"):
        sample_paths(SSM, 0, rng(0))
    with pytest.raises(ValueError, match=r"num_paths is -1"):
        sample_paths(SSM, 3, rng(0), -1)
    with pytest.raises(ValueError, match=r"ssm.transition_cov has a negative variance"):
        sample_paths(ssm_with(transition_cov=eye(N, -1.0)), 3, rng(0))
