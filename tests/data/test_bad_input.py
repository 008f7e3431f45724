"""Each kind of bad input gets its one error, which names the argument, what came, what was expected and the mend."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter.data import parse

DAYS = pd.date_range("2024-03-29", periods=5, freq="D", tz="Europe/Berlin", name="when")


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, 2.0, np.nan, 4.0, 5.0], "b": np.arange(5.0)}, index=DAYS)


def test_wrong_channels(frame):
    expected = parse(frame)[1]
    with pytest.raises(ValueError, match=r"`data` has 1 channel.*expected 2 as fitted.*missing \['b'\]"):
        parse(frame[["a"]], expected=expected)
    with pytest.raises(ValueError, match=r"unknown \['c'\].*select the others"):
        parse(frame.assign(c=1.0), expected=expected)
    with pytest.raises(ValueError, match=r"`data` has 3 channel\(s\), expected 2"):
        parse(np.ones((4, 3)), expected=expected)
    with pytest.raises(ValueError, match=r"`data\[1\]` has 2 channel\(s\) \['a', 'z'\].*as in data\[0\]"):
        parse([frame, frame.rename(columns={"b": "z"})])
    with pytest.raises(ValueError, match="same name"):
        parse(pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]))
    with pytest.raises(ValueError, match="same name"):
        parse(xr.DataArray(np.ones((2, 2)), dims=("time", "channel"), coords={"channel": ["a", "a"]}))


def test_missing_everywhere(frame):
    with pytest.raises(ValueError, match="only NaN"):
        parse(frame * np.nan)
    with pytest.raises(ValueError, match=r"Channel\(s\) \['a'\] of `data` are NaN"):
        parse(frame.assign(a=np.nan), min_steps=2)
    assert not bool(parse(frame.assign(a=np.nan))[0].observed[..., 0].any())


def test_infinite_values_are_located(frame):
    frame.iloc[3, 1] = -np.inf
    with pytest.raises(ValueError, match=r"infinite value \(-inf\) at series 0, row 3 \(time 2024-04-01.*channel 'b'"):
        parse(frame)
    with pytest.raises(ValueError, match=r"series 1, row 3"):
        parse([frame.iloc[:2], frame])
    video = np.ones((1, 2, 3, 3))
    video[0, 1, 2, 0] = np.inf
    with pytest.raises(ValueError, match=r"row 1 .*\{'y': 2, 'x': 0\}"):
        parse(video)
    with pytest.raises(ValueError, match=r"too large for torch\.float32"):
        parse(np.full((3, 1), 1e300))
    assert parse(np.full((3, 1), 1e300), dtype=torch.float64)[0].values.max() == 1e300


def test_changes_that_float32_cannot_tell_apart(frame):
    far = frame.assign(b=5e7 + frame["b"])
    with pytest.raises(ValueError, match=r"'b' of `data` changes between 50000000 and 50000004 only.* in steps of 6; .*dtype=torch.float64"):
        parse(far, min_steps=2)
    assert parse(far, min_steps=2, dtype=torch.float64)[0].values[0, 4, 1] == 5e7 + 4
    assert len(parse(far)[1].times[0]) == 5, "what a fitted model is asked is not refused"
    parse(frame.assign(b=0.1 * 3 + np.array([0, 1, 0, 1, 0]) * 1e-16), min_steps=2)  # a constant, but for rounding


def test_too_few_steps(frame):
    with pytest.raises(ValueError, match=r"`data` has 1 time step\(s\), expected at least 2"):
        parse(frame.iloc[:1], min_steps=2)
    with pytest.raises(ValueError, match=r"`data\[1\]` has 1 time step"):
        parse([frame, frame.iloc[:1]], min_steps=2)
    assert parse(frame.iloc[:1])[0].lengths.tolist() == [1]


@pytest.mark.parametrize("empty", [np.ones((0, 2)), np.ones((3, 0)), np.ones((0, 3, 2)), [], pd.DataFrame(), xr.Dataset(), torch.ones(0)])
def test_empty(empty):
    with pytest.raises(ValueError, match="`data` is empty"):
        parse(empty)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([["1", "2"]]), "dtype <U1.*astype"),
        (np.array([[1, 2.0]], dtype=object), "dtype object.*astype"),
        (np.ones((2, 2), dtype=complex), "complex128.*two channels"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex64"),
        (np.array([["2024-01-01"]], dtype="M8[s]"), "datetime64.*the index"),
        (pd.DataFrame({"a": [1.0], "b": ["x"], "c": [None]}), r"Column\(s\) \['b', 'c'\]"),
        (pd.DataFrame({"a": [1.0], "when": pd.to_datetime(["2024-01-01"])}), r"Column\(s\) \['when'\].*the index"),
        (xr.Dataset({"a": ("time", [1.0]), "b": ("time", ["x"])}), "Variable 'b'"),
        ({"a": [1.0]}, r"type dict.*list\(data.values\(\)\)"),
        (None, "type NoneType, expected a NumPy array"),
        ("data.csv", "type str"),
        (3.5, "type float"),
        ([1.0, 2.0], "np.asarray"),
        ([[1.0, 2.0]], "np.asarray"),
        ([np.ones(3), torch.ones(3)], "mixes containers: array in item 0, tensor in item 1"),
        ([np.ones(3), None], r"`data\[1\]` is of type NoneType"),
    ],
)
def test_wrong_kinds(data, message):
    with pytest.raises(TypeError, match=message):
        parse(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(3.0), r"shape \(\)"),
        (np.ones((1,) * 6), "expected a NumPy array"),
        (xr.DataArray(np.ones((3, 2)), dims=("t", "channel")), "called 'time'"),
        (xr.DataArray(np.ones((3, 2)), dims=("time", "state")), "rename"),
        (xr.Dataset({"a": ("time", [1.0]), "b": (("time", "q"), [[1.0]])}), "Variable 'b'"),
        ([xr.DataArray(np.ones((1, 3)), dims=("series", "time"))], "one series per item"),
        ([pd.Series([1.0, 2.0]), pd.Series([1.0], index=DAYS[:1])], "numbers in item 0, dates in item 1"),
    ],
)
def test_wrong_layouts(data, message):
    with pytest.raises(ValueError, match=message):
        parse(data)


def test_errors_use_the_name_of_the_argument():
    with pytest.raises(TypeError, match="`validation`"):
        parse(None, name="validation")
    with pytest.raises(ValueError, match="`dtype`"):
        parse(np.ones(3), dtype=torch.float16)


def test_a_dimension_of_series_by_another_name():
    cube = xr.DataArray(np.ones((2, 5)), dims=("subject", "time"))
    with pytest.raises(ValueError, match=r"'a' of `data` has dims .*if it numbers series, rename it with data.rename\({'subject': 'series'}\)"):
        parse(xr.Dataset({"a": cube, "b": cube}))
