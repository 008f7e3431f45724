"""Results as flat tables and as a few lines of text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from ldm_filter.data import parse
from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.results import to_dataset
from ldm_filter.data.tables import summary, table

TIMES = pd.date_range("2024-10-27 01:00", periods=4, freq="h", tz="Europe/Berlin", name="when")  # across the end of summer time


def result(data, steps: int = 4, batch: int = 1, seen: bool = True):
    sequences, labels = parse(data)
    event = tuple(sequences.values.shape[2:])
    state, step = ("series", "time", "state"), ("series", "time")
    fields = {
        "filtered_cov": ((*state, "state_aux"), torch.tensor([[[[4.0, 1.0], [1.0, 9.0]]]])),
        "filtered_mean": (state, torch.arange(2.0 * steps * batch).reshape(batch, steps, 2)),
        "target_mean": (("series", "time", "target"), torch.ones(batch, steps, 1)),
        "target_var": (("series", "time", "target"), torch.full((batch, steps, 1), 0.25)),
        "log_likelihood": (step, torch.tensor([[-1.0, 0.0, -3.0, -2.0]]).expand(batch, steps)),
        "nis": (step, torch.tensor([[0.5, torch.nan, 1.5, 4.0]] if seen else [[torch.nan] * 4]).expand(batch, steps)),
        "reconstruction_mean": (("series", "time", *labels.event_dims), torch.ones(batch, steps, *event)),
        "reconstruction_std": (("series", "time", *labels.event_dims), torch.full((batch, steps, *event), 0.1)),
    }
    return to_dataset(fields, sequences, labels)


def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(4.0)}, index=TIMES)


def test_means_with_standard_deviations_in_the_zone_of_the_data():
    flat = table(result(frame()))
    names = ["reconstruction_mean[a]", "reconstruction_std[a]", "target_mean[0]", "target_std[0]"]
    names += ["filtered_mean[0]", "filtered_mean[1]", "filtered_std[0]", "filtered_std[1]", "log_likelihood", "nis"]
    assert list(flat.columns) == names
    assert flat["filtered_std[1]"].tolist() == [3.0] * 4
    assert flat["target_std[0]"].tolist() == [0.5] * 4
    assert flat["filtered_mean[1]"].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert flat.index.equals(TIMES)
    assert str(flat.index.tz) == "Europe/Berlin"


def test_an_index_of_numbers_keeps_its_name():
    numbered = pd.DataFrame({"a": np.arange(4.0)}, index=pd.Index([10.0, 20.0, 25.0, 40.0], name="stamp"))
    pd.testing.assert_index_equal(table(result(numbered)).index, numbered.index)


def test_a_forecast_dataset_and_a_frame():
    _, labels = parse(np.ones((4, 2)))
    forecast = table(forecast_output(torch.zeros(1, 3, 2), torch.ones(1, 3, 2), (0.8,), labels))
    assert list(forecast.index) == [4, 5, 6]
    assert [name for name in forecast.columns if name.startswith("forecast_lo")] == ["forecast_lo[0,0.8]", "forecast_lo[1,0.8]"]
    pd.testing.assert_frame_equal(table(frame()), frame())


def test_what_a_table_cannot_hold():
    with pytest.raises(ValueError, match=r"flat table cannot hold; write it as \.nc"):
        table(result(np.ones((2, 4, 3)), batch=2))
    with pytest.raises(ValueError, match=r"flat table cannot hold; write it as \.nc"):
        table(result(np.ones((1, 4, 24, 24)).squeeze(0)[None]).isel(series=0))


def test_summary_counts_observed_steps_only():
    text = summary(result(frame()))
    assert "mean NIS 2.000" in text
    assert "mean log-likelihood -2.000" in text
    assert "4 when" in text
    assert "nothing is observed" in summary(result(frame(), seen=False))


def test_summary_of_many_series_and_of_frames():
    text = summary(result(np.ones((2, 4, 3)), batch=2), rows=2)
    assert "2 series, 4 time" in text
    assert len(text.splitlines()) == 6
    text = summary(result(np.ones((1, 4, 24, 24))))
    assert "24 y" in text
    assert "filtered_mean[0]" in text
    assert "reconstruction" not in text
    _, labels = parse(np.ones((1, 4, 24, 24)))
    nothing = summary(forecast_output(torch.zeros(1, 3, 24, 24), torch.ones(1, 3, 24, 24), (), labels))
    assert nothing == "1 series, 3 time, 24 y, 24 x"
