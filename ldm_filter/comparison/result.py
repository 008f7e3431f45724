"""What a comparison found: a table, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ldm_filter.plots.comparison import plot_comparison

__all__ = ["Comparison", "Example"]

SHOWN = (
    "rmse",
    "crps",
    "log_likelihood",
    "coverage95",
    "imputation_rmse",
    "forecast_rmse",
    "forecast_crps",
    "target_r2",
    "target_nll",
    "target_coverage95",
)


class Example(NamedTuple):
    """One forecast of the first channel: what was known before it, what came, mean and std; in the units of the data."""

    past: NDArray
    truth: NDArray
    mean: NDArray
    std: NDArray


@dataclass(frozen=True)
class Comparison:
    """What `ldm_filter.LDMFilter.compare` found; ``print`` it, or ``plot()`` it.

    Attributes:
        table: a row per method, the learned filter first. Of each step given those before it: ``rmse`` and ``crps`` (in standard deviations of the
            training data), ``log_likelihood`` (mean log-density per step and channel, in nats of the data's units, as ``LDMFilter.score``),
            ``coverage50``, ``coverage80``, ``coverage95``. Of gaps: ``imputation_rmse``. Of forecasts over the horizon: ``forecast_rmse``,
            ``forecast_crps``, ``forecast_coverage95``. With targets: ``target_r2``, ``target_mse``, ``target_nll``, ``target_crps``, ``target_nees``
            (per dimension), ``target_coverage50`` and so on. ``fit_seconds``, and ``seconds`` of wall time for the one-step predictions.
            NaN where a method does not answer.
        pits: by method, Phi((x - mean) / std) of the one-step predictions, uniform where they are calibrated.
        examples: by method, a forecast.
        horizon, gap: steps.
    """

    table: pd.DataFrame
    pits: Mapping[str, NDArray]
    examples: Mapping[str, Example]
    horizon: int
    gap: int

    def plot(self) -> Figure:
        """Errors of the three questions, reliability of the one-step predictions, and a forecast of everybody."""
        return plot_comparison(self.table, self.pits, self.examples)

    def __str__(self) -> str:
        head = f"one step, gaps of {self.gap} and {self.horizon} steps ahead; RMSE and CRPS in standard deviations of the training data"
        shown = self.table[[name for name in (*SHOWN, "fit_seconds", "seconds") if name in self.table]]
        return f"{head}\n{shown.to_string(float_format='{:.4g}'.format)}"
