"""What follows the data: from its end, from every origin within it, and given that some of it is known ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.inference import Run, last_belief, last_memory, memories, observation_moments, run_filter
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.types import Context, Gaussian, Labels, Sequences

__all__ = ["Calibration", "Origins", "calibrate", "conditional", "forecast_paths", "from_end", "from_origins"]

GRID = 200  # central levels at which a calibration is kept


@torch.no_grad()
def from_end(model: LatentFilter, readout: Readout, run: Run, horizon: int, ahead: Context) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observations after each series, ``(B, H, *event)``."""
    states = model.dynamics.forecast(last_belief(run), horizon, ahead, *last_memory(run, model))
    return observation_moments(model, readout, states, ahead)


@torch.no_grad()
def forecast_paths(model: LatentFilter, run: Run, horizon: int, ahead: Context, num_paths: int, generator: torch.Generator) -> Tensor:
    """Draws of the states after each series, ``(num_paths, B, H, n)``."""
    first = model.dynamics.predict(last_belief(run), ahead.steps(0, 1), *last_memory(run, model))
    return model.dynamics.prior_paths(horizon, generator, num_paths, ahead, first)


@torch.no_grad()
def conditional(
    model: LatentFilter, readout: Readout, sequences: Sequences, labels: Labels, known: Sequences, ahead: Context
) -> tuple[Tensor, Tensor]:
    """As :func:`from_end` given some channels of the steps to come: the series is continued with them and smoothed.

    A channel that is known comes back as it is, with standard deviation 0.

    Args:
        sequences, labels: the data.
        known: values and mask of the steps ahead ``(B, H, *event)``.
        ahead: their context.
    """
    horizon = known.values.shape[1]
    index = torch.arange(horizon) + sequences.lengths[:, None]
    series = torch.arange(len(index))[:, None]

    def joined(past: Tensor | None, future: Tensor | None, fill: float) -> Tensor | None:
        if past is None and future is None:
            return None
        like = past if past is not None else future
        assert like is not None
        batch, longest = len(index), int(sequences.lengths.max())
        whole = like.new_full((batch, longest + horizon, *like.shape[2:]), fill)
        if past is not None:
            whole[:, :longest] = past.cpu()[:, :longest].expand(batch, *past[:, :longest].shape[1:])
        if future is not None:
            whole[series, index] = future.to(whole).expand(batch, *future.shape[1:])
        return whole

    values, observed = joined(sequences.values, known.values, 0.0), joined(sequences.observed, known.observed, 0)
    step = 1.0 if labels.attrs["step"] is None else labels.attrs["step"]
    dt = None if sequences.context.dt is None and ahead.dt is None else joined(sequences.context.dt, ahead.dt, step)
    context = Context(dt, joined(sequences.context.inputs, ahead.inputs, 0.0))
    assert values is not None
    assert observed is not None
    run = run_filter(model, Sequences(values, observed, sequences.lengths + horizon, context), labels, smooth=True)
    assert run.smoothed is not None
    full = run.smoothed.cov.expand(*run.smoothed.mean.shape, run.smoothed.mean.shape[-1])
    rows, places = series.to(full.device), index.to(full.device)
    states = Gaussian(run.smoothed.mean[rows, places], full[rows, places])
    mean, std = observation_moments(model, readout, states, to_device(ahead, full.device))
    seen = known.observed.to(mean.device)
    return torch.where(seen, known.values.to(mean), mean), std.masked_fill(seen, 0.0)


class Origins(NamedTuple):
    """Forecasts from N origins, all ``(N, H, *event)``: mean and standard deviation, what then came, and whether it was observed."""

    mean: Tensor
    std: Tensor
    truth: Tensor
    observed: Tensor
    series: Tensor
    origin: Tensor


@torch.no_grad()
def from_origins(model: LatentFilter, readout: Readout, run: Run, horizon: int, first: int, every: int, most: int = 4096) -> Origins:
    """Forecast from every ``every``-th step on from ``first`` of each series as far as its data reach, each from the past alone.

    Raises:
        ValueError: no series is long enough for a single forecast.
    """
    lengths = run.sequences.lengths.tolist()
    places = [(series, t) for series, length in enumerate(lengths) for t in range(first, length - horizon, every)]
    if not places:
        raise ValueError(f"`data` has series of at most {max(lengths)} steps, expected more than first + horizon = {first + horizon}")
    if len(places) > most:
        places = [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]
    device = run.result.filtered.mean.device
    series, origin = torch.tensor(places, device=device).unbind(1)
    filtered = run.result.filtered
    covs = filtered.cov.expand(*filtered.mean.shape, filtered.mean.shape[-1])
    steps = origin[:, None] + 1 + torch.arange(horizon, device=device)
    parts = (None if part is None else part.expand(len(lengths), *part.shape[1:])[series[:, None], steps] for part in run.sequences.context)
    context = Context(*parts)
    memory = tuple(part[series, origin] for part in memories(run, model))
    states = model.dynamics.forecast(Gaussian(filtered.mean[series, origin], covs[series, origin]), horizon, context, *memory)
    mean, std = observation_moments(model, readout, states, context)
    rows, places_ = series[:, None].cpu(), steps.cpu()
    return Origins(mean.cpu(), std.cpu(), run.sequences.values[rows, places_], run.sequences.observed[rows, places_], series.cpu(), origin.cpu())


class Calibration(NamedTuple):
    """Half widths of central intervals in standard deviations, found on held-out data: ``(200, H, *event)`` for the levels of :meth:`levels`."""

    widths: Tensor

    @staticmethod
    def levels() -> np.ndarray:
        return np.arange(1, GRID + 1) / (GRID + 1.0)

    def width(self, horizon: int) -> Callable[[float], Any]:
        """level -> half widths ``(H, *event)``; steps beyond those calibrated take the last one's."""
        table = self.widths.numpy()
        if horizon > table.shape[1]:
            table = np.concatenate([table, np.repeat(table[:, -1:], horizon - table.shape[1], axis=1)], axis=1)
        table, levels = table[:, :horizon], self.levels()

        def at(level: float) -> Any:
            place = np.clip(np.searchsorted(levels, level), 1, GRID - 1)
            share = min(1.0, (level - levels[place - 1]) / (levels[place] - levels[place - 1]))
            return (1.0 - share) * table[place - 1] + share * table[place]

        return at


def calibrate(origins: Origins) -> Calibration:
    """Split conformal prediction with normalised residuals |x - mean| / std, for every step ahead and channel.

    The width for level p is the ceil((N + 1) p)-th smallest of the N residuals, so that intervals hold at least p on exchangeable data.

    Raises:
        ValueError: fewer than 20 observed forecasts of some step and channel.

    Source: Papadopoulos et al. 2002; Lei et al., J. Am. Stat. Assoc. 113 (2018).
    """
    residual = ((origins.truth - origins.mean).abs() / origins.std.clamp_min(1e-30)).double()
    counts = origins.observed.sum(0)
    if int(counts.min()) < 20:
        raise ValueError(f"`data` gives {int(counts.min())} observed forecasts of some step and channel, expected at least 20; give more of it")
    ordered = residual.masked_fill(~origins.observed, torch.inf).sort(0).values
    levels = torch.as_tensor(Calibration.levels()).reshape(-1, *[1] * counts.ndim)
    rank = torch.minimum(((counts + 1) * levels).ceil().long() - 1, counts - 1).clamp_min(0)
    return Calibration(ordered.gather(0, rank))
