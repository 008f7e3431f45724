"""Forecasts: quantiles, formats, paths, what is known ahead, calibration and rolling origins, on models that are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from ldm_filter import LDMFilter, metrics

A = np.array([[0.9, 0.2], [-0.2, 0.85]])
Q = np.array([[0.3, 0.05], [0.05, 0.2]])
R = np.diag([0.05, 0.1])


def simulate(steps: int = 400, seed: int = 0, heavy: bool = False) -> np.ndarray:
    random = np.random.default_rng(seed)
    h, out = np.zeros(2), []
    for _ in range(steps):
        kick = random.standard_t(3, size=2) / np.sqrt(3.0) if heavy else random.normal(size=2)
        h = A @ h + np.linalg.cholesky(Q) @ kick
        out.append(h + np.sqrt(np.diag(R)) * random.normal(size=2))
    return np.array(out)


def known(**options: Any) -> LDMFilter:
    return LDMFilter.from_matrices(A, Q, np.eye(2), R, np.zeros(2), np.eye(2), **options)


def framed(values: np.ndarray) -> pd.DataFrame:
    index = pd.date_range("2024-01-01", periods=len(values), freq="h", name="time", tz="Europe/Paris")
    return pd.DataFrame(values, index=index, columns=pd.Index(["a", "b"]))


def test_quantiles_and_levels_are_those_of_the_gaussian() -> None:
    table = known(channels=["a", "b"]).forecast(framed(simulate()), 5, levels=(0.8,), quantiles=(0.1, 0.5, 0.975))
    assert table.columns.names == ["channel", "statistic"]
    for channel in ("a", "b"):
        part = table[channel]
        np.testing.assert_allclose(part["q-10"], part["lo-80"], rtol=1e-12)
        np.testing.assert_allclose(part["q-50"], part["mean"], rtol=1e-12)
        np.testing.assert_allclose(part["q-97.5"], part["mean"] + norm.ppf(0.975) * part["std"], rtol=1e-12)
    with pytest.raises(ValueError, match="`quantiles` is"):
        known().forecast(simulate(), 5, quantiles=(1.0,))


def test_every_format_says_the_same() -> None:
    data, model = framed(simulate()), known(channels=["a", "b"])
    wide = model.forecast(data, 4)
    pandas = model.forecast(data, 4, format="sktime")
    assert pandas.columns.tolist()[:4] == [("a", 0.8, "lower"), ("a", 0.8, "upper"), ("a", 0.95, "lower"), ("a", 0.95, "upper")]
    np.testing.assert_array_equal(pandas["b", 0.95, "upper"], wide["b", "hi-95"])
    alphas = model.forecast(data, 4, quantiles=(0.1, 0.9), format="sktime")
    assert alphas.columns.tolist() == [("a", 0.1), ("a", 0.9), ("b", 0.1), ("b", 0.9)]
    long = model.forecast(data, 4, format="long")
    assert long.columns.tolist() == ["unique_id", "ds", "channel", "mean", "std", "lo-80", "hi-80", "lo-95", "hi-95"]
    np.testing.assert_array_equal(long.loc[long.channel == "b", "lo-95"], wide["b", "lo-95"])
    assert long.ds.iloc[:4].tolist() == wide.index.tolist()
    cube = model.forecast(data, 4, quantiles=(0.3,), format="xarray")
    assert cube.forecast_lo.dims == ("time", "channel", "level")
    np.testing.assert_array_equal(cube.forecast_hi.sel(channel="a", level=0.8), wide["a", "hi-80"])
    assert cube.forecast_quantile.dims == ("time", "channel", "quantile")
    with pytest.raises(ValueError, match="`format` is 'tall'"):
        model.forecast(data, 4, format="tall")


def test_long_tables_go_in_and_come_out() -> None:
    series = {"north": simulate(60, 1)[:, 0], "south": simulate(40, 2)[:, 0]}
    parts = [
        pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=len(values), freq="D"), "y": values})
        for name, values in series.items()
    ]
    model = LDMFilter(2).fit(pd.concat(parts, ignore_index=True), epochs=2, progress=False)
    ahead = model.forecast(pd.concat(parts), 3)
    assert ahead.columns.tolist() == ["unique_id", "ds", "mean", "std", "lo-80", "hi-80", "lo-95", "hi-95"]
    assert ahead.unique_id.tolist() == ["north"] * 3 + ["south"] * 3
    assert ahead.ds.iloc[[0, 3]].tolist() == [pd.Timestamp("2024-03-01"), pd.Timestamp("2024-02-10")]
    alone = model.forecast(parts[1].set_index("ds")[["y"]], 3)
    np.testing.assert_allclose(ahead["mean"].iloc[3:], alone["y", "mean"], rtol=1e-4, atol=1e-5)
    assert [len(part.time) for part in model.filter(pd.concat(parts))] == [60, 40]
    broken = pd.concat(parts)
    broken.iloc[3, 0] = None
    with pytest.raises(ValueError, match="without a `unique_id`"):
        model.filter(broken)


def test_paths_have_the_moments_of_the_forecast_and_hang_together() -> None:
    model, data = known(), simulate()
    ahead = model.forecast(data, 6)
    paths = model.forecast_paths(data, 6, num_paths=20_000, seed=1).forecast_paths.to_numpy()
    assert paths.shape == (20_000, 6, 2)
    np.testing.assert_allclose(paths.mean(0), ahead.forecast_mean, atol=0.05)
    np.testing.assert_allclose(paths.std(0), ahead.forecast_std, rtol=0.04)
    P = model.filter(data).filtered_cov.to_numpy()[-1]
    for _ in range(5):
        P = A @ P @ A.T + Q
    between = np.cov(paths[:, 4, 0], paths[:, 5, 0])[0, 1]  # Cov(x_5, x_6) = A P_5, of channel a
    assert between == pytest.approx((A @ P)[0, 0], rel=0.05)


def test_what_is_known_ahead_conditions_the_rest() -> None:
    model, data = known(), simulate(50)
    filtered = model.filter(data)
    h, P = filtered.filtered_mean.to_numpy()[-1], filtered.filtered_cov.to_numpy()[-1]
    horizon, means, blocks = 3, [], {}
    for i in range(horizon):  # the dense joint Gaussian of the three observations ahead
        h, P = A @ h, A @ P @ A.T + Q
        means.append(h)
        blocks[i, i] = P
        for j in range(i):
            blocks[i, j] = np.linalg.matrix_power(A, i - j) @ blocks[j, j]
    joint = np.block([[blocks[i, j] if i >= j else blocks[j, i].T for j in range(horizon)] for i in range(horizon)]) + np.kron(np.eye(horizon), R)
    given = np.full((horizon, 2), np.nan)
    given[:, 0] = [1.0, -0.5, 2.0]
    seen = ~np.isnan(given.ravel())
    gain = joint[np.ix_(~seen, seen)] @ np.linalg.inv(joint[np.ix_(seen, seen)])
    expected = np.ravel(means)[~seen] + gain @ (given.ravel()[seen] - np.ravel(means)[seen])
    spread = np.sqrt(np.diag(joint[np.ix_(~seen, ~seen)] - gain @ joint[np.ix_(seen, ~seen)]))
    found = model.forecast(data, horizon, known=given)
    np.testing.assert_allclose(found.forecast_mean[:, 1], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.forecast_std[:, 1], spread, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(found.forecast_mean[:, 0], given[:, 0])
    assert not found.forecast_std[:, 0].any()
    late = np.full((3, 2), np.nan)
    late[2, 1] = 0.0
    assert float(model.forecast(data, horizon, known=late).forecast_std[1, 1]) < float(model.forecast(data, horizon).forecast_std[1, 1])
    with pytest.raises(ValueError, match=r"`known` has .* expected 3 steps"):
        model.forecast(data, horizon, known=given[:2])
    with pytest.raises(ValueError, match="expected those after the data"):
        known(channels=["a", "b"]).forecast(framed(data), horizon, known=framed(given))


def test_a_backtest_on_data_of_the_model_holds_its_levels() -> None:
    model, data = known(), simulate(3000)
    found = model.backtest(data, 6, every=2)
    for level, share in found.coverage.items():
        assert share == pytest.approx(level, abs=0.02)
    assert found.table.index.names == ["channel", "step"]
    assert found.table.loc[(0, 1), "crps"] < found.table.loc[(0, 6), "crps"]
    assert found.mase > found.table["mase"].min()
    assert "forecasts; CRPS" in str(found)
    one = model.backtest(data, 1, first=200, every=1)
    predicted = model.filter(data)
    mean, std = predicted.projected_mean.to_numpy()[201:], np.sqrt(np.diagonal(predicted.projected_cov.to_numpy(), axis1=1, axis2=2))[201:]
    np.testing.assert_allclose(one.table["crps"], metrics.crps_normal(mean, std, data[201:]).mean(0), rtol=1e-6)
    np.testing.assert_allclose(one.table["mase"], np.abs(data[201:] - mean).mean(0) / np.abs(np.diff(data, axis=0)).mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected more than first \+ horizon"):
        model.backtest(data[:20], 30)


def test_conformal_intervals_hold_their_level_where_the_gaussian_does_not(tmp_path: Any) -> None:
    model = known()
    with pytest.raises(ValueError, match="no calibration"):
        model.forecast(simulate(), 3, conformal=True)
    model.calibrate(simulate(6000, seed=5, heavy=True), 4)
    held_out = simulate(6000, seed=6, heavy=True)
    plain, fixed = model.backtest(held_out, 4, levels=(0.5, 0.8, 0.95)), model.backtest(held_out, 4, levels=(0.5, 0.8, 0.95), conformal=True)
    assert max(abs(share - level) for level, share in fixed.coverage.items()) < 0.015
    assert max(abs(share - level) for level, share in plain.coverage.items()) > 0.03
    model.save(tmp_path / "calibrated.safetensors")
    again, data = LDMFilter.load(tmp_path / "calibrated.safetensors"), simulate()
    table = model.forecast(data, 6, levels=(0.9,), conformal=True)
    np.testing.assert_array_equal(again.forecast(data, 6, levels=(0.9,), conformal=True).forecast_hi, table.forecast_hi)
    ratio = ((table.forecast_hi[..., 0] - table.forecast_mean) / table.forecast_std).to_numpy()
    np.testing.assert_allclose(ratio[5], ratio[3], rtol=1e-9)  # beyond what was calibrated: as the last step
    with pytest.raises(ValueError, match="expected at least 20"):
        model.calibrate(simulate(22), 4)


def test_a_backtest_uses_gaps_and_inputs_of_its_own_origins() -> None:
    model = known(channels=["a", "b"], step=3600.0)
    frame = framed(simulate(300))
    gappy = frame[np.random.default_rng(0).random(300) < 0.7]
    found = model.backtest(gappy, 3, first=20)
    assert np.isfinite(found.table.to_numpy()).all()
    driven = LDMFilter.from_matrices(A, Q, np.eye(2), R, np.zeros(2), np.eye(2), input_matrix=[[1.0], [0.0]])
    u = np.random.default_rng(1).normal(size=(300, 1))
    blind = driven.backtest(simulate(300), 3, inputs=u)
    assert blind.crps > 1.2 * model.backtest(frame, 3).crps  # inputs that had no part in the data only mislead
