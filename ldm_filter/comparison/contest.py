"""The questions that all methods are asked, and how the answers are judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ldm_filter import metrics
from ldm_filter.baselines.labelled import as_arrays
from ldm_filter.baselines.registry import Method, Sizes, by_name, default_names
from ldm_filter.baselines.series import Forecast
from ldm_filter.comparison.entrants import Classical, Entrant, Learned, Origins
from ldm_filter.comparison.result import Comparison, Example
from ldm_filter.data.labels import parse
from ldm_filter.estimator import LDMFilter
from ldm_filter.models.readout import fit_readout
from ldm_filter.types import Gaussian, Sequences

__all__ = ["compare"]

FORECASTS = 20  # from each series, about
LEARNED = "ldm-filter"
Targets = tuple[tuple[Sequences, Sequences], tuple[Sequences, Sequences]]  # (series, targets) to fit on and to judge on


def compare(
    model: LDMFilter,
    data: Any,
    train: Any,
    baselines: Several[Any] | Mapping[str, Any] | str = "auto",
    *,
    targets: Any = None,
    train_targets: Any = None,
    horizon: int = 12,
    gap: int = 8,
    season: int | None = None,
    readout: str = "linear",
    inputs: Any = None,
    train_inputs: Any = None,
    times: Any = None,
    train_times: Any = None,
) -> Comparison:
    """See `ldm_filter.LDMFilter.compare`."""
    model._model()  # refuses what is not fitted
    sequences, labels, _ = model._read(data, inputs, times)
    known = model._read(train, train_inputs, train_times)[0]
    origins = _origins(sequences, horizon)
    hidden = _gaps(sequences, gap)
    both = _targets(targets, train_targets, sequences, known)
    if readout not in ("linear", "mlp"):
        raise ValueError(f"readout is {readout!r}, expected 'linear' or 'mlp'")
    sizes = Sizes(_channels(sequences), model.state_dim, model.model_.dynamics.latent_dim, season, float(labels.attrs["step"] or 1.0))
    entrants: dict[str, Entrant] = {LEARNED: Learned(model, labels)}
    for name, method in _methods(baselines, sizes).items():
        entrants[name] = Classical(method, known)
    scale = _scale(known)
    rows, examples, pits = {}, {}, {}
    for name, entrant in entrants.items():
        rows[name], examples[name], pits[name] = _judge(entrant, sequences, hidden, origins, scale)
        if both is not None:
            rows[name] |= _read_out(entrant, both, readout)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "method"
    return Comparison(table, pits, examples, horizon, gap)


def _judge(
    entrant: Entrant, sequences: Sequences, hidden: NDArray[np.bool_], origins: Origins, scale: NDArray
) -> tuple[dict[str, float], Example, NDArray]:
    """All figures of a method; its first forecast, to be drawn; the PIT values of its one-step predictions."""
    values, observed = as_arrays(sequences)
    started = time.perf_counter()
    ahead = entrant.one_step(sequences)
    seconds = time.perf_counter() - started
    wide = np.broadcast_to(scale, values.shape)
    figures = _figures(ahead, values, observed, wide)
    figures["log_likelihood"] = -metrics.nll(ahead.mean[observed][:, None], _variance(ahead, observed), values[observed][:, None])
    figures |= {f"coverage{100 * level:.0f}": _coverage(ahead, values, observed, level) for level in (0.5, 0.8, 0.95)}
    cut = torch.from_numpy(hidden).reshape(sequences.observed.shape)
    filled = entrant.fill(sequences._replace(observed=sequences.observed & ~cut, values=sequences.values * ~cut))
    asked = hidden & observed
    figures["imputation_rmse"] = np.nan if filled is None else _figures(filled, values, asked, wide)["rmse"]
    forecasts, places = entrant.ahead(sequences, origins), origins.of(sequences)
    truth, seen = (np.stack([part[row, t + 1 : t + 1 + origins.horizon] for row, t in places]) for part in (values, observed))
    figures |= {f"forecast_{name}": value for name, value in _figures(forecasts, truth, seen, np.broadcast_to(scale, truth.shape)).items()}
    figures["forecast_coverage95"] = _coverage(forecasts, truth, seen, 0.95)
    figures |= {"fit_seconds": entrant.fit_seconds, "seconds": seconds}
    row, t = places[len(places) // 2]
    past = np.where(observed[row, : t + 1, 0], values[row, : t + 1, 0], np.nan)[-3 * origins.horizon :]
    middle = len(places) // 2
    example = Example(past, np.where(seen[middle, :, 0], truth[middle, :, 0], np.nan), forecasts.mean[middle, :, 0], forecasts.std[middle, :, 0])
    return figures, example, metrics.pit(ahead.mean[observed], ahead.std[observed], values[observed])


def _figures(answer: Forecast, truth: NDArray, asked: NDArray, scale: NDArray) -> dict[str, float]:
    """RMSE and CRPS in standard deviations of the training data, so that channels of all units count alike."""
    if not asked.any():
        return {"rmse": np.nan, "crps": np.nan}
    mean, std, value, unit = (np.asarray(part)[asked] for part in (answer.mean, answer.std, truth, scale))
    std = np.maximum(std, 1e-12 * unit)  # a rule that claims to know an entry exactly
    return {"rmse": float(np.sqrt(np.square((mean - value) / unit).mean())), "crps": float((metrics.crps_normal(mean, std, value) / unit).mean())}


def _variance(answer: Forecast, asked: NDArray) -> NDArray:
    return np.square(answer.std[asked])[:, None, None]


def _coverage(answer: Forecast, truth: NDArray, asked: NDArray, level: float) -> float:
    if not asked.any():
        return float("nan")
    return float(metrics.coverage(answer.mean[asked][:, None], _variance(answer, asked), truth[asked][:, None], level))


def _read_out(entrant: Entrant, both: Targets, kind: str) -> dict[str, float]:
    """Accuracy and calibration of targets read out of the filtered state."""
    (train, wanted), (test, truth) = both
    belief, judged = entrant.state(train), entrant.state(test)
    if belief is None or judged is None:
        return {}
    found = fit_readout(belief, wanted.values.flatten(2).double(), wanted.observed.flatten(2), kind)
    with torch.no_grad():
        told = found(Gaussian(judged.mean, judged.cov))
    scores = metrics.scores(told.mean.numpy(), told.cov.expand(*told.mean.shape, told.mean.shape[-1]).numpy(), *_truth(truth))
    return {f"target_{name}": value for name, value in scores.items()}


def _truth(truth: Sequences) -> tuple[NDArray, NDArray]:
    return truth.values.flatten(2).double().numpy(), truth.observed.flatten(2).numpy()


def _methods(baselines: Several[Any] | Mapping[str, Any] | str, sizes: Sizes) -> dict[str, Method]:
    """Names and objects as methods with names."""
    if isinstance(baselines, Mapping):
        return {str(name): by_name(method, sizes) if isinstance(method, str) else method for name, method in baselines.items()}
    if baselines == "auto":
        baselines = default_names(sizes)
    chosen = [baselines] if isinstance(baselines, str) else list(baselines)
    return {item if isinstance(item, str) else type(item).__name__: by_name(item, sizes) if isinstance(item, str) else item for item in chosen}


def _channels(sequences: Sequences) -> int:
    return int(np.prod(sequences.values.shape[2:]))


def _scale(train: Sequences) -> NDArray:
    """Standard deviation of each channel, one for all pixels of frames."""
    values, observed = as_arrays(train)
    count = np.maximum(observed.sum((0, 1)), 1)
    mean = (values * observed).sum((0, 1)) / count
    variance = (np.square(values - mean) * observed).sum((0, 1)) / count
    variance = variance if train.values.ndim == 3 else np.full_like(variance, variance.mean())
    return np.sqrt(np.where(variance > 0, variance, 1.0))


def _origins(sequences: Sequences, horizon: int) -> Origins:
    longest = int(sequences.lengths.max())
    first = longest // 4
    if not 1 <= horizon < longest - first:
        raise ValueError(f"horizon is {horizon}, expected 1 to {longest - first - 1}: forecasts start a quarter into the {longest} steps of the data")
    return Origins(first, max(1, (longest - horizon - first) // FORECASTS), horizon)


def _gaps(sequences: Sequences, gap: int) -> NDArray[np.bool_]:
    """True where a gap is cut, ``(series, time, channel)``: the last of every six times its length, in all channels."""
    steps = sequences.values.shape[1]
    if not gap >= 1 or 7 * gap > int(sequences.lengths.max()):
        raise ValueError(f"gap is {gap}, expected 1 to {int(sequences.lengths.max()) // 7}, a seventh of the longest series")
    lost = np.arange(steps) % (6 * gap) >= 5 * gap
    inside = np.arange(steps) < sequences.lengths.numpy()[:, None] - gap  # what lies at the end has one side only
    return np.broadcast_to((lost & inside)[..., None], (*inside.shape, _channels(sequences))).copy()


def _targets(targets: Any, train_targets: Any, sequences: Sequences, known: Sequences) -> Targets | None:
    if targets is None and train_targets is None:
        return None
    if targets is None or train_targets is None:
        raise ValueError("targets and train_targets belong together: a read-out is fitted on train and judged on data")
    found = []
    for name, given, beside in (("train_targets", train_targets, known), ("targets", targets, sequences)):
        wanted = parse(given, dtype=torch.float64, name=name)[0]
        if wanted.values.shape[:2] != beside.values.shape[:2]:
            raise ValueError(
                f"{name} have (series, time) {tuple(wanted.values.shape[:2])}, expected {tuple(beside.values.shape[:2])}: a row per step"
            )
        found.append((beside, wanted))
    return found[0], found[1]
