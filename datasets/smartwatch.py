"""Shoulder exercises seen by a smartwatch: 140 recordings of six inertial channels at 50 Hz, ten subjects."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datasets.packages import require

__all__ = ["CHANNELS", "PERIOD", "SUBJECTS", "Recording", "load", "to_frame"]

CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
PERIOD = 0.02  # seconds between samples
SUBJECTS = {"train": tuple(range(1, 8)), "test": tuple(range(8, 11)), "all": tuple(range(1, 11))}


class Recording(NamedTuple):
    """About twenty repetitions of one exercise by one subject.

    Attributes:
        values: ``(T, 6)`` float32, channels ``CHANNELS``: acceleration with gravity (g), angular rate (rad/s).
        subject: 1 to 10.
        exercise: one of PEN, ABD, FEL, IR, ER, TRAP, ROW.
        side: ``"left"`` or ``"right"`` arm.
    """

    values: NDArray[np.float32]
    subject: int
    exercise: str
    side: str


def load(split: Literal["train", "test", "all"] = "all") -> list[Recording]:
    """The recordings of a split, in the package's order; nothing is scaled, cut or resampled.

    Args:
        split: ``"train"`` subjects 1 to 7 (98 recordings), ``"test"`` subjects 8 to 10 (42), ``"all"`` (140). A subject is
            never on both sides.

    Returns:
        Recordings of 947 to 2618 samples.

    Raises:
        ModuleNotFoundError: seglearn is not installed.
        ValueError: an unknown split.

    Source:
        Burns et al., Shoulder physiotherapy exercise recognition, arXiv 1802.01489; ships with seglearn (BSD-3-Clause).

    >>> len(load("train")), len(load("test"))
    (98, 42)
    """
    if split not in SUBJECTS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SUBJECTS)}")
    raw = require("seglearn.datasets").load_watch()
    rows = zip(raw["X"], raw["subject"], raw["y"], raw["side"], strict=True)
    return [
        Recording(np.asarray(values, dtype=np.float32), int(subject), raw["y_labels"][int(label)], "right" if side else "left")
        for values, subject, label, side in rows
        if subject in SUBJECTS[split]
    ]


def to_frame(recording: Recording) -> pd.DataFrame:
    """A recording as a DataFrame, one row every 20 ms.

    Args:
        recording: one of ``load()``.

    Returns:
        Columns ``CHANNELS``, float32; ``DatetimeIndex`` named ``time``. The data hold no clock: the index starts at an
        arbitrary 2018-01-01, only its steps are real.

    >>> to_frame(load("test")[0]).columns.tolist()
    ['ax', 'ay', 'az', 'wx', 'wy', 'wz']
    """
    time = pd.date_range("2018-01-01", periods=len(recording.values), freq=pd.Timedelta(seconds=PERIOD), name="time")
    return pd.DataFrame(recording.values, index=time, columns=pd.Index(CHANNELS))
