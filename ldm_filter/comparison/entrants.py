"""Those who are compared: each answers the same questions about parsed series, in the units of the data."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_filter.baselines.labelled import as_arrays, filler, in_groups
from ldm_filter.baselines.registry import Method
from ldm_filter.baselines.series import Forecast
from ldm_filter.estimator import LDMFilter
from ldm_filter.estimator.forecasting import from_origins
from ldm_filter.estimator.inference import observation_moments, run_filter
from ldm_filter.types import Gaussian, Labels, Sequences

__all__ = ["Classical", "Entrant", "Learned", "Origins"]


class Origins(NamedTuple):
    """Forecasts start after step ``first``, and every ``every`` steps after it."""

    first: int
    every: int
    horizon: int

    def of(self, sequences: Sequences) -> list[tuple[int, int]]:
        """(series, last known step) of every forecast."""
        lengths = sequences.lengths.tolist()
        return [(row, t) for row, length in enumerate(lengths) for t in range(self.first, length - self.horizon, self.every)]


class Entrant(Protocol):
    """What is asked of everybody. Forecasts are ``(series, time, channel)``, pixels as channels; ``ahead`` ``(origins, horizon, channel)``."""

    fit_seconds: float

    def one_step(self, sequences: Sequences) -> Forecast: ...

    def fill(self, sequences: Sequences) -> Forecast | None: ...

    def ahead(self, sequences: Sequences, origins: Origins) -> Forecast: ...

    def state(self, sequences: Sequences) -> Gaussian | None: ...


class Learned:
    """A fitted LDMFilter."""

    def __init__(self, model: LDMFilter, labels: Labels) -> None:
        self.model, self.labels = model, labels
        self.fit_seconds = float(sum(epoch.get("seconds", 0.0) for epoch in model.history_.epochs))

    def one_step(self, sequences: Sequences) -> Forecast:
        run = run_filter(self.model.model_, sequences, self.labels)
        return self._observations(run.result.predicted, run.sequences)

    def fill(self, sequences: Sequences) -> Forecast | None:
        run = run_filter(self.model.model_, sequences, self.labels, smooth=True)
        return None if run.smoothed is None else self._observations(run.smoothed, run.sequences)

    def ahead(self, sequences: Sequences, origins: Origins) -> Forecast:
        run = run_filter(self.model.model_, sequences, self.labels)
        found = from_origins(self.model.model_, self.model.readout_, run, origins.horizon, origins.first, origins.every)
        return Forecast(_numpy(found.mean), _numpy(found.std))

    def state(self, sequences: Sequences) -> Gaussian | None:
        run = run_filter(self.model.model_, sequences, self.labels)
        return Gaussian(*(part.cpu().double() for part in self.model.model_.with_inputs(run.result.filtered, run.sequences.context)))

    def _observations(self, belief: Gaussian, sequences: Sequences) -> Forecast:
        return Forecast(*map(_numpy, observation_moments(self.model.model_, self.model.readout_, belief, sequences.context)))


class Classical:
    """A baseline, fitted here."""

    def __init__(self, method: Method, train: Sequences) -> None:
        started = time.perf_counter()
        self.method = method.fit(*as_arrays(train))
        self.fit_seconds = time.perf_counter() - started

    def one_step(self, sequences: Sequences) -> Forecast:
        return in_groups(self.method.one_step, sequences)

    def fill(self, sequences: Sequences) -> Forecast | None:
        try:
            return in_groups(filler(self.method), sequences)
        except ValueError as error:
            if "forecasts" in str(error) or "fills no gaps" in str(error):
                return None
            raise

    def ahead(self, sequences: Sequences, origins: Origins) -> Forecast:
        values, observed = as_arrays(sequences)
        places = origins.of(sequences)
        mean = np.zeros((len(places), origins.horizon, values.shape[-1]))
        std = np.ones_like(mean)
        for t in sorted({t for _, t in places}):
            which = [i for i, place in enumerate(places) if place[1] == t]
            rows = [places[i][0] for i in which]
            found = self.method.forecast(values[rows, : t + 1], origins.horizon, observed[rows, : t + 1])
            mean[which], std[which] = found.mean, found.std
        return Forecast(mean, std)

    def state(self, sequences: Sequences) -> Gaussian | None:
        found = getattr(self.method, "state", None)
        return None if found is None else found(*as_arrays(sequences))


def _numpy(part: Tensor) -> Any:
    return part.detach().to("cpu", torch.float64).flatten(2).numpy()
