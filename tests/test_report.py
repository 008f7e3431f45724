"""The report is one file: complete, parseable, and nothing in it points outside."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ldm_filter import LDMFilter
from ldm_filter.cli import main
from ldm_filter.estimator.diagnosis import duration
from ldm_filter.report import write_report
from tests.optional import needs

needs("jinja2")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Open tags are closed in order; attributes that could load or lead somewhere are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.boxes: list[bool] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "div":
            self.boxes.append(dict(attrs).get("class") == "wide")
        if tag in ("table", "img") and not any(self.boxes):
            self.outside.append(tag)
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster", "background", "style")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "div":
            self.boxes.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def series(seed: int = 0, steps: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    angle = 0.25 * np.arange(steps)[:, None] + np.arange(3.0)
    data = pd.DataFrame(np.sin(angle) + 0.2 * rng.normal(size=(steps, 3)), columns=["heat", "<b>load</b>", "wind"])
    data.index = pd.date_range("2025-01-05", periods=steps, freq="10min", tz="Europe/Berlin", name="when")
    data.iloc[40:44] = np.nan
    return data


@pytest.fixture(scope="module")
def model() -> LDMFilter:
    return LDMFilter(state_dim=2, readout="linear", window=40).fit(series(), epochs=4, progress=False)


@pytest.fixture(scope="module")
def html(model: LDMFilter, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(model, series(1), path, title="Boiler & <script>", horizon=12)
    return path.read_text(encoding="utf-8")


def test_no_reference_leaves_the_file(html: str):
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import|//\w", bare)
    for picture in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html):
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert html.count("<img") == 4


def test_what_may_be_wider_than_a_screen_scrolls_in_a_box_of_its_own(html: str):
    page = Page()
    page.feed(html)
    assert page.outside == []
    assert page.tags.count("table") == 4
    assert re.search(r"\.wide \{ overflow-x: auto;", html) and "white-space: pre-wrap" in html


def test_it_holds_what_was_found(model: LDMFilter, html: str):
    page = Page()
    page.feed(html)
    text = " ".join("".join(page.text).split())
    found = model.diagnose(series(1))
    assert f"{found.nis:.3f}" in text
    assert "10 min" in text and "Europe/Berlin" in text and "1.7%" in text
    assert "hold the last value" in text and "vector autoregression" in text
    assert "Boiler & <script>" in text and "<b>load</b>" in text  # escaped, so they arrive as text
    mode = found.spectrum[0]
    assert duration(mode.period_seconds or 0.0) in text
    assert "prefers-color-scheme: dark" in text


def test_a_wave_is_forecast_better_than_held(html: str):
    rows = {
        row[0]: [float(x) for x in row[1:4]] for row in (re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in html.splitlines()) if len(row) == 5
    }
    assert rows["this model"][0] < 0.6 * rows["hold the last value"][0]
    assert rows["this model"][1] < 0.6 * rows["hold the last value"][1]


def test_from_the_command_line_and_arrays(model: LDMFilter, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model.save(tmp_path / "model.safetensors")
    series(1).to_csv(tmp_path / "data.csv")
    out = tmp_path / "report.html"
    main(["report", str(tmp_path / "data.csv"), "--model", str(tmp_path / "model.safetensors"), "--out", str(out)])
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert out.stat().st_size > 50_000
    write_report(model, series(1).to_numpy(), out, horizon=5)


def test_a_model_with_inputs(tmp_path: Path):
    known = pd.DataFrame({"valve": np.sin(0.05 * np.arange(240.0))}, index=series().index)
    data = series().add(2.0 * known["valve"], axis=0)
    fitted = LDMFilter(state_dim=2, readout="linear", window=40).fit(data, inputs=known, epochs=2, progress=False)
    write_report(fitted, data, tmp_path / "report.html", horizon=12, inputs=known)
    page = Page()
    page.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The model has inputs: valve." in "".join(page.text)
    assert all(value.startswith(("data:", "#")) for value in page.references if ":" in value)
    with pytest.raises(ValueError, match="inputs"):
        write_report(fitted, data, tmp_path / "report.html", horizon=12)


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        (series(1)[:20], {}, "at least 30"),
        ([series(1), series(2)], {}, "one of them"),
        (series(1), {"horizon": 200}, "horizon is 200, expected 1 to 80"),
    ],
)
def test_refusals(model: LDMFilter, tmp_path: Path, data: object, arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        write_report(model, data, tmp_path / "report.html", **arguments)
    with pytest.raises(FileNotFoundError):
        write_report(model, series(1), tmp_path / "no" / "report.html")
