"""The program ``ldm-filter``: its commands and their options.

Only jsonargparse is imported to start with; torch, pandas and xarray come with the command that needs them, so that help is quick.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from ldm_filter.commands.compare import COMPARE, add_options

__all__ = ["main"]

ABOUT = """Kalman filtering of whatever a network can look at, trained without labels.

  ldm-filter fit      log.csv --state-dim 4 --out model.safetensors
  ldm-filter filter   new.csv --model model.safetensors --out states.nc
  ldm-filter forecast new.csv --model model.safetensors --horizon 24
  sensor | ldm-filter stream --model model.safetensors --state state.npz

Every command has a --help with an example, and takes options from a YAML file with --config."""

DATA = """Data: .csv and .parquet (a row per time step, a column per channel; a first column called time or date, or
holding dates, is the time), .nc, .npy (time, channel) or (series, time, channel), .npz. Empty and NaN mean missing.
Video: .mp4, .avi, .mov, .mkv, .webm, or a folder of them; dropped and repeated frames are missing."""

FIT = f"""Train a model on series without labels.

Examples:
  ldm-filter fit log.csv --state-dim 4 --out model.safetensors
  ldm-filter fit monday.csv tuesday.csv --out model.safetensors --validation sunday.csv --log log.jsonl
  ldm-filter fit clips/ --size 32 32 --state-dim 6 --out model.safetensors
  ldm-filter fit --config fit.yaml log.csv --out model.safetensors
where fit.yaml holds options, with underscores, such as
  state_dim: 4
  noise: input
--print_config shows them all; what follows --config on the command line wins over the file.

{DATA}
Several files are several series, of any lengths."""

FILTER = f"""The state at every step, from the data up to that step.

Examples:
  ldm-filter filter log.csv --model model.safetensors
  ldm-filter filter log.csv --model model.safetensors --out states.nc
  ldm-filter filter log.csv --model model.safetensors --out states.csv
  ldm-filter filter clip.mp4 --model model.safetensors --out states.nc --overlay drawn.mp4

{DATA}
Result: .nc holds everything, with covariances; .csv and .parquet a flat table of means and standard deviations."""

SMOOTH = f"""The state at every step, from all of the data: gaps are filled from both sides.

Examples:
  ldm-filter smooth log.csv --model model.safetensors --out smoothed.csv
  ldm-filter smooth log.csv --model model.safetensors --out smoothed.nc

{DATA}
Result: .nc holds everything, with covariances; .csv and .parquet a flat table of means and standard deviations."""

FORECAST = f"""The observations that follow the data, with prediction intervals.

Examples:
  ldm-filter forecast log.csv --model model.safetensors --horizon 24
  ldm-filter forecast log.csv --model model.safetensors --horizon 24 --levels 0.5 0.95 --out forecast.csv

{DATA}
Result: for tables a table with columns "channel mean", "channel std", "channel lo-80", "channel hi-80" and so on, at
the times that continue the data's; write it as .csv or .parquet. For arrays and NetCDF files a Dataset, also as .nc."""

REPORT = f"""One HTML file about a model on data: fit, filter, forecast, diagnostics, classical baselines.

Examples:
  ldm-filter report sunday.csv --model model.safetensors --out report.html
  ldm-filter report sunday.csv --model model.safetensors --out report.html --horizon 48 --title "Boiler, sundays"

{DATA}
Best of data that the model was not fitted on. The file holds its pictures; nothing in it points elsewhere."""

STREAM = """Estimates for lines as they come: CSV or JSON from stdin, to stdout at once.

Examples:
  sensor | ldm-filter stream --model model.safetensors
  sensor | ldm-filter stream --model model.safetensors --state state.npz --gate hard > states.jsonl
  tail -f log.csv | ldm-filter stream --model model.safetensors --lag 50 --output csv

CSV: a header of channels, with time in front if there is one, or the channels in the order of the fit. JSON: an
object of channels with "time", or a list. Empty, NaN and null mean missing. Times are seconds or dates.
A line that cannot be read is reported on stderr with its number and skipped. With --state the filter goes on where
it ended; SIGTERM and the end of the input save it, and kill -9 loses at most the lines since the last saving."""

# Arguments of LDMFilter: name, type, default, help. A test holds names, defaults and choices against the class.
MODEL_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("state_dim", int, 4, "size of the latent state; a motion that holds k frequencies needs 2 k"),
    ("latent_dim", int | None, None, "size of the encoder's output; null: that of the state, at most the number of channels"),
    ("encoder", str, "auto", "auto, mlp, conv (for frames) or linear"),
    ("dynamics", str, "linear", "linear, continuous (irregular times), locally-linear, ekf, ukf, polynomial; recurrent: one-step predictions alone"),
    ("noise", str, "constant", "constant, input (R of the observation), state (R of the state), adaptive (Q grows after surprises)"),
    (
        "objective",
        str,
        "auto",
        "entropy estimator: auto, log-det, conditional-log-det, scale-mixture, knn, kde, jacobian, stop-gradient; "
        "or a method: kalman, ica, temporal-ica, vicreg, vicreg-hinge, simclr, cpc, byol, simsiam, jepa",
    ),
    (
        "latent_model",
        str,
        "auto",
        "what predicts the latents in training: auto or dynamics (the filter), recurrent, pair, pair-predictor, pair-regression, sources",
    ),
    ("space", str, "plane", "where the latents live: plane, or sphere"),
    ("mutual_information", bool, True, "maximise F_MI (true) or F_LDM (false)"),
    ("readout", str, "auto", "from the state back to the data: auto, linear or mlp"),
    ("transition_cov", str, "full", "full or diagonal"),
    ("observation", str, "learned", "observation matrix: learned, or selector for [I 0]"),
    ("window", int | None, None, "steps of a training window; null: up to 100"),
    ("learning_rate", float, 3e-3, "peak rate of the encoder"),
    ("dynamics_rate", float, 10.0, "rate of the dynamics, as a multiple"),
    ("mask_rate", float | None, None, "share of entries hidden in training; null: 0.1 where single channels are missing, else 0"),
    ("seed", int, 0, "of everything random"),
    ("device", str, "auto", "auto, cpu or cuda"),
    ("dtype", Literal["float32", "float64"], "float32", "precision of the model"),
    ("devices", int, 1, "number of devices, for data-parallel training"),
    ("precision", str | None, None, "of Lightning Fabric, such as bf16-mixed; null: that of dtype"),
)


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults of the options, and examples with their line breaks."""


class _Parser(ArgumentParser):
    """Errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _fail(f"{message} (see {self.prog.split(' [')[0]} --help)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; the entry point ``ldm-filter``.

    Args:
        arguments: words after the program's name; default those of the shell.

    Raises:
        SystemExit: with status 2 and one line on stderr where the user can mend something, 0 after --help and --version.
    """
    options = _parser().parse_args(None if arguments is None else list(arguments))
    command = options.subcommand
    try:
        if command == "fit":
            _fit(options.fit)
        elif command == "report":
            _report(options.report)
        elif command == "compare":
            from ldm_filter.commands.compare import run_compare

            run_compare(options.compare)
        elif command == "stream":
            from ldm_filter.commands.stream import run_stream

            run_stream(options.stream)
        else:
            _infer(command, options[command])
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:  # CheckpointError is a ValueError
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"ldm-filter: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


# --------------------------------------------------------------------------------------------------------------- options


def _parser() -> ArgumentParser:
    parser = _Parser(prog="ldm-filter", description=ABOUT, formatter_class=_Help, version=version("ldm-filter"))
    commands = parser.add_subcommands(title="commands")
    commands.add_subcommand("fit", _fit_parser(), help="train a model and save it")
    commands.add_subcommand("filter", _filter_parser(), help="the state at every step, from the data so far")
    commands.add_subcommand("smooth", _result_parser(SMOOTH), help="the state at every step, from all data")
    commands.add_subcommand("forecast", _forecast_parser(), help="the observations to come, with intervals")
    commands.add_subcommand("compare", add_options(_new_parser(COMPARE)), help="a model beside classical methods")
    commands.add_subcommand("report", _report_parser(), help="one HTML file about a model on data")
    commands.add_subcommand("stream", _stream_parser(), help="estimates for lines as they come")
    return parser


def _new_parser(description: str) -> ArgumentParser:
    parser = _Parser(description=description, formatter_class=_Help)
    parser.add_argument("data", nargs="+", type=str, metavar="DATA", help="files, one or more")
    parser.add_argument("--config", action="config", help="YAML file with options")
    return parser


def _fit_parser() -> ArgumentParser:
    parser = _new_parser(FIT)
    parser.add_argument("--out", type=str, required=True, help="file for the model, such as model.safetensors")
    parser.add_argument("--epochs", type=int | None, default=None, help="passes over the data; null: 20, more for small data")
    parser.add_argument("--batch-size", type=int | None, default=None, help="windows per update; null: up to 32")
    parser.add_argument("--validation", type=float | str | None, default=0.1, help="held-out file, or share of the data to hold out, or null")
    parser.add_argument("--log", type=str | None, default=None, help="JSONL file; a line per epoch is appended")
    parser.add_argument("--compare", nargs="*", type=str, default=[], help="estimators whose gradients the log compares with the objective's")
    parser.add_argument("--targets", nargs="*", type=str, default=[], help="files with a row per step of the data: quantities to learn a read-out of")
    parser.add_argument("--supervision", type=float | None, default=None, help="weight of the targets, up to 1, the targets alone; null: 1, or 0.5")
    parser.add_argument("--warm-up", type=int, default=0, help="epochs in which the encoder alone learns to see the targets, before the others")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    video = parser.add_argument_group("video")
    video.add_argument("--size", nargs=2, type=int, default=None, help="height and width that frames are resized to; null: as in the file")
    video.add_argument("--colour", action="store_true", help="RGB instead of grey")
    video.add_argument("--memory", type=float, default=1.0, help="gigabytes of frames to keep; of more, evenly spread windows")
    model = parser.add_argument_group("model")
    for name, kind, default, text in MODEL_OPTIONS:
        model.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    return parser


def _result_parser(description: str) -> ArgumentParser:
    parser = _new_parser(description)
    parser.add_argument("--model", type=str, required=True, help="file that fit wrote")
    parser.add_argument("--out", type=str | None, default=None, help="file for the result; null: a summary is printed")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    return parser


def _filter_parser() -> ArgumentParser:
    parser = _result_parser(FILTER)
    parser.add_argument("--gate", type=str | None, default=None, help="against outliers: hard, inflate or student-t; null: none")
    parser.add_argument("--overlay", type=str | None, default=None, help="of a clip: file for the clip with the estimate drawn in, such as out.mp4")
    return parser


def _forecast_parser() -> ArgumentParser:
    parser = _result_parser(FORECAST)
    parser.add_argument("--horizon", type=int, required=True, help="number of steps after the data")
    parser.add_argument("--levels", nargs="+", type=float, default=[0.8, 0.95], help="central prediction intervals, shares in (0, 1)")
    return parser


def _report_parser() -> ArgumentParser:
    parser = _new_parser(REPORT)
    parser.add_argument("--model", type=str, required=True, help="file that fit wrote")
    parser.add_argument("--out", type=str, required=True, help="file for the report, such as report.html")
    parser.add_argument("--title", type=str, default="Report", help="of the page")
    parser.add_argument("--horizon", type=int | None, default=None, help="steps of the forecast; null: a tenth of the series, at most 100")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    return parser


def _stream_parser() -> ArgumentParser:
    parser = _Parser(description=STREAM, formatter_class=_Help)
    parser.add_argument("--config", action="config", help="YAML file with options")
    parser.add_argument("--model", type=str, required=True, help="file that fit wrote")
    parser.add_argument("--state", type=str | None, default=None, help="file of the state, such as state.npz; null: nothing is kept")
    parser.add_argument("--save-every", type=int, default=1000, help="lines between savings of the state")
    parser.add_argument("--lag", type=int, default=0, help="steps that a line may come late")
    parser.add_argument("--gate", type=str | None, default=None, help="against outliers: hard, inflate or student-t; null: none")
    parser.add_argument("--gate-probability", type=float, default=0.999, help="that a true observation passes the gate")
    parser.add_argument("--output", type=str, default="same", help="json, csv, or same as the input")
    return parser


# -------------------------------------------------------------------------------------------------------------- commands


def _fit(options: Namespace) -> None:
    import torch

    from ldm_filter.data.io import check_folder
    from ldm_filter.estimator import LDMFilter

    for path in (options.out, options.log):  # before hours of training
        if path is not None:
            check_folder(path)
    arguments = {name: options[name] for name, *_ in MODEL_OPTIONS} | {"dtype": getattr(torch, options.dtype)}
    validation = _read([options.validation]) if isinstance(options.validation, str) else options.validation
    data = _read_clips(options) if _is_video(options.data) else _read(options.data)
    model = LDMFilter(**arguments).fit(
        data,
        validation=validation,
        epochs=options.epochs,
        batch_size=options.batch_size,
        progress=not options.quiet,
        log_path=options.log,
        compare=options.compare,
        targets=_read(options.targets) if options.targets else None,
        supervision=options.supervision,
        warm_up=options.warm_up,
    )
    model.save(options.out)
    if not options.quiet:
        print("\n".join([*model.history_.events, f"wrote {options.out}: {model} after {len(model.history_.epochs)} epoch(s)"]))


def _infer(command: str, options: Namespace) -> None:
    from ldm_filter.data.io import check_writable
    from ldm_filter.estimator import LDMFilter

    if options.out is not None:
        check_writable(options.out)
    model = LDMFilter.load(options.model, device=options.device)
    if command == "filter" and (_is_video(options.data) or options.overlay is not None):
        _filter_clips(model, options)
        return
    further = {"horizon": options.horizon, "levels": options.levels} if command == "forecast" else {}
    further |= {"gate": options.gate} if command == "filter" and options.gate is not None else {}
    result = getattr(model, command)(_read(options.data), **further)
    if options.out is None:
        _show(result)
    else:
        _write(result, Path(options.out))


def _is_video(paths: Sequence[str]) -> bool:
    from ldm_filter.data.video import VIDEO_SUFFIXES

    return any(Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES for path in paths)


def _read_clips(options: Namespace) -> Any:
    """The frames that training sees: all of them, or evenly spread windows where they are too many."""
    from ldm_filter.data.video import clips, read_windows

    paths = [clip for path in options.data for clip in clips(path)]
    window = options.window or 100
    return read_windows(paths, tuple(options.size) if options.size else None, options.colour, window, int(options.memory * 2**30))


def _filter_clips(model: Any, options: Namespace) -> None:
    """Clip by clip, each while it is read."""
    from ldm_filter.data.video import clips
    from ldm_filter.estimator.video import filter_video
    from ldm_filter.plots.overlay import write_overlay

    paths = [clip for path in options.data for clip in clips(path)]
    if options.overlay is not None and len(paths) > 1:
        raise ValueError(f"--overlay draws one clip, and {len(paths)} were given; call the command for each")
    for path in paths:
        if options.overlay is None or options.out is not None:
            result = filter_video(model, path, options.gate)
            target = None if options.out is None else Path(options.out)
            if target is None:
                _show(result)
            else:
                _write(result, target if len(paths) == 1 else target.with_stem(f"{target.stem}-{path.stem}"))
        if options.overlay is not None:
            print(f"wrote {options.overlay}: {write_overlay(model, path, options.overlay, options.gate)} frames")


def _report(options: Namespace) -> None:
    from ldm_filter.estimator import LDMFilter
    from ldm_filter.report import write_report

    model = LDMFilter.load(options.model, device=options.device)
    write_report(model, _read(options.data), options.out, title=options.title, horizon=options.horizon, source=" ".join(options.data))
    print(f"wrote {options.out}")


def _read(paths: Sequence[str]) -> Any:
    """One container for one file, a list of series for several."""
    from ldm_filter.data.io import read_all

    return read_all(paths)


def _write(result: Any, path: Path) -> None:
    """One file, or numbered ones for a list of series."""
    from ldm_filter.data.io import write
    from ldm_filter.data.tables import table

    numbered = [(path.with_stem(f"{path.stem}-{i}"), item) for i, item in enumerate(result)] if isinstance(result, list) else [(path, result)]
    for target, item in numbered:
        write(table(item) if target.suffix.lower() in (".csv", ".parquet") else item, target)
        print(f"wrote {target}")


def _show(result: Any) -> None:
    from ldm_filter.data.tables import summary

    for i, item in enumerate(result if isinstance(result, list) else [result]):
        print(f"series {i}:\n{summary(item)}" if isinstance(result, list) else summary(item))


if __name__ == "__main__":
    main()
