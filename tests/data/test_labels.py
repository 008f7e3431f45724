"""Every container in, the same numbers and names out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ldm_filter.data import describe, from_description, parse

DAYS = pd.date_range("2024-03-29", periods=5, freq="D", tz="Europe/Berlin", name="when")


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, 2.0, np.nan, 4.0, 5.0], "b": np.arange(5.0)}, index=DAYS)


# ------------------------------------------------------------------------------------------------------------ containers


@pytest.mark.parametrize(
    ("shape", "batch", "event_dims", "series"),
    [
        ((7,), (1, 7, 1), ("channel",), None),
        ((7, 3), (1, 7, 3), ("channel",), None),
        ((4, 7, 3), (4, 7, 3), ("channel",), (0, 1, 2, 3)),
        ((4, 7, 5, 6), (4, 7, 5, 6), ("y", "x"), (0, 1, 2, 3)),
        ((4, 7, 5, 6, 3), (4, 7, 5, 6, 3), ("y", "x", "colour"), (0, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_arrays_and_tensors(shape, batch, event_dims, series, kind):
    array = np.random.default_rng(0).normal(size=shape)
    sequences, labels = parse(torch.from_numpy(array) if kind == "tensor" else array, dtype=torch.float64)
    assert sequences.values.shape == sequences.observed.shape == batch
    np.testing.assert_array_equal(sequences.values.numpy().reshape(shape), array)
    assert bool(sequences.observed.all())
    assert sequences.lengths.tolist() == [7] * batch[0]
    assert (labels.kind, labels.event_dims, labels.series, labels.ragged) == (kind, event_dims, series, False)
    assert labels.channels == (tuple(str(i) for i in range(batch[2])) if len(event_dims) == 1 else ())
    assert all(index.equals(pd.RangeIndex(7)) for index in labels.times)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float16, ">f8"])
def test_every_real_dtype_becomes_float(dtype):
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    values = parse(array)[0].values
    assert values.dtype == torch.float32
    assert values.tolist() == [[[0.0, 1.0], [1.0, 0.0]]]


def test_masked_array_and_half_precision_tensor():
    masked = np.ma.masked_greater(np.array([[1, 2], [3, 4]]), 3)
    assert parse(masked)[0].observed.tolist() == [[[True, True], [True, False]]]
    assert parse(torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True))[0].values.dtype == torch.float32


def test_caller_keeps_his_data(frame):
    array = np.array([[1.0, np.nan], [2.0, 3.0]])
    tensor, copy = torch.from_numpy(array.copy()), frame.copy()
    sequences, _ = parse(tensor, dtype=torch.float64)
    sequences.values.fill_(9.0)
    parse(frame)
    np.testing.assert_array_equal(tensor.numpy(), array)
    pd.testing.assert_frame_equal(frame, copy)


def test_dataframe(frame):
    sequences, labels = parse(frame)
    assert sequences.observed[0, :, 0].tolist() == [True, True, False, True, True]
    assert sequences.values[0, :, 0].tolist() == [1.0, 2.0, 0.0, 4.0, 5.0]
    assert (labels.kind, labels.channels, labels.series, labels.time_name) == ("frame", ("a", "b"), None, "when")
    assert str(labels.times[0].tz) == "Europe/Berlin"
    assert labels.attrs["step"] == 86400.0


def test_series_and_nullable_columns():
    sequences, labels = parse(pd.Series([1.0, 2.0], name="heat"))
    assert labels.channels == ("heat",)
    assert sequences.values.shape == (1, 2, 1)
    nullable = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([True, None], dtype="boolean"), "c": [1, 2]})
    assert parse(nullable)[0].observed.tolist() == [[[True, True, True], [False, False, True]]]


def test_columns_that_are_no_strings():
    columns = pd.MultiIndex.from_tuples([("room", 1), ("room", 2)])
    labels = parse(pd.DataFrame(np.ones((3, 2)), columns=columns))[1]
    assert labels.channels == ("room/1", "room/2")
    assert labels.attrs["columns"] == (("room", 1), ("room", 2))


def test_dataarray_in_any_order_of_dims():
    values = np.random.default_rng(0).normal(size=(3, 2, 4))
    coords = {"channel": ["a", "b", "c"], "series": ["s", "t"], "time": pd.date_range("2024", periods=4, freq="h")}
    array = xr.DataArray(values, dims=("channel", "series", "time"), coords=coords, attrs={"units": "K"})
    sequences, labels = parse(array, dtype=torch.float64)
    np.testing.assert_array_equal(sequences.values.numpy(), values.transpose(1, 2, 0))
    assert (labels.kind, labels.channels, labels.series) == ("dataarray", ("a", "b", "c"), ("s", "t"))
    assert labels.attrs["user"] == {"units": "K"}
    assert labels.attrs["step"] == 3600.0


def test_dataarray_of_frames_one_series_and_named_dims():
    video = xr.DataArray(np.zeros((4, 2, 3), np.uint8), dims=("time", "row", "col"), coords={"col": [1.0, 2.0, 4.0]})
    sequences, labels = parse(video)
    assert sequences.values.shape == (1, 4, 2, 3)
    assert (labels.event_dims, labels.channels, labels.series) == (("row", "col"), (), None)
    assert labels.attrs["coords"]["col"].tolist() == [1.0, 2.0, 4.0]
    dated = xr.DataArray(np.zeros(3), dims="when", coords={"when": pd.date_range("2024", periods=3)}, name="heat")
    assert parse(dated)[1].channels == ("heat",)
    assert parse(dated)[1].time_name == "when"


def test_dataset_variables_are_channels():
    dataset = xr.Dataset(
        {"a": (("series", "time"), np.ones((2, 3))), "b": (("time", "series"), np.arange(6).reshape(3, 2))}, attrs={"time_zone": "UTC"}
    )
    sequences, labels = parse(dataset)
    assert sequences.values[..., 1].tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert (labels.kind, labels.channels, labels.attrs["user"]) == ("dataset", ("a", "b"), {"time_zone": "UTC"})


def test_dataset_of_one_variable_may_be_a_video():
    _, labels = parse(xr.Dataset({"video": (("time", "y", "x"), np.ones((3, 2, 2)))}))
    assert (labels.kind, labels.event_dims) == ("dataset", ("y", "x"))


def test_ragged_list_is_padded(frame):
    sequences, labels = parse([frame, frame[["b", "a"]].iloc[:2], frame.iloc[1:4]])
    assert sequences.lengths.tolist() == [5, 2, 3]
    assert labels.ragged
    assert labels.series == (0, 1, 2)
    assert [len(times) for times in labels.times] == [5, 2, 3]
    assert not bool(sequences.observed[1, 2:].any())
    assert sequences.values[1].tolist() == [[1.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_list_of_arrays_is_one_series_per_item():
    assert parse([np.ones((3, 2, 2)), np.ones((5, 2, 2))])[1].event_dims == ("y", "x")
    assert parse([np.ones(3), np.ones(5)])[0].values.shape == (2, 5, 1)
    assert parse((torch.ones(3, 2),))[1].ragged
    assert parse([xr.DataArray(np.ones((3, 2)), dims=("time", "channel"))])[1].kind == "dataarray"


# ------------------------------------------------------------------------------------------------------ expected channels


def test_columns_are_reordered_by_name(frame):
    expected = parse(frame)[1]
    sequences, labels = parse(frame[["b", "a"]], expected=expected)
    torch.testing.assert_close(sequences.values, parse(frame)[0].values)
    assert labels.channels == ("a", "b")


def test_nameless_channels_match_by_position(frame):
    expected = parse(frame)[1]
    assert parse(np.ones((3, 2)), expected=expected)[1].channels == ("a", "b")
    assert parse(frame, expected=parse(np.ones((3, 2)))[1])[1].channels == ("a", "b")
    numbered = pd.DataFrame(np.arange(6.0).reshape(3, 2))
    swapped, labels = parse(numbered[[1, 0]], expected=parse(numbered)[1])
    torch.testing.assert_close(swapped.values, parse(numbered)[0].values)
    assert labels.attrs["columns"] == (0, 1)


def test_expected_frames_settle_what_three_axes_mean():
    expected = parse(np.ones((2, 4, 5, 6)))[1]
    single, labels = parse(np.ones((4, 5, 6)), expected=expected)
    assert single.values.shape == (1, 4, 5, 6)
    assert labels.series is None
    transposed = xr.DataArray(np.ones((6, 4, 5)), dims=("x", "time", "y"))
    assert parse(transposed, expected=expected)[0].values.shape == (1, 4, 5, 6)
    with pytest.raises(ValueError, match=r"shape \(6, 5\), expected \(5, 6\) as fitted"):
        parse(np.ones((4, 6, 5)), expected=expected)
    with pytest.raises(ValueError, match=r"shape \(4, 5\), expected axes \(time, y, x\)"):
        parse(np.ones((4, 5)), expected=expected)
    with pytest.raises(ValueError, match="has dims"):
        parse(pd.DataFrame({"a": [1.0, 2.0]}), expected=expected)


def test_description_is_json_and_checks_the_same(frame):
    expected = from_description(json.loads(json.dumps(describe(parse(frame)[1]))))
    assert parse(frame[["b", "a"]], expected=expected)[1].channels == ("a", "b")
    assert parse(frame.iloc[:1], expected=expected)[1].attrs["step"] == 86400.0
    with pytest.raises(ValueError, match="missing"):
        parse(frame[["a"]], expected=expected)
    video = from_description(json.loads(json.dumps(describe(parse(np.ones((2, 4, 5, 6)))[1]))))
    assert parse(np.ones((4, 5, 6)), expected=video)[0].values.shape == (1, 4, 5, 6)


# --------------------------------------------------------------------------------------------------- random missing data

ENTRIES = st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60, deadline=None)
@given(st.lists(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=ENTRIES), min_size=1, max_size=4))
def test_observed_marks_exactly_the_nans(arrays):
    if all(np.isnan(array).all() for array in arrays):
        with pytest.raises(ValueError, match="only NaN"):
            parse(arrays)
        return
    sequences, _ = parse(arrays)
    assert bool(torch.isfinite(sequences.values).all())
    assert bool((sequences.values[~sequences.observed] == 0).all())
    for array, values, observed, length in zip(arrays, *sequences[:3], strict=True):
        assert length == len(array)
        np.testing.assert_array_equal(observed[:length].numpy(), ~np.isnan(array))
        assert not bool(observed[length:].any())
        np.testing.assert_array_equal(values[:length].numpy()[~np.isnan(array)], array[~np.isnan(array)])
