"""The task of Lorenz images. Figures are made by `python -m benchmarks.quality`, never here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import lorenz_image_methods, quality, records
from benchmarks.lorenz_image_oracle import LEVELS, particle_moments, pixel_log_likelihood
from benchmarks.lorenz_image_tasks import judge, settings_of
from datasets.lorenz_images import corrupt, generate

TASK = "lorenz-images"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_likelihood_of_a_pixel_is_that_of_the_noise(share: float) -> None:
    """It sums to one over what can be seen, and is how often the generator draws it."""
    table = np.exp(pixel_log_likelihood(share))
    assert table.sum(1) == pytest.approx(np.ones(LEVELS), abs=1e-9)
    clean = 64
    seen = corrupt(np.full(400_000, clean / (LEVELS - 1)), share, np.random.default_rng(0))
    drawn = np.bincount(seen, minlength=256) / len(seen)
    assert np.abs(drawn - table[clean]).max() < 1e-3
    assert np.isfinite(pixel_log_likelihood(share)).all()


def test_the_oracle_is_near_the_state_and_knows_how_near() -> None:
    data = generate(4, 20, 0.5, np.random.default_rng(0))
    figures = judge(*particle_moments(data.frames, 0.5, 500, 20_000), data.states)
    assert figures["db"] < -10.0
    assert 0.5 < figures["nees"] < 2.0


def test_a_smoke_run_of_every_method(tmp_path: Path) -> None:
    assert quality.run_all([TASK], None, "smoke", 1, tmp_path, conditions=["k 0.1"]) == 0
    rows = {row["method"]: row["metrics"] for row in records.read(tmp_path)}
    assert set(rows) == set(lorenz_image_methods.default_methods(TASK))
    assert rows["oracle"]["db"] < rows["pca-affine"]["db"]
    assert all("coverage95" in figures and "nll" in figures for figures in rows.values())
    for name in ("ldm-polynomial", "ldm-log-det"):
        assert {"nis_low", "coverage95_scaled", "coverage95_turned", "coverage95_scaled_high", "pit_distance_turned"} < set(rows[name])


def test_unknown_names_are_refused() -> None:
    for call, message in (
        (lambda: settings_of(TASK, "huge"), "budget is 'huge'"),
        (lambda: lorenz_image_methods.run(TASK, "k 0.2", "oracle", "smoke", 0), "condition is 'k 0.2'"),
        (lambda: lorenz_image_methods.run(TASK, "k 0.1", "guess", "smoke", 0), "method is 'guess'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
