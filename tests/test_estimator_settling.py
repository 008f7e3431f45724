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


def trained_on(series: int = 60) -> Windows:
    return Windows(parse(noisy_process(series, 60, NOISE_VAR, 0.01 * NOISE_VAR, np.random.default_rng(0)).observations)[0], 60)


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
    first = settle_process_noise(plain, held_out(), trained_on())
    wide, before = widened(fitted.model_, 8.0)
    ratio = settle_process_noise(wide, held_out(), trained_on())
    assert ratio in RATIOS and ratio == pytest.approx(first / 8.0)
    torch.testing.assert_close(process_cov(wide), 8.0 * ratio * before, rtol=1e-4, atol=0.0)


def best_likelihood(model: LatentFilter, windows: Windows) -> torch.Tensor:
    """Per window, with the common scale of the greatest likelihood found on a fine grid."""
    values = []
    for scale in torch.linspace(0.85, 1.15, 21).tolist():
        scaled = copy.deepcopy(model)
        scaled.scale_covariances(scale)
        parts = [scaled(batch.values, batch.observed).log_likelihood.detach().double().sum(-1) for batch in windows.batches(64, shuffle=False)]
        values.append(torch.cat(parts))
    return max(values, key=lambda each: float(each.sum()))


@pytest.mark.parametrize("few", [6, 40])
def test_what_is_kept_is_the_wider_of_what_two_comparisons_ask_for(fitted: LDMFilter, few: int) -> None:
    held, training = held_out(few), trained_on(40)
    kept = 8.0 * settle_process_noise(widened(fitted.model_, 8.0)[0], held, training)
    factors = (kept / 4, kept / 2, kept / 2**0.5, kept, 2 * kept)
    own, rest = ({factor: best_likelihood(widened(fitted.model_, factor)[0], part) for factor in factors} for part in (held, training))
    together = {factor: torch.cat([own[factor], rest[factor]]) for factor in factors}

    def behind(tried: dict[float, torch.Tensor], factor: float) -> float:
        """In standard errors."""
        gap = max(tried.values(), key=lambda each: float(each.sum())) - tried[factor]
        return float(gap.sum() / (len(gap) ** 0.5 * gap.std())) if bool(gap.any()) else 0.0

    assert behind(own, kept) <= 1.2 or behind(together, kept) <= 3.2
    assert behind(own, 2 * kept) > 1.0 and behind(together, 2 * kept) > 3.0


def test_chance_in_few_held_out_windows_does_not_decide(fitted: LDMFilter) -> None:
    """With held-out windows that by chance prefer the narrowest, the training windows hold Q; alone, the held-out ones would not."""
    tiny = 1e-3  # process noise this small beside what the motion needs: paths without any noise
    series = noisy_process(30, 60, NOISE_VAR, tiny * 0.01 * NOISE_VAR, np.random.default_rng(7)).observations
    calm = Windows(parse(series)[0], 60)
    alone = settle_process_noise(widened(fitted.model_, 8.0)[0], calm, calm)
    held = settle_process_noise(widened(fitted.model_, 8.0)[0], calm, trained_on(200))
    assert held > 1.5 * alone


def test_a_single_window_and_other_dynamics_change_nothing(fitted: LDMFilter) -> None:
    model, before = widened(fitted.model_, 1.0)
    assert settle_process_noise(model, held_out(1), trained_on()) == 1.0
    torch.testing.assert_close(process_cov(model), before, rtol=1e-5, atol=0.0)
    series = np.random.default_rng(0).normal(size=(200, 2)).cumsum(0)
    linear = LDMFilter(2, dynamics="ekf").fit(series, epochs=1, progress=False)
    weights, windows = copy.deepcopy(linear.model_.state_dict()), Windows(parse(series.astype(np.float32))[0], 50)
    assert settle_process_noise(linear.model_, windows, windows) == 1.0
    assert all(torch.equal(weights[name], value) for name, value in linear.model_.state_dict().items())
