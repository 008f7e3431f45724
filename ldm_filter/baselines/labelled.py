"""Baselines on labelled data: what goes in and comes out is what `ldm_filter.LDMFilter` takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from typing import Any, Self

import numpy as np
import torch

from ldm_filter.baselines.registry import Method, Sizes, by_name
from ldm_filter.baselines.series import Array, Forecast, Mask
from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.labels import parse
from ldm_filter.data.results import to_dataset
from ldm_filter.types import Gaussian, Labels, Sequences

__all__ = ["Baseline", "as_arrays", "in_groups"]


class Baseline:
    """A classical method with the containers, labels and results of `LDMFilter`.

    Args:
        method: a name (``"hold-last"``, ``"linear-interpolation"``, ``"seasonal-naive"``, ``"cv-kf"``, ``"ca-kf"``, ``"var6"``, ``"pca-em-kf"``,
            ``"pca-em-kf-adaptive"``, ``"uc"``, ``"dynamic-factor"``) or an object of `ldm_filter.baselines`.
        state_dim, latent_dim: of ``"pca-em-kf"``. season: steps of a season.

    After `fit`:
        method_: what was fitted. labels_: channels and layout of the training data.

    >>> import pandas as pd
    >>> index = pd.date_range("2025-01-01", periods=200, freq="h")
    >>> walk = pd.DataFrame(np.cumsum(np.random.default_rng(0).normal(size=(200, 1)), axis=0), index=index, columns=["level"])
    >>> Baseline("hold-last").fit(walk).forecast(walk, 2, levels=(0.8,)).columns.tolist()
    [('level', 'mean'), ('level', 'std'), ('level', 'lo-80'), ('level', 'hi-80')]
    """

    method_: Method
    labels_: Labels

    def __init__(self, method: str | Method, *, state_dim: int = 4, latent_dim: int | None = None, season: int | None = None) -> None:
        self.method, self.state_dim, self.latent_dim, self.season = method, state_dim, latent_dim, season

    def fit(self, data: Any, times: Any = None) -> Self:
        """Fit on any container that ``LDMFilter.fit`` takes; NaN = missing.

        Raises:
            ValueError, TypeError: an unknown name, or data that the method cannot be fitted on.
        """
        sequences, self.labels_ = parse(data, min_steps=2, dtype=torch.float64, times=times)
        values, observed = as_arrays(sequences)
        sizes = Sizes(values.shape[-1], self.state_dim, self.latent_dim, self.season, float(self.labels_.attrs["step"] or 1.0))
        self.method_ = by_name(self.method, sizes) if isinstance(self.method, str) else self.method
        self.method_.fit(values, observed)
        return self

    def filter(self, data: Any, times: Any = None) -> Any:
        """One-step predictions, and the filtered state of methods that have one.

        Returns:
            xarray.Dataset (a list of them for a list): ``predicted_observation_mean`` and ``_std`` of every entry given those before its step,
            ``log_likelihood``, the sum of the observed entries' log-densities under it, ``observed``; ``filtered_mean`` and ``filtered_cov``.
        """
        sequences, labels = self._read(data, times)
        ahead = in_groups(self._fitted().one_step, sequences)
        mean, std = (torch.from_numpy(part).reshape(sequences.values.shape) for part in ahead)
        density = torch.distributions.Normal(mean, std).log_prob(sequences.values).masked_fill(~sequences.observed, 0.0)
        dims = ("series", "time", *labels.event_dims)
        fields: dict[str, Any] = {"predicted_observation_mean": (dims, mean), "predicted_observation_std": (dims, std)}
        fields["log_likelihood"] = (("series", "time"), density.flatten(2).sum(-1))
        state = getattr(self._fitted(), "state", None)
        if state is not None:
            belief: Gaussian = state(*as_arrays(sequences))
            fields |= {
                "filtered_mean": (("series", "time", "state"), belief.mean),
                "filtered_cov": (("series", "time", "state", "state_aux"), belief.cov),
            }
        return to_dataset(fields, sequences, labels, self._attrs())

    def smooth(self, data: Any, times: Any = None) -> Any:
        """Every entry given all others, gaps filled: a Dataset with ``reconstruction_mean`` and ``reconstruction_std``, as `LDMFilter.smooth` has it.

        Raises:
            ValueError: a method that only forecasts.
        """
        sequences, labels = self._read(data, times)
        filled = in_groups(filler(self._fitted()), sequences)
        dims = ("series", "time", *labels.event_dims)
        parts = zip(("reconstruction_mean", "reconstruction_std"), filled, strict=True)
        fields = {name: (dims, torch.from_numpy(part).reshape(sequences.values.shape)) for name, part in parts}
        return to_dataset(fields, sequences, labels, self._attrs())

    def forecast(self, data: Any, horizon: int, levels: Several[float] = (0.8, 0.95), times: Any = None, format: str | None = None) -> Any:
        """The ``horizon`` steps after the data, with intervals, in the shape that ``LDMFilter.forecast`` gives for the same data."""
        sequences, labels = self._read(data, times)
        method = self._fitted()
        mean, std = in_groups(lambda values, observed: method.forecast(values, horizon, observed), sequences, horizon)
        shape = (len(mean), horizon, *sequences.values.shape[2:])
        return forecast_output(torch.from_numpy(mean).reshape(shape), torch.from_numpy(std).reshape(shape), levels, labels, format=format)

    def score(self, data: Any, times: Any = None) -> float:
        """Mean one-step predictive log-density of the observation, per step and channel, in nats: `LDMFilter.score`."""
        sequences, _ = self._read(data, times)
        mean, std = (torch.from_numpy(part).reshape(sequences.values.shape) for part in in_groups(self._fitted().one_step, sequences))
        return float(torch.distributions.Normal(mean, std).log_prob(sequences.values)[sequences.observed].mean())

    def _read(self, data: Any, times: Any) -> tuple[Sequences, Labels]:
        self._fitted()
        return parse(data, expected=self.labels_, dtype=torch.float64, times=times)

    def _fitted(self) -> Method:
        if getattr(self, "method_", None) is None:
            raise ValueError("Baseline is not fitted yet; call fit(training data) first")
        return self.method_

    def _attrs(self) -> dict[str, Any]:
        return {"method": self.method if isinstance(self.method, str) else type(self.method).__name__}


def filler(method: Method) -> Callable[[Array, Mask], Forecast]:
    """How a method fills gaps: from both sides where it can."""
    found = getattr(method, "smooth", None) or getattr(method, "fill", None)
    if found is None:
        raise ValueError(f"{type(method).__name__} fills no gaps")
    return found


def as_arrays(sequences: Sequences) -> tuple[Array, Mask]:
    """Values ``(series, time, channel)`` in float64, pixels as channels, and what was observed."""
    values, observed = (part.flatten(2) for part in sequences[:2])
    return values.double().numpy(), observed.numpy()


def in_groups(answer: Callable[[Array, Mask], Forecast], sequences: Sequences, horizon: int | None = None) -> Forecast:
    """Ask for series of one length at a time, so that each ends where its data end; the padding of shorter ones holds (0, 1)."""
    values, observed = as_arrays(sequences)
    shape = values.shape if horizon is None else (len(values), horizon, values.shape[2])
    mean, std = np.zeros(shape), np.ones(shape)
    for rows, length in _alike(sequences):
        found = answer(values[rows, :length], observed[rows, :length])
        for into, part in ((mean, found.mean), (std, found.std)):
            into[rows, : part.shape[1]] = part
    return Forecast(mean, std)


def _alike(sequences: Sequences) -> Iterator[tuple[Any, int]]:
    lengths = sequences.lengths.numpy()
    for length in np.unique(lengths):
        yield np.flatnonzero(lengths == length), int(length)
