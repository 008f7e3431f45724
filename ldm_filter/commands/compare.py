"""``ldm-filter compare``: a model beside classical methods on the same files."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ldm_filter.commands.inputs import input_names, split

__all__ = ["COMPARE", "add_options", "run_compare"]

COMPARE = """A model beside classical filters and rules of thumb: the same data, splits and questions for all.

Examples:
  ldm-filter compare new.csv --model model.safetensors --train log.csv
  ldm-filter compare new.csv --model model.safetensors --train log.csv --baselines hold-last var6 pca-em-kf --plot compare.png
  ldm-filter compare new.csv --model model.safetensors --train log.csv --season 24 --horizon 48 --out table.csv"""


def add_options(parser: ArgumentParser) -> ArgumentParser:
    """The options of the command."""
    parser.add_argument("--model", type=str, required=True, help="file that fit wrote")
    parser.add_argument("--train", nargs="+", type=str, required=True, metavar="TRAIN", help="files that the model was fitted on")
    parser.add_argument("--baselines", nargs="+", type=str, default=["auto"], help="names such as hold-last, cv-kf, var6, pca-em-kf, uc; or auto")
    parser.add_argument("--horizon", type=int, default=12, help="steps ahead of the forecasts")
    parser.add_argument("--gap", type=int, default=8, help="steps of the gaps that are cut into the data")
    parser.add_argument("--season", type=int | None, default=None, help="steps of a season; null: none")
    parser.add_argument("--out", type=str | None, default=None, help="CSV file for the table; null: it is printed")
    parser.add_argument("--plot", type=str | None, default=None, help="file for the picture, such as compare.png")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    return parser


def run_compare(options: Namespace) -> None:
    """Run the command."""
    from ldm_filter.data.io import check_folder, read_all
    from ldm_filter.estimator import LDMFilter

    for path in (options.out, options.plot):
        if path is not None:
            check_folder(path)
    model = LDMFilter.load(options.model, device=options.device)
    names = "auto" if options.baselines == ["auto"] else options.baselines
    (data, inputs), (train, train_inputs) = (split(read_all(paths), input_names(model)) for paths in (options.data, options.train))
    sizes = {"horizon": options.horizon, "gap": options.gap, "season": options.season}
    found = model.compare(data, train, names, inputs=inputs, train_inputs=train_inputs, **sizes)
    if options.out is None:
        print(found)
    else:
        found.table.to_csv(Path(options.out))
        print(f"wrote {options.out}")
    if options.plot is not None:
        found.plot().savefig(options.plot)
        print(f"wrote {options.plot}")
