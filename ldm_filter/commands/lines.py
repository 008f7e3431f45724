"""Lines of a stream: CSV or JSON in, CSV or JSON out, one observation each."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Reader", "Row", "Writer"]

_MISSING = {"", "na", "nan", "null", "none"}
_TIME_NAMES = {"time", "date", "datetime", "timestamp", "index", "when"}


class Row(NamedTuple):
    """One observation: values ``(channel,)`` with NaN where missing, its time or None, its inputs or None, and the time as it was written."""

    values: np.ndarray
    time: Any
    inputs: np.ndarray | None
    shown: str | float | None


class Reader:
    """Reads lines of either kind; the first line decides which, and may be a header.

    Args:
        channels: names of the channels, in the order of the fit.
        inputs: names of the known inputs, () for none.

    Without a header a CSV line holds the channels in their order, and the inputs after them; one field more, in front, is the time.
    A JSON line is an object of names, with "time" among them, or a list of the channels in their order.
    """

    def __init__(self, channels: Sequence[str], inputs: Sequence[str] = ()) -> None:
        self.channels, self.inputs = tuple(channels), tuple(inputs)
        self.kind: str | None = None
        self._columns: list[str] | None = None

    def read(self, line: str) -> Row | None:
        """The observation of a line, None for a header and for an empty line.

        Raises:
            ValueError: the line is not what it should be.
        """
        if not line.strip():
            return None
        if self.kind is None:
            self.kind = "json" if line.lstrip()[0] in "{[" else "csv"
        return self._json(line) if self.kind == "json" else self._csv(line)

    def _json(self, line: str) -> Row:
        content = json.loads(line)
        if isinstance(content, list):
            return self._row(self._positions(content, len(self.channels)))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object of channels or a list")
        return self._row(content)

    def _csv(self, line: str) -> Row | None:
        fields = [field.strip() for field in next(csv.reader([line]))]
        if self._columns is None:
            # Names may be numbers (of an array's channels): then only a word in front, such as time, makes a header.
            if {*fields} & {*self.channels, *self.inputs} and not all(map(_is_value, fields)):
                self._columns = self._header(fields)
                return None
            self._columns = list(self._positions(fields, len(self.channels) + len(self.inputs)))
        if len(fields) != len(self._columns):
            raise ValueError(f"it has {len(fields)} fields, expected {len(self._columns)}: {', '.join(self._columns)}")
        return self._row(dict(zip(self._columns, fields, strict=True)))

    def _header(self, fields: list[str]) -> list[str]:
        columns = ["time" if i == 0 and field.lower() in _TIME_NAMES and field not in self.channels else field for i, field in enumerate(fields)]
        missing = [name for name in self.inputs if name not in columns]
        if missing:
            raise ValueError(f"the header lacks the inputs {missing}; the model was fitted with them")
        return columns

    def _positions(self, fields: Sequence[Any], expected: int) -> dict[str, Any]:
        names = [*self.channels, *self.inputs][:expected] if expected == len(self.channels) else [*self.channels, *self.inputs]
        if len(fields) == expected + 1:
            names = ["time", *names]
        if len(fields) != len(names):
            raise ValueError(f"it has {len(fields)} fields, expected {len(names)} ({', '.join(names)}), or one more in front: the time")
        return dict(zip(names, fields, strict=True))

    def _row(self, content: Mapping[str, Any]) -> Row:
        if not any(name in content for name in self.channels):
            raise ValueError(f"it has none of the channels {', '.join(self.channels)}, only {', '.join(map(str, content))[:200]}")
        values = np.array([_number(name, content.get(name)) for name in self.channels])
        inputs = np.array([_number(name, content.get(name)) for name in self.inputs]) if self.inputs else None
        shown = next((content[name] for name in content if name.lower() in _TIME_NAMES and name not in self.channels), None)
        return Row(values, _time(shown), inputs, shown)


class Writer:
    """Writes results, as JSON objects or as CSV with a header; figures to nine digits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._header: list[str] | None = None

    def write(self, fields: Mapping[str, Any]) -> str:
        """A line, with its header before the first of a CSV."""
        plain = {name: _plain(value) for name, value in fields.items()}
        if self.kind == "json":
            return json.dumps(plain) + "\n"
        cells = {key: cell for name, value in plain.items() for key, cell in _cells(name, value)}
        head = "" if self._header is not None else ",".join(cells) + "\n"
        self._header = self._header or list(cells)
        return head + ",".join("" if cell is None else f"{cell}" for cell in cells.values()) + "\n"


def _is_value(field: str) -> bool:
    if field.lower() in _MISSING:
        return True
    try:
        float(field)
    except ValueError:
        return False
    return True


def _number(name: str, value: Any) -> float:
    if value is None or (isinstance(value, str) and value.lower() in _MISSING):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name} is {value!r}, expected a number, or nothing where it is missing")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}, expected a number, or nothing where it is missing") from None


def _time(value: Any) -> Any:
    """Seconds, a datetime, or None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"time is {value!r}, expected seconds or a date such as 2024-12-31T23:59:00Z") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def _cells(name: str, value: Any) -> list[tuple[str, Any]]:
    """``filtered_mean[0]``, ``reconstruction_mean[heat]``: the names of the tables."""
    if isinstance(value, dict):
        return [(f"{name}[{key}]", item) for key, item in value.items()]
    if isinstance(value, list):
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    return [(name, value)]
