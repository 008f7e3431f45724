"""The page: sections filled in, pictures inlined, nothing that points outside the file."""

from __future__ import annotations

import base64
import io
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldm_filter.estimator import LDMFilter
from ldm_filter.estimator.settings import to_json
from ldm_filter.report import sections

__all__ = ["write_report"]

_TEMPLATE = Path(__file__).with_name("page.html")
_DPI = 130


def write_report(
    model: LDMFilter,
    data: Any,
    path: str | Path,
    *,
    title: str = "Report",
    horizon: int | None = None,
    source: str = "data",
    inputs: Any = None,
) -> None:
    """Write a self-contained HTML report of a fitted model on one series.

    Args:
        model: fitted.
        data: one series of vectors, best of data that the model was not fitted on.
        path: of the HTML file.
        title: of the page.
        horizon: steps of the forecast, which is held against the last ``horizon`` steps of the data; default a tenth of the series, at most 100.
        source: what the data is called in the commands that reproduce the report.
        inputs: of a model with some, one row per step of the data. (The page then tells how to make it from Python.)

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
        FileNotFoundError: the folder does not exist.
        ValueError: frames, several series, or fewer than 30 steps.
    """
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("a report needs the package jinja2, which is not installed; install it with: pip install ldm-filter[report]")
    from jinja2 import Environment, StrictUndefined

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first")
    values, labels = sections.single_series(model, data)
    steps = len(values)
    ahead = horizon or max(1, min(100, steps // 10))
    if not 1 <= ahead <= steps // 3:
        raise ValueError(f"horizon is {horizon}, expected 1 to {steps // 3}, a third of the {steps} steps")
    forecast, comparison = sections.forecast_section(model, data, values, ahead, inputs)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = page.render(
        title=title,
        model=repr(model),
        facts=sections.facts(values, labels),
        channels=sections.channel_table(values, labels),
        training=None if not model.history_.epochs else _picture(sections.training_picture(model)),
        events=model.history_.events,
        filtered=_picture(sections.filter_picture(model, data, steps, inputs)),
        forecast=_picture(forecast),
        horizon=ahead,
        comparison=comparison,
        diagnosis=(found := model.diagnose(data, inputs=inputs)),
        unit=found.unit,
        innovations=_picture(sections.innovation_picture(found)),
        parameters=json.dumps(json.loads(to_json(model.get_params())), indent=1),
        versions={name: version(name) for name in ("ldm-filter", "torch", "numpy", "pandas", "xarray")},
        source=source,
        inputs=[] if model.input_labels_ is None else list(model.input_labels_.channels),
    )
    path.write_text(html, encoding="utf-8")


def _picture(figure: Figure) -> str:
    """A data URI of a PNG, transparent so that it sits on a light page and (inverted) on a dark one."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
