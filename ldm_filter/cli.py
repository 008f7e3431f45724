"""The program ``ldm-filter``: its commands and their options.

Only jsonargparse is imported to start with; torch, pandas and xarray come with the command that needs them, so that help is quick.
"""

from __future__ import annotations

import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import PositiveInt

from ldm_filter.commands.compare import COMPARE, add_options
from ldm_filter.commands.run import run_fit, run_infer, run_report
from ldm_filter.commands.texts import FILTER, FIT, FORECAST, REPORT, SMOOTH, STREAM

__all__ = ["main"]

ABOUT = """Kalman filtering of whatever a network can look at, trained without labels.

  ldm-filter fit      log.csv --state-dim 4 --out model.safetensors
  ldm-filter filter   new.csv --model model.safetensors --out states.nc
  ldm-filter forecast new.csv --model model.safetensors --horizon 24
  sensor | ldm-filter stream --model model.safetensors --state state.npz

Every command has a --help with an example, and takes options from a YAML file with --config."""

# Arguments of LDMFilter: name, type, default, help. A test holds names, defaults and choices against the class.
MODEL_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("state_dim", int | Literal["auto"], 4, "size of the latent state; a motion that holds k frequencies needs 2 k; auto: by held-out likelihood"),
    ("latent_dim", int | None, None, "size of the encoder's output; null: that of the state, at most the number of channels"),
    ("encoder", str, "auto", "auto, mlp, mlp-noise (is also shown the noise level), conv (for frames) or linear"),
    ("dynamics", str, "linear", "linear, continuous (irregular times), locally-linear, ekf, ukf, polynomial; recurrent: one-step predictions alone"),
    ("noise", str, "constant", "constant, input (R of the observation), state (R of the state), adaptive (Q grows after surprises), jump"),
    (
        "objective",
        str,
        "auto",
        "entropy estimator: auto, log-det, conditional-log-det, scale-mixture, knn, kde, annealed-knn, annealed-kde, jacobian, stop-gradient; "
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
    (
        "patience",
        int | Literal["auto"] | None,
        "auto",
        "epochs without a lower loss after which fit stops; null: never; auto: 10, never with targets",
    ),
    ("tolerance", float, 0.0, "nats per step by which the loss must be lower for the patience to begin anew"),
    ("seed", int, 0, "of everything random"),
    ("device", str, "auto", "auto, cpu or cuda"),
    ("dtype", Literal["float32", "float64"], "float32", "precision of the model"),
    ("devices", int, 1, "number of devices, for data-parallel training"),
    ("precision", str | None, None, "of Lightning Fabric, such as bf16-mixed; null: that of dtype"),
    ("settle_within", int | None, None, "with noise jump: steps after a jump until the predicted covariance is back; null: as learned"),
)


COMMANDS = ("fit", "filter", "smooth", "forecast", "compare", "report", "stream")


def _typed(name: str) -> str:
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _plain(message: str) -> str:
    """A parser's error in the words of its user: options as they are typed, and what one may be."""
    line = " ".join(message.split())
    refused = re.match(r'Parser key "(\w+)": .*(?:Given|Got) value: (.*)', line)
    if refused:
        kinds = [kind or literal for kind, literal in re.findall(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])", line)]
        if kinds:
            return f"{_typed(refused[1])} is {refused[2]}, expected {' or '.join(kinds).replace('NoneType', 'null')}"
    return re.sub(rf"\b(?:{'|'.join(COMMANDS)})\.(\w+)", lambda found: _typed(found[1]), line)


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults of the options, and examples with their line breaks."""


class _Parser(ArgumentParser):
    """Errors in one line, with options as they are typed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _fail(f"{_plain(message)} (see {self.prog.split(' [')[0]} --help)")


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
            run_fit(options.fit, [name for name, *_ in MODEL_OPTIONS])
        elif command == "report":
            run_report(options.report)
        elif command == "compare":
            from ldm_filter.commands.compare import run_compare

            run_compare(options.compare)
        elif command == "stream":
            from ldm_filter.commands.stream import run_stream

            run_stream(options.stream)
        else:
            run_infer(command, options[command])
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
    parser.add_argument("--inputs", nargs="*", type=str, default=[], help="columns of the data that are known inputs, of the other files as well")
    parser.add_argument("--targets", nargs="*", type=str, default=[], help="files with a row per step of the data: quantities to learn a read-out of")
    parser.add_argument("--validation-targets", nargs="*", type=str, default=[], help="the same of the held-out file")
    parser.add_argument(
        "--calibrate-targets",
        type=Literal["scaled", "state-dependent"] | None,
        default=None,
        help="after the fit set the targets' covariance on the held-out file: scaled (by one factor), or state-dependent; null: as trained",
    )
    parser.add_argument("--supervision", type=float | None, default=None, help="weight of the targets, up to 1, the targets alone; null: 1, or 0.5")
    parser.add_argument("--warm-up", type=int, default=0, help="epochs in which the encoder alone learns to see the targets, before the others")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    video = parser.add_argument_group("video")
    video.add_argument("--size", nargs=2, type=PositiveInt, default=None, help="height and width that frames are resized to; null: as in the file")
    video.add_argument("--colour", action="store_true", help="RGB instead of grey")
    video.add_argument("--memory", type=float, default=1.0, help="gigabytes of decoded frames to keep; of more, decoded again when they are needed")
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


if __name__ == "__main__":
    main()
