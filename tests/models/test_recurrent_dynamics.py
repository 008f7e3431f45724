"""Recurrent dynamics against the predictor they are made of, in pieces and as a whole, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.recurrent_dynamics import RecurrentDynamics
from ldm_filter.objectives.latent_models import prediction_log_density
from ldm_filter.types import FilterResult, Gaussian, Prediction
from tests.models.problems import rng, seeded


def dynamics(dtype: torch.dtype = torch.float64) -> RecurrentDynamics:
    with seeded():
        made = RecurrentDynamics(2, hidden=5).to(dtype)
        for parameter in made.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, dtype=dtype)
    return made


def measured(series: int = 3, steps: int = 12) -> tuple[Gaussian, Tensor]:
    z = torch.randn(series, steps, 2, generator=rng(1), dtype=torch.float64)
    observed = torch.rand(series, steps, generator=rng(2)) > 0.2
    return Gaussian(z, torch.eye(2, dtype=torch.float64)[None, None]), observed


def run() -> tuple[RecurrentDynamics, Gaussian, Tensor, FilterResult]:
    made = dynamics()
    measurements, observed = measured()
    with torch.no_grad():
        return made, measurements, observed, made.filter(measurements, observed)


def test_it_is_the_predictor() -> None:
    made, measurements, observed, result = run()
    with torch.no_grad():
        expected = made.predictor(measurements, observed)
    torch.testing.assert_close(result.projected.mean, expected.density.mean)
    torch.testing.assert_close(result.projected.cov, expected.density.cov.expand(1, 12, -1, -1))
    torch.testing.assert_close(result.log_likelihood, prediction_log_density(Prediction(result.projected, observed), measurements))
    assert torch.equal(result.filtered.mean[observed], measurements.mean[observed])
    assert torch.equal(result.filtered.mean[~observed], result.predicted.mean[~observed])
    assert float(result.filtered.cov[observed].abs().max()) == 0.0
    torch.testing.assert_close(result.filtered.cov[~observed], result.predicted.cov[0, 0].expand(int((~observed).sum()), -1, -1))
    torch.testing.assert_close(made.initial().mean.detach().expand(3, -1), result.predicted.mean[:, 0])


def test_pieces_joined_are_the_whole() -> None:
    with seeded():
        model = LatentFilter(Encoder((4,), 2), dynamics()).double().eval()
    values = torch.randn(3, 12, 4, generator=rng(3), dtype=torch.float64)
    observed = torch.rand(3, 12, 1, generator=rng(4)).expand(-1, -1, 4) > 0.2
    with torch.no_grad():
        whole = model(values, observed)
        pieces = [result for _, _, result in model.filter_chunks(values, observed, 5)]
    torch.testing.assert_close(torch.cat([piece.predicted.mean for piece in pieces], dim=1), whole.predicted.mean)
    torch.testing.assert_close(torch.cat([piece.log_likelihood for piece in pieces], dim=1), whole.log_likelihood)


def test_one_step_ahead() -> None:
    """The forecast after t steps is what a filter that goes on predicts for step t + 1."""
    made, measurements, observed, result = run()
    with torch.no_grad():
        first = Gaussian(measurements.mean[:, :7], measurements.cov)
        part = made.filter(first, observed[:, :7])
        memory = made.remember(first, observed[:, :7], part)[:, -1]
        last = Gaussian(part.filtered.mean[:, -1], part.filtered.cov[:, -1])
        ahead = made.forecast(last, 1, memory=memory)
    torch.testing.assert_close(ahead.mean[:, 0], result.predicted.mean[:, 7])
    torch.testing.assert_close(ahead.cov[:, 0], result.predicted.cov[0, 0].expand(3, -1, -1))


def test_paths_have_the_density_of_the_model() -> None:
    """The innovations of drawn paths, whitened by the model's own prediction, are standard normal."""
    made = dynamics()
    with torch.no_grad():
        paths = made.prior_paths(20, rng(5), num_paths=500)[:, 0]
        projected = made.filter(Gaussian(paths, torch.eye(2, dtype=torch.float64))).projected
        white = torch.linalg.solve(torch.linalg.cholesky(projected.cov[0, 0]), (paths - projected.mean).flatten(0, 1).mT).mT
    assert paths.shape == (500, 20, 2)
    torch.testing.assert_close(torch.cov(white.mT), torch.eye(2, dtype=torch.float64), atol=0.04, rtol=0)
    assert float(white.mean(0).abs().max()) < 0.03


def test_the_common_scale_multiplies_the_covariance() -> None:
    made, measurements, observed, result = run()
    assert made.scale_covariances(4.0)
    with torch.no_grad():
        torch.testing.assert_close(made.filter(measurements, observed).projected.cov, 4.0 * result.projected.cov, rtol=1e-4, atol=1e-8)


def test_what_has_no_meaning_is_refused() -> None:
    made, measurements, observed, result = run()
    belief = Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1])
    memory = torch.zeros(3, 5, dtype=torch.float64)
    for call in (
        lambda: made.smooth(result),
        lambda: made.posterior_paths(result, rng()),
        lambda: made(),
        lambda: made.forecast(belief, 2, memory=memory),
        lambda: made.prior_paths(2, rng(), initial=belief),
    ):
        with pytest.raises(ValueError, match="recurrent dynamics have no posterior and so not"):
            call()
    with pytest.raises(ValueError, match="initial is given without a memory"):
        made.filter(measurements, observed, initial=belief)
    with pytest.raises(ValueError, match="memory is None"):
        made.predict(belief)
    with pytest.raises(ValueError, match="observed hides single latents"):
        made.filter(measurements, torch.rand(3, 12, 2, generator=rng()) > 0.5)
