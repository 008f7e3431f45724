"""``ldm-filter stream``: the batch's numbers line by line, broken lines, and a state that survives signals."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ldm_filter import LDMFilter
from ldm_filter.commands.lines import Reader, Writer
from ldm_filter.commands.stream import Session, load

NAMES = ["heat", "load", "wind"]


def values(seed: int = 0, steps: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = np.sin(np.arange(steps)[:, None] / 4 + np.arange(3.0)) + 0.1 * rng.normal(size=(steps, 3))
    data[20:23, 1] = np.nan
    data[30] = np.nan
    return data


def frame(seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(values(seed), pd.Index(0.5 * np.arange(60), name="time"), columns=NAMES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "model.safetensors"
    LDMFilter(state_dim=2, readout="linear", window=30).fit(frame(), epochs=1, progress=False).save(path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> LDMFilter:
    return LDMFilter.load(path, device="cpu")


def csv(data: pd.DataFrame) -> list[str]:
    return data.to_csv().splitlines(keepends=True)


def jsons(data: pd.DataFrame) -> list[str]:
    rows = [{"time": when} | {name: value for name, value in row.items() if not np.isnan(value)} | {"heat": None} for when, row in data.iterrows()]
    for row, value in zip(rows, data["heat"], strict=True):
        row["heat"] = None if np.isnan(value) else value
    return [json.dumps(row) + "\n" for row in rows]


def run(model: LDMFilter, lines: list[str], **options) -> tuple[list[dict], Session]:
    session, out = Session(model, output="json", **options), io.StringIO()
    session.run(io.BytesIO("".join(lines).encode()), out)
    return [json.loads(line) for line in out.getvalue().splitlines()], session


@pytest.mark.parametrize("form", [csv, jsons])
def test_lines_give_what_the_batch_gives(model: LDMFilter, form, capsys: pytest.CaptureFixture[str]):
    found, _ = run(model, form(frame(1)))
    want = model.filter(frame(1))
    assert [one["time"] for one in found] == [str(t) if form is csv else t for t in frame().index]
    for name in ("filtered_mean", "log_likelihood"):
        np.testing.assert_allclose([one[name] for one in found], want[name], rtol=2e-3, atol=2e-4)
    for name in ("reconstruction_mean", "reconstruction_std"):
        np.testing.assert_allclose([[one[name][c] for c in NAMES] for one in found], want[name], rtol=2e-3, atol=2e-4)
    std = np.sqrt(np.diagonal(want.filtered_cov.to_numpy(), axis1=1, axis2=2))
    np.testing.assert_allclose([one["filtered_std"] for one in found], std, rtol=1e-3)
    assert found[30]["nis"] is None
    assert capsys.readouterr().err == f"ldm-filter: {60 + (form is csv)} lines read, 0 skipped\n"


def test_csv_out_has_the_names_of_the_tables(model: LDMFilter):
    out = io.StringIO()
    Session(model).run(io.BytesIO("".join(csv(frame(1))).encode()), out)
    table = pd.read_csv(io.StringIO(out.getvalue()))
    np.testing.assert_allclose(table["filtered_mean[1]"], model.filter(frame(1)).filtered_mean[:, 1], rtol=2e-3, atol=2e-4)
    assert {"time", "line", "reconstruction_std[wind]", "nis", "p_value", "weight"} <= set(table)


def test_broken_lines_are_named_and_skipped(model: LDMFilter, capsys: pytest.CaptureFixture[str]):
    lines = csv(frame(1))
    broken = {5: "1.5,abc,2,3\n", 9: "3.5,1,2\n", 12: "never,1,2,3\n", 15: "0.0,1,2,3\n", 18: "6,inf,1,1\n", 20: "\x00\n"}
    for number, line in sorted(broken.items()):
        lines.insert(number - 1, line)
    found, session = run(model, lines)
    whole, _ = run(model, csv(frame(1)))
    assert [one["filtered_mean"] for one in found] == [one["filtered_mean"] for one in whole]
    said = capsys.readouterr().err
    for number, word in zip(broken, ("'abc'", "3 fields", "'never'", "not later", "inf", "fields"), strict=True):
        message = next(line for line in said.splitlines() if f"line {number} skipped" in line)
        assert word in message
    assert session.skipped == len(broken)


def test_bytes_that_are_no_text_and_json_that_is_none(model: LDMFilter, capsys: pytest.CaptureFixture[str]):
    session, out = Session(model, output="json"), io.StringIO()
    session.run(
        io.BytesIO(b'{"heat": 1}\n\xff\xfe\n{"heat": \n[1, 2]\n[1, 2, 3]\n{"cold": 1}\n{"heat": "x"}\n{"heat": true}\n3\n[0, 1, 2, 3]\n'), out
    )
    assert [json.loads(line)["line"] for line in out.getvalue().splitlines()] == [1, 5, 10]
    assert "10 lines read, 7 skipped" in capsys.readouterr().err


def test_late_lines_within_the_lag(model: LDMFilter):
    lines = csv(frame(1))
    order = [0, *(1 + np.array([*range(50), 52, 50, 53, 51, *range(54, 60)]))]
    found, _ = run(model, [lines[i] for i in order], lag=6)
    want, _ = run(model, lines)
    np.testing.assert_allclose(found[-1]["filtered_mean"], want[-1]["filtered_mean"], rtol=1e-4)


def test_goes_on_from_the_state(model: LDMFilter, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = str(tmp_path / "state.npz")
    lines = csv(frame(1))
    first, _ = run(model, lines[:31], state=state)
    second, _ = run(model, [lines[0], *lines[31:]], state=state)
    whole, _ = run(model, lines)
    assert [one["filtered_mean"] for one in first + second] == [one["filtered_mean"] for one in whole]
    assert "goes on after step 30, time 14.5" in capsys.readouterr().err
    assert load(Path(state))[1]


def test_foreign_states_are_refused(model: LDMFilter, tmp_path: Path):
    (tmp_path / "state.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        Session(model, state=str(tmp_path / "state.npz"))
    with pytest.raises(FileNotFoundError):
        Session(model, state=str(tmp_path / "no" / "state.npz"))
    for options in ({"every": 0}, {"output": "xml"}):
        with pytest.raises(ValueError, match="expected"):
            Session(model, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(path: Path, tmp_path: Path, number: signal.Signals):
    """SIGTERM saves everything; after kill -9 the next run says what is lost, and goes on exactly where the state is."""
    state, lines = tmp_path / "state.npz", csv(frame(1))
    command = [sys.executable, "-m", "ldm_filter.cli", "stream", "--model", str(path), "--state", str(state), "--save-every", "10"]
    process = subprocess.Popen([*command, "--output", "json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    found = []
    for line in lines[:26]:
        process.stdin.write(line)
        process.stdin.flush()
        if line is not lines[0]:
            found.append(json.loads(process.stdout.readline()))  # at once, one for one
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    content, closed = load(state)
    if number == signal.SIGTERM:
        assert (process.returncode, content["steps"], closed) == (0, 25, True)
        assert "state of step 25" in said
        return
    assert (content["steps"], closed) == (19, False)  # the header is line 1, so line 20 is step 19
    rest = subprocess.run([*command, "--output", "json"], input="".join([lines[0], *lines[20:]]), capture_output=True, text=True, check=True)
    assert "up to 10 lines after that step are not in the state" in rest.stderr
    again = [json.loads(line)["filtered_mean"] for line in rest.stdout.splitlines()]
    assert again[:6] == [one["filtered_mean"] for one in found[19:]]


# ------------------------------------------------------------------------------------------------------------------ lines


def test_reader_takes_inputs_and_positions():
    reader = Reader(["a", "b"], ["u"])
    assert reader.read("time,b,u,a\n") is None
    row = reader.read("2024-03-01T10:00:00Z,2,3,\n")
    assert row is not None and row.inputs is not None
    assert np.isnan(row.values[0]) and row.values[1] == 2 and row.inputs.tolist() == [3.0]
    assert row.time.isoformat() == "2024-03-01T10:00:00+00:00"
    bare = Reader(["a", "b"]).read("5,1,2\n")
    assert bare is not None and (bare.time, bare.values.tolist()) == (5.0, [1.0, 2.0])
    with pytest.raises(ValueError, match="lacks the inputs"):
        Reader(["a"], ["u"]).read("time,a\n")
    assert Reader(["a"]).read("  \n") is None


def test_writer_is_one_header_and_nine_digits():
    writer = Writer("csv")
    assert writer.write({"x": 1 / 3, "m": [1.0, 2.0], "n": {"a": float("nan")}}) == "x,m[0],m[1],n[a]\n0.333333333,1.0,2.0,\n"
    assert writer.write({"x": None, "m": [1.0, 2.0], "n": {"a": 1}}) == ",1.0,2.0,1\n"
