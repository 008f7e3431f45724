"""One observation at a time: the same filter as over a whole series, at constant cost, with a state that can be put away."""

from __future__ import annotations

import copy
import math
from datetime import UTC, datetime
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core.inputs import check_count
from ldm_filter.core.kalman import predict, update
from ldm_filter.core.linalg import cholesky, matvec, round_cov
from ldm_filter.core.recursion import innovation_cov
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.types import Gaussian

__all__ = ["OnlineFilter", "OnlineState", "StepResult"]

# How far a time may lie from the sampling grid, as a share of a step.
OFF_GRID = 0.1
_STATE_FORMAT = "ldm-filter-online-1"


class StepResult(NamedTuple):
    """What one step yields, detached and in the dtype of the model; with ``streams`` every field has that leading dimension.

    Attributes:
        mean: of p(h_t | y_<=t), ``(n,)``.
        cov: ``(n, n)``.
        log_likelihood: log p(z_t | z_<t) in nats, 0 where nothing is observed.
        nis: e' S^-1 e / m, the normalised innovation squared per latent, 1 on average for a calibrated filter; NaN where nothing
            is observed.
    """

    mean: Tensor
    cov: Tensor
    log_likelihood: Tensor
    nis: Tensor


class OnlineState(NamedTuple):
    """All that a filter remembers. A step replaces it and never writes into it.

    Attributes:
        belief: p(h_t | y_<=t) after the last step (before the first: the initial belief), float64.
        steps: calls of ``step`` so far.
        time: of the last step in seconds, or None where times were never given.
        clock: ``"seconds"``, ``"dates"`` or ``"dates with a zone"``: what kind of times came; "" for none.
    """

    belief: Gaussian
    steps: int
    time: float | None
    clock: str


class OnlineFilter:
    """Filters a stream (or several side by side) observation by observation; equals filtering the whole series at once.

        h^- = A^k h + ...,   h = h^- + K (z - C h^- - c),   z, R = encoder(y)

    k is 1, more after a gap, and 0 at the first step, where the initial belief is the prediction. The belief is carried in float64
    whatever the dtype of the model. The model is copied: training it further does not change a running filter.

    Args:
        model: a fitted :class:`~ldm_filter.models.latent_filter.LatentFilter`.
        step_seconds: the sampling interval. With it, a gap in ``time`` is predicted over.
        streams: None for one stream, or the number of streams that are stepped together.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.

    >>> from ldm_filter.models.dynamics import LinearDynamics
    >>> from ldm_filter.models.encoders import Encoder
    >>> online = OnlineFilter(LatentFilter(Encoder((6,), 2), LinearDynamics(4, 2)), step_seconds=0.02)
    >>> online.step(np.zeros(6), time=10.0).mean.shape
    torch.Size([4])
    >>> online.step(None, time=10.02).log_likelihood
    tensor(0.)
    """

    state: OnlineState

    def __init__(self, model: LatentFilter, step_seconds: float | None = None, streams: int | None = None) -> None:
        if not isinstance(model, LatentFilter):
            raise TypeError(f"model is a {type(model).__name__}, expected a LatentFilter; of an estimator, call its online()")
        if streams is not None:
            check_count("streams", streams)
        self.step_seconds, self.streams = _check_step(step_seconds), streams
        self._model = copy.deepcopy(model).eval()
        with torch.no_grad():
            ssm = self._model.dynamics()
        self._dtype = ssm.transition_matrix.dtype
        self._transition = (ssm.transition_matrix.double(), ssm.transition_offset.double(), ssm.transition_cov.double())
        self._observation = (ssm.observation_matrix.double(), ssm.observation_offset.double())
        lead = () if streams is None else (streams,)
        self._shape = (*lead, *model.encoder.event_shape)
        mean, cov = (field.detach().double() for field in ssm.initial)
        self.state = OnlineState(Gaussian(mean.expand(*lead, -1).clone(), cov.expand(*lead, -1, -1).clone()), 0, None, "")

    @torch.no_grad()
    def step(self, y: np.ndarray | Tensor | None, time: Any = None, inputs: None = None) -> StepResult:
        """Take in the next observation; where anything is refused, the state stays as it was.

        Args:
            y: ``(channel,)`` or a frame ``(y, x[, colour])``, with ``streams`` a leading dimension, in the data's units; NaN where
                an entry is missing. None or all NaN: nothing was seen, the filter only predicts.
            time: of this observation, optional: seconds, or a datetime, pandas Timestamp or numpy datetime64 (exact to about a
                microsecond; without a zone it is read as UTC). Strictly later than the last. With ``step_seconds`` a distance of k
                steps is k predictions, each of the others one.
            inputs: None; this model has no inputs.

        Returns:
            The filtered state, the log-likelihood of the measurement and its NIS.

        Raises:
            TypeError: y is no array or tensor of real numbers; time is of another kind than before.
            ValueError: shape of y, infinite values, a time that is not later or lies more than a tenth of a step off the grid, inputs.
        """
        if inputs is not None:
            raise ValueError("inputs were given, but this model has none; leave inputs out")
        seen = None if y is None else self._read(y)
        ahead, now, clock = self._advance(time)
        predicted = _steps_ahead(self.state.belief, *self._transition, ahead)
        filtered, log_likelihood, nis = self._update(predicted, *seen) if seen and bool(seen[1].any()) else self._skip(predicted)
        self.state = OnlineState(filtered, self.state.steps + 1, now, clock)
        # clones: in float64 the result would else be the state itself, and whoever writes into one would change the other
        cov = round_cov(filtered.cov, self._dtype).clone()
        return StepResult(filtered.mean.to(self._dtype, copy=True), cov, log_likelihood.to(self._dtype), nis.to(self._dtype))

    def save_state(self) -> dict[str, Any]:
        """The state as plain NumPy arrays, numbers and text (for pickle, ``np.savez`` or a database): a few kilobytes."""
        belief, steps, time, clock = self.state
        mean, cov = (np.array(field.cpu().numpy()) for field in belief)
        return {"format": _STATE_FORMAT, "mean": mean, "cov": cov, "steps": steps, "time": time, "clock": clock}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`save_state` was called, bit for bit; the filter must be made of the same model.

        Raises:
            TypeError: not what ``save_state`` gives.
            ValueError: a state of another format, model size or number of streams, or with numbers that are not finite.
        """
        if not isinstance(state, dict) or not {"format", "mean", "cov", "steps", "time", "clock"} <= state.keys():
            raise TypeError(f"state is a {type(state).__name__} without the fields of a saved state; expected what save_state() returned")
        if state["format"] != _STATE_FORMAT:
            raise ValueError(f"state has format {state['format']!r}, expected {_STATE_FORMAT!r}; load it with the ldm-filter that saved it")
        fields = []
        for name, now in self.state.belief._asdict().items():
            saved = torch.tensor(np.asarray(state[name], dtype=np.float64), device=now.device)
            if saved.shape != now.shape:
                raise ValueError(
                    f"state has {name} of shape {tuple(saved.shape)}, expected {tuple(now.shape)}; make model and streams as when it was saved"
                )
            if not bool(saved.isfinite().all()):
                raise ValueError(f"state has a {name} that is not finite; expected what save_state() returned: load an older state")
            fields.append(saved)
        self.state = OnlineState(Gaussian(*fields), int(state["steps"]), state["time"], state["clock"])

    # ---------------------------------------------------------------------------------------------------------- one step

    def _read(self, y: Any) -> tuple[Tensor, Tensor]:
        """The observation as the encoder takes it, values and mask ``(streams, 1, *event)``."""
        given = _numbers(y)
        if tuple(given.shape) != self._shape:
            names = "(streams, *observation)" if self.streams is not None else "one observation"
            raise ValueError(f"y has shape {tuple(given.shape)}, expected {self._shape}: {names}; check the number and order of its dimensions")
        values = given.to(self._transition[0].device, self._dtype)
        infinite = values.isinf()
        if bool(infinite.any()):
            index = infinite.nonzero()[0].tolist()
            raise ValueError(
                f"y is {given[tuple(index)].item()} at index {index}; expected numbers finite in {self._dtype}, or NaN for missing: replace it"
            )
        observed = ~values.isnan()
        values = values.masked_fill(~observed, 0.0)
        return (values[None, None], observed[None, None]) if self.streams is None else (values[:, None], observed[:, None])

    def _advance(self, time: Any) -> tuple[int, float | None, str]:
        """How many steps this call is ahead of the last one, and its time."""
        _, steps, last, clock = self.state
        one = 0 if steps == 0 else 1  # the initial belief is the prediction for the first step
        if time is None:
            return one, last + self.step_seconds if last is not None and self.step_seconds else last, clock
        now, kind = _seconds(time)
        if last is None:
            return one, now, kind
        if kind != clock:
            raise TypeError(f"time is {time!r} ({kind}), but the last step had {clock}: {_show(last, clock)}; give all times in one kind")
        if now <= last:
            raise ValueError(f"time is {_show(now, kind)}, not later than the last step at {_show(last, clock)}; sort the data, drop what came twice")
        if self.step_seconds is None:
            return one, now, kind
        ratio = (now - last) / self.step_seconds
        ahead = round(ratio)
        if ahead < 1 or abs(ratio - ahead) > OFF_GRID:
            raise ValueError(
                f"time is {_show(now, kind)}, {ratio:.3f} steps of {self.step_seconds} s after the last one at {_show(last, clock)}; expected "
                f"a whole number within {OFF_GRID}: resample to the grid, or leave time out to count each call as one step"
            )
        return ahead, now, kind

    def _update(self, predicted: Gaussian, values: Tensor, observed: Tensor) -> tuple[Gaussian, Tensor, Tensor]:
        """Condition on what was seen: the filtered state, its log-likelihood and NIS."""
        measurements, seen = self._model.encode(values, observed)
        mean, cov = measurements.mean[:, 0].double(), measurements.cov[:, 0].double()
        mask = None if bool(seen.all()) else seen[:, 0]
        if self.streams is None:
            mean, cov = mean[0], cov[0]
        filtered, log_likelihood = update(predicted, Gaussian(mean, cov), *self._observation, mask)
        C, c = self._observation
        factor = cholesky(innovation_cov(predicted.cov, C, cov), "the innovation covariance")
        innovation = mean - c - matvec(C, predicted.mean)
        nis = torch.linalg.solve_triangular(factor, innovation.unsqueeze(-1), upper=False).square().mean((-2, -1))
        return filtered, log_likelihood, nis if mask is None else nis.masked_fill(~mask, math.nan)

    def _skip(self, predicted: Gaussian) -> tuple[Gaussian, Tensor, Tensor]:
        """Nothing was seen: the prediction stands."""
        nothing = predicted.mean.new_zeros(predicted.mean.shape[:-1])
        return predicted, nothing, torch.full_like(nothing, math.nan)


def _steps_ahead(belief: Gaussian, A: Tensor, a: Tensor, Q: Tensor, steps: int) -> Gaussian:
    """Predict any number of steps in about log2(steps) products, so that a stream that slept for a week wakes at once."""
    while steps:
        if steps & 1:
            belief = predict(belief, A, a, Q)
        steps >>= 1
        if steps:  # two steps as one: offset and noise of the first go through the second
            (a, Q), A = predict(Gaussian(a, Q), A, a, Q), A @ A
    return belief


def _numbers(y: Any) -> Tensor:
    """An observation as a tensor of real numbers, NaN where missing."""
    if isinstance(y, np.ndarray) and y.dtype.kind in "biuf":
        # a copy: it may be read-only, reversed or of foreign byte order, which torch does not take
        return torch.from_numpy(np.ma.filled(y.astype(np.float64), np.nan).copy())
    if isinstance(y, Tensor) and not y.is_complex():
        return y.detach()
    if isinstance(y, np.ndarray | Tensor):
        raise TypeError(f"y has dtype {y.dtype}, expected real numbers, NaN for missing; convert it to float")
    raise TypeError(
        f"y is a {type(y).__name__}, expected a NumPy array or a tensor; pass np.asarray(values, float), the channels in the order of the fit"
    )


def _seconds(time: Any) -> tuple[float, str]:
    """A time in seconds, of dates since 1970, and which kind it is."""
    if isinstance(time, datetime) and time != time:  # pandas' NaT is a datetime that refuses to be one
        raise ValueError("time is NaT, expected a finite one; leave it out where it is not known")
    if isinstance(time, np.datetime64):
        value, kind = float((time - np.datetime64(0, "s")) / np.timedelta64(1, "s")), "dates"
    elif isinstance(time, datetime):  # also a pandas Timestamp
        value = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        kind = "dates with a zone" if time.tzinfo else "dates"
    elif isinstance(time, Real) and not isinstance(time, bool):
        value, kind = float(time), "seconds"
    else:
        raise TypeError(f"time is a {type(time).__name__}, expected seconds or a Timestamp; convert text with pandas.Timestamp(time)")
    if not math.isfinite(value):
        raise ValueError(f"time is {time}, expected a finite one; leave it out where it is not known")
    return value, kind


def _show(seconds: float, clock: str) -> str:
    return f"{seconds!r} s" if clock == "seconds" else f"{np.datetime64(round(seconds * 1e6), 'us')} UTC"


def _check_step(step_seconds: float | None) -> float | None:
    if step_seconds is None:
        return None
    if isinstance(step_seconds, bool) or not isinstance(step_seconds, Real):
        raise TypeError(f"step_seconds is a {type(step_seconds).__name__}, expected a number of seconds or None")
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        raise ValueError(f"step_seconds is {step_seconds}, expected a positive finite number of seconds, or None to count every call as one step")
    return float(step_seconds)
