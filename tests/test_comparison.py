"""LDMFilter.compare: the same questions for all, judged as by hand; from Python and from a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ldm_filter import LDMFilter, baselines
from ldm_filter.cli import main
from ldm_filter.comparison import Comparison
from tests.waves import frame, waves


@pytest.fixture(scope="module")
def train() -> pd.DataFrame:
    return frame(600)


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    made = frame(200, seed=5)
    made.iloc[60:64, 1] = np.nan
    return made


@pytest.fixture(scope="module")
def model(train: pd.DataFrame) -> LDMFilter:
    return LDMFilter(state_dim=4, readout="linear").fit(train, epochs=4, progress=False)


@pytest.fixture(scope="module")
def found(model: LDMFilter, train: pd.DataFrame, data: pd.DataFrame) -> Comparison:
    targets, known = (part.interpolate().to_numpy() @ np.array([[1.0], [1.0], [0.5]]) for part in (data, train))
    return model.compare(data, train, season=31, targets=targets, train_targets=known)


def test_every_method_has_a_row_and_answers_what_it_can(found: Comparison) -> None:
    assert list(found.table.index) == ["ldm-filter", "hold-last", "linear-interpolation", "seasonal-naive", "cv-kf", "ca-kf", "var6", "pca-em-kf"]
    missing = found.table.isna()
    assert missing.loc["seasonal-naive", "imputation_rmse"] and missing.sum().sum() == 1
    assert (found.table[["rmse", "crps", "forecast_rmse", "fit_seconds", "seconds"]] > 0).all(axis=None)
    assert found.table.loc["ldm-filter", "rmse"] < found.table.loc["hold-last", "rmse"]
    assert found.table.loc[["ldm-filter", "pca-em-kf"], "target_r2"].min() > 0.9
    assert "gaps of 8 and 12 steps ahead" in str(found) and "pca-em-kf" in str(found)


def test_figures_of_the_learned_filter_and_of_a_rule_are_those_by_hand(
    found: Comparison, model: LDMFilter, train: pd.DataFrame, data: pd.DataFrame
) -> None:
    assert found.table.loc["ldm-filter", "log_likelihood"] == pytest.approx(model.score(data), abs=1e-5)
    assert found.table.loc["hold-last", "log_likelihood"] == pytest.approx(baselines.Baseline("hold-last").fit(train).score(data), abs=1e-4)
    ahead = baselines.VARKalman(6).fit(train.to_numpy()).one_step(data.to_numpy())
    error = (ahead.mean - data.to_numpy()) / train.std(ddof=0).to_numpy()
    assert found.table.loc["var6", "rmse"] == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=1e-4)
    inside = np.abs(ahead.mean - data.to_numpy()) <= stats.norm.ppf(0.975) * ahead.std
    assert found.table.loc["var6", "coverage95"] == pytest.approx(inside[data.notna().to_numpy()].mean(), abs=0.01)
    last = train.std(ddof=0).to_numpy()
    values, places = data.to_numpy(), range(50, 200 - 12, 138 // 20)
    held = [(data.ffill().to_numpy()[t] - values[t + 1 : t + 13]) / last for t in places]
    assert found.table.loc["hold-last", "forecast_rmse"] == pytest.approx(np.sqrt(np.nanmean(np.square(held))), rel=1e-4)


def test_gaps_are_judged_on_what_was_cut(found: Comparison, model: LDMFilter, train: pd.DataFrame, data: pd.DataFrame) -> None:
    lost = np.arange(200) % 48 >= 40
    lost[192:] = False
    cut = data.copy()
    cut[lost] = np.nan
    unit = train.std(ddof=0).to_numpy()
    for name, filled in (
        ("ldm-filter", model.smooth(cut).reconstruction_mean.to_numpy()),
        ("linear-interpolation", baselines.linear_interpolation(cut.to_numpy())),
    ):
        error = ((filled - data.to_numpy()) / unit)[lost]
        assert found.table.loc[name, "imputation_rmse"] == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=1e-3), name


def test_the_picture_shows_everybody(found: Comparison) -> None:
    bars, reliability, forecasts = found.plot().axes
    assert [label.get_text() for label in bars.get_yticklabels()] == list(found.table.index)
    assert [text.get_text() for text in reliability.get_legend().get_texts()] == list(found.table.index)
    assert len(forecasts.lines) == 2 + len(found.table)


def test_series_frames_and_filters_on_known_equations_compete_too() -> None:
    several = [waves(150, seed) for seed in range(6)]
    model = LDMFilter(state_dim=4, readout="linear").fit(several, epochs=1, progress=False)
    still = baselines.StateEquations(lambda x: x, lambda x: x, 0.3 * np.eye(3), 0.05 * np.eye(3), np.zeros(3), 4 * np.eye(3))
    table = model.compare([waves(120, 9), waves(90, 10)], several, {"walk": baselines.EKF(still), "hold": "hold-last"}).table
    assert list(table.index) == ["ldm-filter", "walk", "hold"] and table.notna().all(axis=None)
    video = np.random.default_rng(0).normal(size=(4, 60, 9, 9)) * 0.1 + np.sin(np.arange(60) / 4)[:, None, None]
    seen = LDMFilter(state_dim=2, readout="linear").fit(video[:3], epochs=1, progress=False).compare(video[3:], video[:3], gap=4)
    assert list(seen.table.index) == ["ldm-filter", "hold-last", "pca-em-kf", "pca-em-kf-adaptive"]
    assert seen.table.loc["pca-em-kf", "rmse"] < seen.table.loc["hold-last", "rmse"]


def test_what_cannot_be_compared_is_named(model: LDMFilter, train: pd.DataFrame, data: pd.DataFrame) -> None:
    for arguments, message in (
        ({"baselines": ["magic"]}, "baselines holds 'magic', expected names among"),
        ({"baselines": ["seasonal-naive"]}, "needs season="),
        ({"horizon": 500}, "horizon is 500, expected 1 to 149"),
        ({"gap": 60}, "gap is 60, expected 1 to 28"),
        ({"readout": "forest"}, "readout is 'forest'"),
        ({"targets": data.to_numpy()}, "targets and train_targets belong together"),
        ({"targets": data.to_numpy()[:9], "train_targets": train.to_numpy()}, r"targets have \(series, time\) \(1, 9\), expected \(1, 200\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compare(data, train, **arguments)
    with pytest.raises(ValueError, match="not fitted yet"):
        LDMFilter(state_dim=2).compare(data, train)


def test_the_estimator_alone_brings_no_baseline() -> None:
    code = "import sys, ldm_filter.estimator; print([m for m in sys.modules if m.startswith(('ldm_filter.baselines', 'ldm_filter.comparison'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_from_a_shell(model: LDMFilter, train: pd.DataFrame, data: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save(tmp_path / "m.safetensors")
    for name, part in (("train", train), ("new", data)):
        part.tz_convert(None).to_csv(tmp_path / f"{name}.csv")
    words = ["compare", str(tmp_path / "new.csv"), "--model", str(tmp_path / "m.safetensors"), "--train", str(tmp_path / "train.csv")]
    main([*words, "--baselines", "hold-last", "var6", "--out", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "p.png")])
    table = pd.read_csv(tmp_path / "t.csv", index_col=0)
    assert list(table.index) == ["ldm-filter", "hold-last", "var6"] and (tmp_path / "p.png").stat().st_size > 10_000
    capsys.readouterr()
    main([*words, "--baselines", "hold-last"])
    assert "hold-last" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--baselines", "magic"])
    assert "expected names among" in capsys.readouterr().err
