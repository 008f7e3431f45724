"""Times of a stream: seconds or dates, and where on the sampling grid they lie."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["OFF_GRID", "check_step", "seconds_of", "show_time"]

# How far a time may lie from the sampling grid, as a share of a step.
OFF_GRID = 0.1


def seconds_of(time: Any) -> tuple[float, str]:
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


def show_time(seconds: float, clock: str) -> str:
    return f"{seconds!r} s" if clock == "seconds" else f"{np.datetime64(round(seconds * 1e6), 'us')} UTC"


def check_step(step_seconds: float | None) -> float | None:
    if step_seconds is None:
        return None
    if isinstance(step_seconds, bool) or not isinstance(step_seconds, Real):
        raise TypeError(f"step_seconds is a {type(step_seconds).__name__}, expected a number of seconds or None")
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        raise ValueError(f"step_seconds is {step_seconds}, expected a positive finite number of seconds, or None to count every call as one step")
    return float(step_seconds)
