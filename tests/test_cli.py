"""The command line: files in, files out, the same numbers as from Python, and one line for what the user can mend."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ldm_filter import LDMFilter, cli
from ldm_filter.cli import MODEL_OPTIONS, main
from ldm_filter.data.io import read, write
from ldm_filter.data.tables import table
from ldm_filter.estimator.settings import CHOICES
from tests.optional import needs

COMMANDS = ("fit", "filter", "smooth", "forecast")
TINY = {"state_dim": 2, "readout": "linear", "window": 30}
FIT = ["--state-dim", "2", "--readout", "linear", "--window", "30", "--epochs", "1", "--quiet"]


def values(seed: int = 0, steps: int = 90) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angle = np.arange(steps)[:, None] / 4 + np.array([0.0, 1.0, 2.0])
    data = np.sin(angle) + 0.1 * rng.normal(size=(steps, 3))
    data[20:24] = np.nan
    return data


def frame(seed: int = 0) -> pd.DataFrame:
    index = pd.date_range("2025-01-05", periods=90, freq="10min", tz="UTC+02:00", name="when")
    return pd.DataFrame(values(seed), index=index, columns=["heat", "load", "wind"])


def dataset() -> xr.Dataset:
    return xr.Dataset({name: ("time", column.to_numpy()) for name, column in frame().items()}, {"time": frame().index.tz_convert(None)})


CONTAINERS: dict[str, Callable[[], Any]] = {".csv": frame, ".parquet": frame, ".nc": dataset, ".npy": values}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data in every format, and a model fitted on the CSV file."""
    path = tmp_path_factory.mktemp("cli")
    for suffix, make in CONTAINERS.items():
        if suffix == ".parquet":
            needs("pyarrow")
        write(make(), path / f"data{suffix}")
    main(["fit", str(path / "data.csv"), "--out", str(path / "model.safetensors"), *FIT])
    return path


def run(folder: Path, command: str, *arguments: str) -> None:
    main([command, *arguments, "--model", str(folder / "model.safetensors")])


# --------------------------------------------------------------------------------------------------- the same as in Python


@pytest.mark.parametrize("suffix", list(CONTAINERS))
def test_fit_filter_smooth_forecast_equal_python(folder: Path, tmp_path: Path, suffix: str) -> None:
    data = folder / f"data{suffix}"
    model = tmp_path / "model.safetensors"
    main(["fit", str(data), "--out", str(model), *FIT])
    fitted = LDMFilter(**TINY).fit(read(data), epochs=1, progress=False)
    loaded = LDMFilter.load(model)
    assert loaded.get_params() == fitted.get_params()
    for name, weights in fitted.model_.state_dict().items():
        assert torch.equal(loaded.model_.state_dict()[name], weights), name

    for command in ("filter", "smooth"):
        expected = getattr(fitted, command)(read(data))
        main([command, str(data), "--model", str(model), "--out", str(tmp_path / f"{command}.nc")])
        xr.testing.assert_equal(read(tmp_path / f"{command}.nc"), expected)
        out = tmp_path / f"{command}{suffix if suffix in ('.csv', '.parquet') else '.csv'}"
        main([command, str(data), "--model", str(model), "--out", str(out)])
        pd.testing.assert_frame_equal(read(out), table(expected), check_freq=False, check_dtype=False, check_index_type=False, rtol=1e-6)

    out = tmp_path / ("forecast.nc" if suffix in (".nc", ".npy") else f"forecast{suffix}")
    main(["forecast", str(data), "--model", str(model), "--horizon", "4", "--levels", "0.5", "0.9", "--out", str(out)])
    expected = fitted.forecast(read(data), horizon=4, levels=(0.5, 0.9))
    found = read(out)
    if isinstance(expected, xr.Dataset):
        xr.testing.assert_equal(found, expected)
    else:
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-6)
        assert found.index.equals(expected.index)
        assert found.index[0] == pd.Timestamp("2025-01-05 15:00", tz="UTC+02:00")


def test_a_result_table_joins_the_data_by_time(folder: Path, tmp_path: Path) -> None:
    run(folder, "filter", str(folder / "data.csv"), "--out", str(tmp_path / "states.csv"))
    states, data = read(tmp_path / "states.csv"), read(folder / "data.csv")
    assert states.index.equals(data.index)
    assert {"reconstruction_mean[heat]", "reconstruction_std[wind]", "filtered_mean[0]", "filtered_std[1]", "nis"} <= set(states.columns)
    assert not [name for name in states.columns if "_cov" in name]
    assert states["nis"].isna().to_numpy().nonzero()[0].tolist() == [20, 21, 22, 23]


def test_every_model_option_arrives(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(LDMFilter, "__init__", lambda self, **arguments: seen.update(arguments))
    monkeypatch.setattr(LDMFilter, "fit", lambda self, data, **arguments: seen.update(arguments) or self)
    monkeypatch.setattr(LDMFilter, "save", lambda self, path: seen.update(path=path))
    wanted: dict[str, Any] = {"state_dim": 6, "latent_dim": 3, "encoder": "mlp", "noise": "input", "objective": "knn", "mutual_information": False}
    wanted |= {"readout": "mlp", "transition_cov": "diagonal", "observation": "selector", "window": 7, "learning_rate": 0.5, "dynamics_rate": 2.0}
    wanted |= {
        "mask_rate": 0.2,
        "patience": 5,
        "tolerance": 0.01,
        "seed": 3,
        "device": "cpu",
        "devices": 2,
        "precision": "bf16-mixed",
        "settle_within": 7,
        "dynamics": "other",
        "latent_model": "pair",
        "space": "sphere",
        "epochs": 9,
        "batch_size": 8,
    }
    words = [f"--{name.replace('_', '-')}={json.dumps(value) if isinstance(value, bool) else value}" for name, value in wanted.items()]
    out, told = str(tmp_path / "m.safetensors"), ["--supervision", "0.3", "--warm-up", "2"]
    main(["fit", str(folder / "data.csv"), *words, "--dtype", "float64", "--validation", "null", "--out", out, "--compare", "kde", "--quiet", *told])
    wanted |= {"dtype": torch.float64, "validation": None, "progress": False, "log_path": None, "path": out, "compare": ["kde"]}
    wanted |= {"targets": None, "supervision": 0.3, "warm_up": 2, "inputs": None, "validation_inputs": None, "validation_targets": None}
    assert seen == wanted


def test_options_have_the_names_and_defaults_of_ldmfilter() -> None:
    parameters = {name: parameter.default for name, parameter in inspect.signature(LDMFilter).parameters.items()}
    assert parameters.pop("state_dim") is inspect.Parameter.empty
    assert parameters.pop("dtype") is torch.float32
    options = {name: default for name, _, default, _ in MODEL_OPTIONS}
    assert (options.pop("state_dim"), options.pop("dtype")) == (4, "float32")
    assert options == parameters


@pytest.mark.parametrize(("word", "value"), [("7", 7), ("null", None), ("auto", "auto")])
def test_patience_is_a_number_null_or_auto(word: str, value: int | str | None) -> None:
    assert cli._parser().parse_args(["fit", "data.csv", "--out", "m", "--patience", word]).fit.patience == value


def test_config_file_validation_file_and_log(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fit.yaml").write_text("state_dim: 4\nreadout: linear\nwindow: 30\nepochs: 2\nmutual_information: false\n")
    words = ["fit", "--config", str(tmp_path / "fit.yaml"), str(folder / "data.csv"), "--state-dim", "3", "--validation", str(folder / "data.csv")]
    main([*words, "--out", str(tmp_path / "m.safetensors"), "--log", str(tmp_path / "log.jsonl")])
    model = LDMFilter.load(tmp_path / "m.safetensors")
    assert (model.state_dim, model.window, model.mutual_information) == (3, 30, False)
    assert len([json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]) == 2
    printed = capsys.readouterr()
    assert "LDMFilter(state_dim=3" in printed.out
    assert "epoch" in printed.err


def test_several_files_are_several_series(folder: Path, tmp_path: Path) -> None:
    write(frame(1).iloc[:50], tmp_path / "short.csv")
    files = [str(folder / "data.csv"), str(tmp_path / "short.csv")]
    main(["fit", *files, "--out", str(tmp_path / "model.safetensors"), *FIT])
    expected = LDMFilter(**TINY).fit([read(path) for path in files], epochs=1, progress=False)
    run(tmp_path, "forecast", *files, "--horizon", "2", "--out", str(tmp_path / "ahead.csv"))
    for i, wanted in enumerate(expected.forecast([read(path) for path in files], horizon=2)):
        np.testing.assert_allclose(read(tmp_path / f"ahead-{i}.csv").to_numpy(), wanted.to_numpy(), rtol=1e-6)
    assert not (tmp_path / "ahead.csv").exists()


def test_an_archive_of_series_beside_a_file(folder: Path, tmp_path: Path) -> None:
    write([values(1), values(2)[:40]], tmp_path / "two.npz")
    run(folder, "filter", str(tmp_path / "two.npz"), str(folder / "data.npy"), "--out", str(tmp_path / "states.nc"))
    assert [read(tmp_path / f"states-{i}.nc").sizes["time"] for i in range(3)] == [90, 40, 90]


def test_a_summary_without_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "filter", str(folder / "data.csv"))
    text = capsys.readouterr().out
    result = LDMFilter.load(folder / "model.safetensors").filter(read(folder / "data.csv"))
    seen = np.isfinite(result.nis.values)
    assert f"mean NIS {result.nis.values[seen].mean():.3f}" in text
    assert f"mean log-likelihood {result.log_likelihood.values[seen].mean():.3f}" in text
    assert "reconstruction_mean[heat]" in text
    assert "90 when" in text
    run(folder, "forecast", str(folder / "data.csv"), str(folder / "data.csv"), "--horizon", "3")
    text = capsys.readouterr().out
    assert "series 1:" in text
    assert "2025-01-05 15:00:00+02:00" in text


# ------------------------------------------------------------------------------------------------------- help and errors


def printed_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS, "compare"])
def test_help_teaches_by_examples_that_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "fit.yaml").write_text("state_dim: 4\nnoise: input\n")
    monkeypatch.chdir(tmp_path)
    text = printed_help(capsys, *command.split())
    examples = [line.split()[1:] for line in text.splitlines() if line.startswith("  ldm-filter ")]
    assert len(examples) >= 2
    for words in examples:
        assert cli._parser().parse_args(words).subcommand == words[0]
        assert command in ("", words[0])


def test_help_names_the_choices() -> None:
    texts = {name: text for name, _, _, text in MODEL_OPTIONS}
    for name, allowed in ((name, CHOICES[name]) for name in texts.keys() & CHOICES):
        assert all(choice in texts[name] for choice in allowed), f"the help of --{name} in cli.py should name {allowed}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"ldm-filter {version('ldm-filter')}"


ERRORS = {
    "no such folder": ("fit nothere --out m", "'nothere' is neither a file nor a folder"),
    "frames of no height": ("fit narrow.csv --size 0 24 --out m", "0 does not conform to restriction v>0"),
    "no command": ("", "subcommand"),
    "unknown command": ("polish", "invalid choice: 'polish'"),
    "unknown option": ("fit data.csv --out m --stat-dim 3", "--stat-dim"),
    "wrong type": ("fit data.csv --out m --state-dim many", "many"),
    "missing option": ("fit data.csv", "out"),
    "missing data": ("filter nothing.csv --model model.safetensors", "'nothing.csv' is not a file"),
    "missing model": ("filter data.csv --model none.safetensors", "none.safetensors"),
    "foreign model": ("smooth data.csv --model data.npy", "data.npy"),
    "unknown suffix": ("filter data.xlsx --model model.safetensors", "expected one of .csv"),
    "suffix of the result": ("filter data.csv --model none --out result.txt", "expected one of .csv"),
    "folder of the result": ("filter data.csv --model none --out no/result.nc", "create it first"),
    "folder of the model": ("fit data.csv --out no/m.safetensors", "create it first"),
    "folder of the log": ("fit data.csv --out m --log no/log.jsonl", "create it first"),
    "wrong channels": ("filter narrow.csv --model model.safetensors", "channel"),
    "wrong choice": ("fit data.csv --out m --noise loud", "'constant', 'input'"),
    "wrong level": ("forecast data.csv --model model.safetensors --horizon 3 --levels 80", "between 0 and 1"),
    "mixed kinds": ("filter data.csv data.npy --model model.safetensors", "mixes containers"),
    "not a table": ("filter series.npy --model model.safetensors --out states.csv", "write it as .nc"),
    "not a dataset": ("forecast data.csv --model model.safetensors --horizon 3 --out ahead.nc", "use .parquet or .csv"),
}


@pytest.mark.parametrize(("line", "message"), ERRORS.values(), ids=list(ERRORS))
def test_errors_are_one_line_and_status_2(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, line: str, message: str) -> None:
    monkeypatch.chdir(folder)
    write(frame()[["heat"]], folder / "narrow.csv")
    write(np.stack([values(1), values(2)]), folder / "series.npy")
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ldm-filter: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert printed.out == ""
    assert not (folder / "m").exists()


def test_a_missing_extra_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ldm_filter.data.io.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        run(folder, "filter", str(folder / "data.parquet"))
    assert stopped.value.code == 2
    assert "pip install ldm-filter[storage]" in capsys.readouterr().err


def test_other_exceptions_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LDMFilter, data: Any, inputs: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(LDMFilter, "filter", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(folder, "filter", str(folder / "data.csv"))


def test_from_a_shell(folder: Path) -> None:
    script = [sys.executable, "-m", "ldm_filter.cli", "forecast", "data.csv", "--model", "model.safetensors", "--horizon", "2", "--out"]
    good = subprocess.run([*script, "shell.csv"], cwd=folder, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, "wrote shell.csv\n"), good.stderr
    expected = LDMFilter.load(folder / "model.safetensors").forecast(read(folder / "data.csv"), horizon=2)
    np.testing.assert_allclose(read(folder / "shell.csv").to_numpy(), expected.to_numpy(), rtol=1e-6)


def test_help_needs_no_torch() -> None:
    """The module alone, without the package around it: what is slow is imported by the commands."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv.pop(1))['main'](['fit', '--help'])\n"
        "except SystemExit as stopped:\n    assert stopped.code == 0\n"
        "print('slow:', sorted({'torch', 'pandas', 'xarray', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, cli.__file__], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("slow: []\n")
    assert "--state-dim" in done.stdout


def test_targets_from_a_file(folder: Path, tmp_path: Path) -> None:
    targets = pd.DataFrame({"mean": frame().mean(axis=1)})
    targets.iloc[30:] = np.nan
    write(targets, tmp_path / "targets.csv")
    model = tmp_path / "told.safetensors"
    further = ["--targets", str(tmp_path / "targets.csv"), "--supervision", "0.5", "--warm-up", "1"]
    main(["fit", str(folder / "data.csv"), "--out", str(model), *FIT, *further])
    assert LDMFilter.load(model).filter(frame()).target.values.tolist() == ["mean"]


def test_targets_are_calibrated_on_the_held_out_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("day", 0), ("sunday", 5)):
        write(frame(seed), tmp_path / f"{name}.csv")
        write(pd.DataFrame({"mean": frame(seed).mean(axis=1).fillna(0.0)}), tmp_path / f"{name}-truth.csv")
    words = ["fit", "day.csv", "--targets", "day-truth.csv", "--validation", "sunday.csv", "--validation-targets", "sunday-truth.csv"]
    main([*words, "--out", "plain.safetensors", *FIT])
    plain = LDMFilter.load("plain.safetensors").filter(frame(5))
    for covariance in ("scaled", "state-dependent"):
        main([*words, "--calibrate-targets", covariance, "--out", "told.safetensors", *FIT])
        told = LDMFilter.load("told.safetensors").filter(frame(5))
        expected = LDMFilter.load("plain.safetensors").calibrate_targets(frame(5), read("sunday-truth.csv"), covariance).filter(frame(5))
        xr.testing.assert_allclose(told, expected)
        np.testing.assert_allclose(told.target_mean, plain.target_mean)
        assert not np.allclose(told.target_cov, plain.target_cov, rtol=1e-3)


def test_columns_are_known_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Named once, in the fit; a forecast finds those of the steps to come in the last rows."""
    monkeypatch.chdir(tmp_path)
    data = frame().assign(valve=np.sin(np.arange(90) / 7), pump=np.cos(np.arange(90) / 5))
    ahead = data.copy()
    ahead.loc[ahead.index[-5:], ["heat", "load", "wind"]] = np.nan
    write(data, tmp_path / "data.csv")
    write(ahead, tmp_path / "ahead.csv")
    main(["fit", "data.csv", "--inputs", "pump", "valve", "--validation", "data.csv", "--out", "m.safetensors", *FIT])
    model, known = LDMFilter.load("m.safetensors"), data[["pump", "valve"]]
    assert list(model.labels_.channels) == ["heat", "load", "wind"] and list(model.input_labels_.channels) == ["pump", "valve"]
    main(["filter", "data.csv", "--model", "m.safetensors", "--out", "states.nc"])
    np.testing.assert_allclose(read("states.nc").filtered_mean, model.filter(frame(), inputs=known).filtered_mean, rtol=1e-5)
    main(["forecast", "ahead.csv", "--model", "m.safetensors", "--horizon", "5", "--out", "next.csv"])
    np.testing.assert_allclose(read("next.csv").to_numpy(), model.forecast(frame().iloc[:-5], 5, inputs=known).to_numpy(), rtol=1e-5)
    main(
        ["compare", "data.csv", "--model", "m.safetensors", "--train", "data.csv", "--baselines", "hold-last", "--horizon", "3", "--out", "table.csv"]
    )
    main(["report", "data.csv", "--model", "m.safetensors", "--out", "report.html"])
    assert "pump" in (tmp_path / "report.html").read_text()
    write(values(), tmp_path / "data.npy")
    for words, told in (
        ("forecast data.csv --model m.safetensors --horizon 5", "the last 5 rows must hold those of the steps to forecast"),
        ("fit data.csv --inputs tap --out n", "inputs ['tap'] are no columns of the data"),
        ("fit data.csv --inputs heat load wind pump valve --out n", "leave at least one that is observed"),
        ("fit data.npy --inputs tap --out n", "columns of a table, and the data are a ndarray"),
        ("fit data.csv --calibrate-targets scaled --out n", "--calibrate-targets needs --targets"),
    ):
        with pytest.raises(SystemExit):
            main(words.split())
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fit", "the following arguments are required: DATA, --out (see ldm-filter --help)"),
        ("forecast data.csv --model model.safetensors", "the following arguments are required: --horizon"),
        ("fit data.csv --out model.safetensors --state-dim two", "--state-dim is two, expected int or 'auto' (see"),
        ("fit data.csv --out model.safetensors --patience soon", "--patience is soon, expected int or 'auto' or null (see"),
        ("fit data.csv --out model.safetensors --seed one", "--seed is one, expected int (see"),
    ],
)
def test_errors_name_options_as_they_are_typed(capsys: pytest.CaptureFixture[str], words: str, told: str) -> None:
    with pytest.raises(SystemExit):
        main(words.split())
    assert told in capsys.readouterr().err


def test_the_size_of_the_state_may_be_left_open(tmp_path: Path, folder: Path) -> None:
    main(
        [
            "fit",
            str(folder / "data.csv"),
            "--out",
            str(tmp_path / "m.safetensors"),
            "--state-dim",
            "auto",
            "--epochs",
            "1",
            "--quiet",
            "--readout",
            "linear",
        ]
    )
    assert isinstance(LDMFilter.load(tmp_path / "m.safetensors").state_dim, int)
