"""The dot videos' figures on estimates whose answer is known, and every method of the new tasks on the smallest budget."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import dot_methods
from benchmarks.dot_judge import _jumps, _noise_levels


def test_jumps_are_told_by_the_covariance_of_the_step_after() -> None:
    rng = np.random.default_rng(0)
    jumped = rng.random((20, 80)) < 0.02
    jumped[:, 0] = False
    wide = np.zeros((20, 80))
    for lag, extra in ((1, 3.0), (2, 2.0), (3, 1.0)):
        wide[:, lag:] += extra * jumped[:, :-lag]
    cov = np.exp(wide + 1e-3 * rng.normal(size=wide.shape))[..., None, None] * np.eye(2)
    data = SimpleNamespace(test=SimpleNamespace(jumped=jumped))
    found = _jumps(cov, data)  # type: ignore[arg-type]
    assert found["auc"] > 0.97
    assert found["settled"] == pytest.approx(3.0, abs=1.0)
    blind = _jumps(0.0 * cov + np.eye(2), data)  # type: ignore[arg-type]
    assert blind["auc"] == pytest.approx(0.5)
    assert _jumps(None, data) == {}  # type: ignore[arg-type]


def test_coverage_by_noise_level_is_apart_for_clean_and_noisy_frames() -> None:
    rng = np.random.default_rng(1)
    level = rng.exponential(size=(50, 60))
    position = rng.normal(size=(50, 60, 2))
    test = SimpleNamespace(noise_var=level, position=position + np.sqrt(level)[..., None] * rng.normal(size=(50, 60, 2)))
    honest = np.broadcast_to(level[..., None, None] * np.eye(2), (50, 60, 2, 2))
    found = _noise_levels(position, honest, SimpleNamespace(test=test))  # type: ignore[arg-type]
    assert list(found.values()) == pytest.approx([0.95, 0.95], abs=0.02)
    found = _noise_levels(position, np.broadcast_to(np.eye(2), (50, 60, 2, 2)), SimpleNamespace(test=test))  # type: ignore[arg-type]
    assert found["coverage95_clean"] > 0.99 > 0.9 > found["coverage95_noisy"]


@pytest.mark.parametrize(("task", "method"), [("jump", "ldm-log-det"), ("jump", "ldm-log-det+adaptive"), ("state-noise", "ldm-log-det+state")])
def test_the_tasks_run(task: str, method: str) -> None:
    assert method in dot_methods.default_methods(task)
    figures = dot_methods.run(task, "", method, "smoke", 0).metrics
    assert {"r2", "mlp_excess", "nis"} <= set(figures)
    assert np.isfinite(list(figures.values())).all()
    assert ("auc" in figures) == (task == "jump")


def test_the_oracle_knows_a_jump_by_the_frame_that_shows_it() -> None:
    """Its covariance a step later is that of any other step."""
    assert dot_methods.run("jump", "", "oracle", "cpu", 0).metrics["auc"] < 0.65


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="after the plus"):
        dot_methods.run("jump", "", "ldm-log-det+magic", "smoke", 0)
