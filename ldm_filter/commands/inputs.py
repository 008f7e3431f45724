"""Known inputs on the command line: columns of the table that holds the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["input_names", "split"]


def input_names(model: Any) -> tuple[str, ...]:
    """The columns that a loaded model was fitted with as inputs, () without any."""
    return () if model.input_labels_ is None else tuple(model.input_labels_.channels)


def split(data: Any, names: Sequence[str], horizon: int = 0) -> tuple[Any, Any]:
    """`ldm_filter.data.tables.split_inputs`; with what it needs, pandas, comes only with the command."""
    from ldm_filter.data.tables import split_inputs

    return split_inputs(data, names, horizon)
