"""How much process noise polynomial dynamics keep: chosen on held-out windows by likelihood."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from datasets.lorenz import noisy_process
from ldm_filter import LDMFilter
from ldm_filter.data.labels import parse
from ldm_filter.data.windows import Windows
from ldm_filter.estimator.settling import RATIOS, settle_process_noise
from ldm_filter.models.latent_filter import LatentFilter

NOISE_VAR = 0.1


@pytest.fixture(scope="module")
def fitted() -> LDMFilter:
    series = noisy_process(60, 60, NOISE_VAR, 0.01 * NOISE_VAR, np.random.default_rng(0)).observations
    model = LDMFilter(3, encoder="linear", dynamics="polynomial", objective="jacobian", window=20, learning_rate=1e-5, dynamics_rate=1000.0)
    return model.fit(series, epochs=3, progress=False)


def held_out(series: int = 40) -> Windows:
    return Windows(parse(noisy_process(series, 60, NOISE_VAR, 0.01 * NOISE_VAR, np.random.default_rng(5)).observations)[0], 60)


def widened(model: LatentFilter, factor: float) -> tuple[LatentFilter, torch.Tensor]:
    """A copy with so much process noise, and what it was."""
    own = copy.deepcopy(model)
    fields = own.dynamics.base.exact()  # type: ignore[union-attr,operator]
    own.dynamics.base.set_matrices(fields._replace(transition_cov=factor * fields.transition_cov))  # type: ignore[union-attr,operator]
    return own, fields.transition_cov


def process_cov(model: LatentFilter) -> torch.Tensor:
    return model.dynamics.base.exact().transition_cov  # type: ignore[union-attr,operator]


def test_wider_process_noise_is_taken_back(fitted: LDMFilter) -> None:
    plain, _ = widened(fitted.model_, 1.0)
    first = settle_process_noise(plain, held_out())
    wide, before = widened(fitted.model_, 8.0)
    ratio = settle_process_noise(wide, held_out())
    assert ratio in RATIOS and ratio == pytest.approx(first / 8.0)
    torch.testing.assert_close(process_cov(wide), 8.0 * ratio * before, rtol=1e-4, atol=0.0)


def test_the_likelihood_of_what_is_kept_is_within_one_standard_error_of_the_best_and_wider_is_not(fitted: LDMFilter) -> None:
    model, _ = widened(fitted.model_, 8.0)
    windows = held_out()
    batch = next(windows.batches(64, shuffle=False))

    def best(factor: float) -> torch.Tensor:
        """Per window, with the common scale of the greatest likelihood found on a fine grid."""
        own, _ = widened(fitted.model_, factor)
        values = []
        for scale in torch.linspace(0.8, 1.25, 91).tolist():
            scaled = copy.deepcopy(own)
            scaled.scale_covariances(scale)
            values.append(scaled(batch.values, batch.observed).log_likelihood.detach().double().sum(-1))
        return max(values, key=lambda each: float(each.sum()))

    kept = 8.0 * settle_process_noise(model, windows)
    tried = {factor: best(factor) for factor in (kept / 4, kept / 2, kept / 2**0.5, kept, 2 * kept)}
    highest = max(tried.values(), key=lambda each: float(each.sum()))

    def behind(factor: float) -> tuple[float, float]:
        gap = highest - tried[factor]
        return float(gap.sum()), len(gap) ** 0.5 * float(gap.std())

    near, error = behind(kept)
    assert near <= 1.2 * error + 0.1
    far, error = behind(2 * kept)
    assert far > error


def test_a_single_window_and_other_dynamics_change_nothing(fitted: LDMFilter) -> None:
    model, before = widened(fitted.model_, 1.0)
    assert settle_process_noise(model, held_out(1)) == 1.0
    torch.testing.assert_close(process_cov(model), before, rtol=1e-5, atol=0.0)
    series = np.random.default_rng(0).normal(size=(200, 2)).cumsum(0)
    linear = LDMFilter(2, dynamics="ekf").fit(series, epochs=1, progress=False)
    weights = copy.deepcopy(linear.model_.state_dict())
    assert settle_process_noise(linear.model_, Windows(parse(series.astype(np.float32))[0], 50)) == 1.0
    assert all(torch.equal(weights[name], value) for name, value in linear.model_.state_dict().items())
