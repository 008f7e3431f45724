"""What the demonstration compares and says, on methods whose errors are known. The demonstration itself is run by `make demo`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import demo
from ldm_filter.baselines import Forecast


@pytest.fixture(scope="module")
def problem() -> demo.Problem:
    return demo.sensor_problem()


def off_by(problem: demo.Problem, error: float, said: float) -> demo.Method:
    """A method that knows the truth, and misses it by ``error`` up and down in turn, in units of each channel's spread, saying ``said``."""
    after = problem.cuts()[1]

    def near(truth: np.ndarray) -> Forecast:
        sign = np.where(np.arange(truth.shape[1]) % 2, 1.0, -1.0)[:, None]
        return Forecast(truth + error * sign * problem.scale, np.broadcast_to(said * problem.scale, truth.shape))

    return demo.Method(lambda values: near(problem.test), lambda values: near(after))


def test_people_gaps_and_forecasts_are_held_apart(problem: demo.Problem) -> None:
    assert len(problem.train) == 98 and problem.test.shape == (42, demo.STEPS, 6)
    firsts = {values[:50].tobytes() for values in problem.train}
    assert not firsts & {values[:50].tobytes() for values in problem.test}
    edges = np.flatnonzero(np.diff(problem.lost.astype(int)))
    assert not problem.lost[0] and not problem.lost[-1]
    assert (np.diff(edges)[::2] == demo.GAP).all() and len(edges) == 2 * 14
    assert np.isnan(problem.with_gaps()).all(-1).mean() == pytest.approx(problem.lost.mean())
    before, after = problem.cuts()
    assert before.shape == (13 * 42, demo.CONTEXT, 6) and after.shape == (13 * 42, demo.HORIZON, 6)
    np.testing.assert_array_equal(np.concatenate([before[42], after[42]]), problem.test[0, 60 : 60 + demo.CONTEXT + demo.HORIZON])


def test_errors_are_told_in_units_of_each_channels_spread(problem: demo.Problem) -> None:
    figures = demo.compare({"good": off_by(problem, 0.1, 0.1), "sure of itself": off_by(problem, 0.3, 0.1)}, problem)
    assert figures.loc["good", "RMSE gaps"] == pytest.approx(0.1, rel=1e-3) and figures.loc["good", "RMSE forecast"] == pytest.approx(0.1, rel=1e-3)
    assert (figures.filter(like="coverage").loc["good"] == 1.0).all() and (figures.filter(like="coverage").loc["sure of itself"] == 0.0).all()
    assert (figures.filter(like="CRPS").loc["good"] < figures.filter(like="CRPS").loc["sure of itself"]).all()


def test_the_table_stars_the_best_and_the_verdict_says_who_is_ahead() -> None:
    rows = {demo.LEARNED: [0.2, 0.91, 0.1, 0.5, 0.94, 0.2], "a": [0.3, 0.96, 0.2, 0.6, 0.98, 0.3], "b": [0.1, 0.99, 0.05, 0.6, 1.0, 0.3]}
    figures = pd.DataFrame.from_dict(rows, orient="index", columns=list(demo.COLUMNS))
    lines = demo.table(figures).splitlines()
    assert [line.count("*") for line in lines] == [0, 3, 1, 2]
    assert "96.0%*" in lines[2] and "0.100*" in lines[3]
    assert demo.verdict(figures) == [
        "In RMSE and CRPS, of gaps and forecasts, LDMFilter is ahead of: a.",
        "b is ahead of LDMFilter in: RMSE gaps, CRPS gaps.",
    ]
    assert demo.verdict(figures.loc[[demo.LEARNED, "b"]])[0].endswith("none of the others.")


def test_the_video_is_shown_where_its_noise_grows() -> None:
    noise = np.full((3, 60), 0.3)
    noise[2, 31 : 31 + demo.SHOWN] = np.linspace(0.0, 0.9, demo.SHOWN)
    noise[1, :6] = np.linspace(0.0, 0.9, demo.SHOWN)  # the filter has only begun
    assert demo.changing(noise) == (2, 31)
