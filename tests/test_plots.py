"""Pictures: what is drawn, in which units, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from ldm_filter.plots import plot_filter, plot_training, plot_video
from ldm_filter.training import History

STEPS, AHEAD, CHANNELS = 40, 5, ["ax", "wz"]
VALUES = np.random.default_rng(0).normal(size=(STEPS + AHEAD, 2))
LOST = slice(10, 15)
STAMPS = pd.date_range("2024-01-01", periods=STEPS + AHEAD, freq="20ms")


def filtered(time: Any = STAMPS[:STEPS]) -> xr.Dataset:
    seen = np.ones((STEPS, 2), dtype=bool)
    seen[LOST] = False
    dims = ("time", "channel")
    fields = {"reconstruction_mean": (dims, VALUES[:STEPS]), "reconstruction_std": (dims, np.full((STEPS, 2), 0.5)), "observed": (dims, seen)}
    return xr.Dataset(fields, coords={"time": time, "channel": CHANNELS})


def ahead() -> pd.DataFrame:
    columns = pd.MultiIndex.from_product([CHANNELS, ["mean", "std"]])
    return pd.DataFrame(np.ones((AHEAD, 4)), index=STAMPS[STEPS:], columns=columns)


def video() -> tuple[np.ndarray, xr.Dataset, np.ndarray]:
    place = np.stack([np.linspace(2, 7, 8), np.linspace(3, 5, 8)], axis=-1)
    cov = np.broadcast_to(np.array([[0.4, 0.1], [0.1, 0.2]]), (8, 2, 2))
    fields = {"target_mean": (("time", "target"), place), "target_cov": (("time", "target", "target_aux"), cov)}
    return np.random.default_rng(1).normal(size=(8, 10, 12)), xr.Dataset(fields), place + 0.3


def line(axes: Any, label: str) -> Any:
    (found,) = [drawn for drawn in axes.lines if drawn.get_label() == label]
    return found


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestPlotFilter:
    def test_draws_what_it_was_given(self, tmp_path: Path) -> None:
        seen = pd.DataFrame(VALUES[:STEPS], index=STAMPS[:STEPS], columns=CHANNELS)
        seen.iloc[LOST] = np.nan
        figure = plot_filter(filtered(), seen, truth=VALUES, forecast=ahead(), units={"ax": "g"})
        top, bottom = figure.axes
        assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("ax (g)", "wz", "time (s)")
        np.testing.assert_array_equal(line(bottom, "estimate, 95 % band").get_ydata(), VALUES[:STEPS, 1])
        np.testing.assert_allclose(line(top, "estimate, 95 % band").get_xdata(), 0.02 * np.arange(STEPS))
        np.testing.assert_allclose(line(top, "forecast, 95 % band").get_xdata(), 0.02 * np.arange(STEPS, STEPS + AHEAD))
        assert np.isnan(line(top, "measured").get_ydata()).sum() == 5
        assert len(line(top, "hidden from the filter").get_ydata()) == STEPS + AHEAD
        assert legend(figure) == ["measured", "hidden from the filter", "gap", "estimate, 95 % band", "forecast, 95 % band"]
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000

    def test_band_is_95_percent(self) -> None:
        (axes,) = plot_filter(filtered(), channels=["wz"]).axes
        (band,) = [drawn for drawn in axes.collections if isinstance(drawn, PolyCollection)]
        corners = band.get_paths()[0].vertices
        for bound in (VALUES[:STEPS, 1] - 1.959964 * 0.5, VALUES[:STEPS, 1] + 1.959964 * 0.5):
            assert all(np.abs(corners[:, 1] - value).min() < 1e-5 for value in bound)

    def test_gap_spans_from_seen_to_seen(self) -> None:
        axes = plot_filter(filtered(time=np.arange(STEPS))).axes[0]
        (gap,) = axes.patches
        assert gap.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([9, 15])

    def test_gaps_given_replace_those_of_the_result(self) -> None:
        mask = np.zeros(STEPS, dtype=bool)
        mask[:2] = mask[20:22] = mask[-1] = True
        assert [len(axes.patches) for axes in plot_filter(filtered(), gaps=mask).axes] == [3, 3]

    def test_times_of_long_recordings_are_dates_and_steps_are_steps(self) -> None:
        days = plot_filter(filtered(time=pd.date_range("2024-01-01", periods=STEPS, freq="D")))
        assert days.axes[-1].get_xlabel() == "time (as recorded)"
        days.draw_without_rendering()
        assert plot_filter(filtered(time=np.arange(STEPS))).axes[-1].get_xlabel() == "time (steps)"

    def test_dataset_forecast(self) -> None:
        dims = ("time", "channel")
        forecast = xr.Dataset({"forecast_mean": (dims, np.ones((3, 2))), "forecast_std": (dims, np.ones((3, 2)))}, coords={"time": STAMPS[-3:]})
        assert len(line(plot_filter(filtered(), forecast=forecast).axes[0], "forecast, 95 % band").get_ydata()) == 3

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"result": [filtered()]}, TypeError, r"result\[0\]"),
            ({"result": filtered().expand_dims("series")}, ValueError, r"isel\(series=0\)"),
            ({"result": filtered().drop_vars("reconstruction_std")}, ValueError, r"no reconstruction_std; give the whole Dataset"),
            ({"channels": ["ay"]}, ValueError, r"\['ay'\], expected names out of \['ax', 'wz'\]"),
            ({"channels": []}, ValueError, "expected names out of"),
            ({"data": VALUES[:7]}, ValueError, r"data has shape \(7, 2\), expected \(40, 2\)"),
            ({"data": VALUES}, ValueError, r"data has shape \(45, 2\), expected \(40, 2\)"),
            ({"data": pd.DataFrame({"ax": VALUES[:STEPS, 0]})}, ValueError, r"no columns \['wz'\]"),
            ({"data": np.full((STEPS, 2), "a")}, TypeError, "must hold numbers"),
            ({"truth": VALUES[:, :1], "forecast": ahead()}, ValueError, r"truth has shape \(45, 1\), expected \(40 to 45, 2\)"),
            ({"forecast": pd.DataFrame({"ax": [1.0]})}, ValueError, r"model.forecast\(data, horizon\)"),
            ({"forecast": xr.Dataset()}, ValueError, r"no forecast_mean and forecast_std"),
            ({"gaps": np.zeros(STEPS)}, ValueError, r"expected bool \(40,\)"),
        ],
    )
    def test_refuses(self, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            plot_filter(**{"result": filtered(), **arguments})


class TestPlotVideo:
    def test_draws_frames_positions_and_ellipses(self) -> None:
        frames, result, truth = video()
        figure = plot_video(frames, result, truth, steps=[1, 6])
        assert [axes.get_title() for axes in figure.axes] == ["frame 1", "frame 6"]
        np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), frames[6])
        np.testing.assert_array_equal(np.ravel(line(figure.axes[1], "filtered position").get_data()), result.target_mean.values[6])
        np.testing.assert_array_equal(np.ravel(line(figure.axes[1], "true position").get_data()), truth[6])
        assert figure.axes[0].get_ylabel() == "y (pixels)" and figure.axes[0].get_xlabel() == "x (pixels)"
        figure.draw_without_rendering()

    def test_ellipse_is_the_95_percent_region(self) -> None:
        frames, result, _ = video()
        (ellipse,) = [patch for patch in plot_video(frames, result, steps=[3]).axes[0].patches if isinstance(patch, Ellipse)]
        rim = ellipse.get_patch_transform().transform(ellipse.get_path().vertices[:-1:3]) - result.target_mean.values[3]
        distance = np.einsum("ni,ij,nj->n", rim, np.linalg.inv(result.target_cov.values[3]), rim)
        np.testing.assert_allclose(distance, 5.9915, rtol=1e-3)

    def test_shows_six_in_the_middle_by_default(self) -> None:
        frames, result, _ = video()
        assert [axes.get_title() for axes in plot_video(frames, result).axes] == [f"frame {step}" for step in range(1, 7)]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"result": video()[1].drop_vars("target_cov")}, r"no target_cov; call model.fit_readout"),
            ({"result": video()[1].expand_dims("series")}, r"isel\(series=0\)"),
            ({"frames": video()[0][:4]}, r"frames have shape \(4, 10, 12\)"),
            ({"truth": np.zeros((8, 3))}, r"truth has shape \(8, 3\), expected \(8, 2\)"),
            ({"steps": [8]}, "expected frames from 0 to 7"),
        ],
    )
    def test_refuses(self, change: dict[str, Any], message: str) -> None:
        frames, result, truth = video()
        with pytest.raises(ValueError, match=message):
            plot_video(**{"frames": frames, "result": result, "truth": truth, **change})


class TestPlotTraining:
    ROWS = tuple({"epoch": e, "loss": 2.0 - e, "alignment": e + 0.0, "entropy": 1.0} for e in range(3))

    def test_draws_training_and_validation(self) -> None:
        rows = [row | {"validation_loss": 3.0, "validation_alignment": 0.0, "validation_entropy": 1.0} for row in self.ROWS]
        left, right = plot_training(History(rows, [], best_epoch=2)).axes
        assert [drawn.get_label() for drawn in left.lines] == ["training", "validation", "weights kept"]
        assert left.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.0] and left.lines[2].get_xdata()[0] == 2
        assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("epoch", "loss (nats per step)", "validation (nats per step)")

    def test_without_validation(self) -> None:
        left, right = plot_training(History(list(self.ROWS))).axes
        assert [drawn.get_label() for drawn in left.lines] == ["training", "weights kept"]
        assert right.get_ylabel() == "training (nats per step)"

    def test_health_and_cosines_have_panels_of_their_own(self) -> None:
        rows = [row | {"dimension": 2.5, "spread": 0.9, "nis": 1.0, "cosine_knn": 0.4 - row["epoch"], "cosine_kde": 0.8} for row in self.ROWS]
        events = ["epoch 1: collapse of the latents; back to the weights of epoch 0 at half the rate", "epoch 2: stopped early"]
        _, _, health, cosines = plot_training(History(rows, events)).axes
        assert [drawn.get_label() for drawn in health.lines] == ["effective dimension", "spread", "NIS / m", "collapse, set back"]
        assert health.lines[3].get_xdata()[0] == 1
        assert [drawn.get_label() for drawn in cosines.lines[:2]] == ["knn", "kde"]
        assert cosines.lines[0].get_ydata().tolist() == [0.4, -0.6, -1.6] and cosines.get_ylabel() == "cosine of the gradients"
        del rows[0]["dimension"], rows[0]["spread"], rows[0]["nis"]
        assert len(plot_training(History(rows[:1])).axes) == 3

    def test_refuses_an_empty_history(self) -> None:
        with pytest.raises(ValueError, match="fit the model first"):
            plot_training(History())
