"""Gates and anomaly scores through LDMFilter: batch and stream decide alike, and results say what was done."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chi2, norm

from ldm_filter import Gate, LDMFilter
from ldm_filter.core.gating import KINDS


def series(seed: int, steps: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    angle = 0.2 * np.arange(steps) + 0.05 * rng.normal(size=steps).cumsum()
    values = np.stack([np.sin(angle), np.cos(angle), np.sin(angle + 1)], 1) + 0.1 * rng.normal(size=(steps, 3))
    return pd.DataFrame(values, pd.date_range("2025-01-01", periods=steps, freq="s"), columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def model() -> LDMFilter:
    return LDMFilter(state_dim=2, dtype=torch.float64, readout="linear").fit(series(0), epochs=5, progress=False)


def spoiled(seed: int = 1) -> tuple[pd.DataFrame, np.ndarray]:
    data = series(seed).copy()
    hit = np.random.default_rng(9).random(len(data)) < 0.02
    data.loc[hit, "b"] += 30.0
    data.iloc[50:53] = np.nan
    hit[50:53] = False
    return data, hit


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_stream_decide_alike(model: LDMFilter, kind: str):
    data, _ = spoiled()
    result, online = model.filter(data, gate=kind), model.online(gate=kind)
    steps = [online.step(row.to_numpy(), time=when) for when, row in data.iterrows()]
    for name, field in (("filtered_mean", "mean"), ("filtered_cov", "cov"), ("log_likelihood", "log_likelihood"), ("gate_weight", "weight")):
        np.testing.assert_allclose(result[name], torch.stack([getattr(step, field) for step in steps]), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(result.nis, torch.stack([step.nis for step in steps]), rtol=1e-8)


def test_streams_are_gated_one_by_one(model: LDMFilter):
    data, _ = spoiled()
    both = np.stack([data.to_numpy(), series(2).to_numpy()])
    together, alone = model.filter(both, gate="hard"), [model.filter(one, gate="hard") for one in both]
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.filtered_mean[i], one.filtered_mean, rtol=1e-10, atol=1e-10)


def test_the_result_counts_what_the_gate_did(model: LDMFilter):
    data, hit = spoiled()
    result = model.filter(data, gate=Gate("hard", 0.9999))
    counts = json.loads(result.attrs["gate"])
    rejected = (result.gate_weight == 0).to_numpy()
    assert rejected[hit].all()
    assert counts["kind"] == "hard"
    assert counts["measurements"] == 397
    assert counts["rejected"] == rejected.sum() == counts["outside"]
    assert counts["openings"] == 0
    assert rejected.sum() <= hit.sum() + 4
    np.testing.assert_array_equal(result.filtered_mean[rejected], result.predicted_mean[rejected])
    assert np.isfinite(result.filtered_mean).all()


def test_a_gate_that_rejects_nothing_is_the_plain_filter(model: LDMFilter):
    data = series(3)
    plain, gated = model.filter(data), model.filter(data, gate=Gate("inflate", 1 - 1e-15))
    for name in plain.data_vars:
        np.testing.assert_allclose(gated[name], plain[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_anomalies_name_the_channel(model: LDMFilter):
    data, hit = spoiled()
    found = model.anomalies(data, gate="hard")
    assert found.channel_score.dims == ("time", "channel")
    assert (found.channel_score[hit].argmax("channel") == 1).all()
    assert float(found.score[hit].min()) > 4 > float(found.score[~hit].median())
    assert np.isnan(found.p_value[50:53]).all()
    result = model.filter(data, gate="hard")
    seen = ~np.isnan(found.p_value.to_numpy())
    np.testing.assert_allclose(found.p_value[seen], chi2.sf(2 * result.nis[seen], 2), rtol=1e-6, atol=1e-300)
    plain = model.anomalies(series(4))
    assert float((plain.channel_p_value < 0.05).mean()) == pytest.approx(0.05, abs=0.04)
    assert float(plain.channel_score.max()) == pytest.approx(-np.log10(2 * norm.sf(norm.isf(float(plain.channel_p_value.min()) / 2))), rel=1e-9)


@pytest.mark.parametrize(("gate", "failure"), [("soft", ValueError), (0.99, TypeError)])
def test_gates_that_are_none_are_refused(model: LDMFilter, gate: object, failure: type[Exception]):
    for call in (lambda: model.filter(series(0), gate=gate), lambda: model.online(gate=gate)):
        with pytest.raises(failure, match="gate"):
            call()
