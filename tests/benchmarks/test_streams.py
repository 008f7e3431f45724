"""Gates and single steps: the judge says what it says, and nothing costs a filter without a gate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

from benchmarks import stream_methods
from benchmarks.stream_methods import GATES, TASKS, A, C, Q, R, judge, run, tracks
from ldm_filter import LDMFilter


@pytest.fixture(scope="module")
def known() -> LDMFilter:
    return LDMFilter.from_matrices(A, Q, C, R, np.zeros(2), solve_discrete_lyapunov(A, Q))


def test_tracks_are_stationary_and_as_noisy_as_said() -> None:
    truth, seen = tracks(200, 60, 0)
    np.testing.assert_allclose((seen - truth).reshape(-1, 2).var(0), np.diag(R), rtol=0.05)
    want = np.diag(C @ solve_discrete_lyapunov(A, Q) @ C.T)
    np.testing.assert_allclose(truth.reshape(-1, 2).var(0), want, rtol=0.25)


def test_without_a_gate_outliers_hurt_and_nothing_else_changes(known: LDMFilter) -> None:
    outliers, none, shift = (judge(known, condition, None, 10, 200, 0) for condition in TASKS["gates"])
    assert outliers["growth"] > 100.0
    assert none["growth"] == 0.0
    assert shift == {"settled": 0.0, "settled_most": 0.0}


@pytest.mark.parametrize("kind", GATES)
def test_gates_reach_their_figures(known: LDMFilter, kind: str) -> None:
    outliers, none, shift = (judge(known, condition, kind, 20, 300, 1) for condition in TASKS["gates"])
    assert outliers["growth"] < 10.0
    assert none["growth"] < 2.0
    assert 0 < shift["settled"] <= shift["settled_most"] <= 20


def test_single_steps_and_refusals() -> None:
    found = run("online", "", "ldm-linear", "smoke", 0)
    assert found.metrics["steps"] == 200
    assert 0 < found.metrics["step_us"] < 1e5
    assert found.metrics["state_kib"] < 8
    assert run("gates", TASKS["gates"][1], "ldm-hard", "smoke", 0).metrics.keys() == {"rmse", "growth"}
    with pytest.raises(ValueError, match="has no method 'var6'"):
        run("gates", TASKS["gates"][0], "var6", "smoke", 0)
    assert stream_methods.default_methods("online") == ("ldm-mlp", "ldm-linear")
