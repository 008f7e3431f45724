"""The commands that read data, ask the estimator and write or show what it says.

torch, pandas and xarray come with the command that needs them, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ldm_filter.commands.inputs import input_names, split

__all__ = ["run_fit", "run_infer", "run_report"]


def run_fit(options: Namespace, names: Iterable[str]) -> None:
    import torch

    from ldm_filter.data.io import check_folder
    from ldm_filter.estimator import LDMFilter

    for path in (options.out, options.log):  # before hours of training
        if path is not None:
            check_folder(path)
    if options.calibrate_targets and not (options.targets and options.validation_targets and isinstance(options.validation, str)):
        raise ValueError("--calibrate-targets needs --targets, and series held out from the fit: --validation FILE with --validation-targets FILE")
    arguments = {name: options[name] for name in names} | {"dtype": getattr(torch, options.dtype)}

    def read(paths: Sequence[str]) -> tuple[Any, Any]:
        return split(_clips(options, paths) if _is_video(paths) else _read(paths), options.inputs)

    (data, inputs), held_targets = read(options.data), _read(options.validation_targets) if options.validation_targets else None
    held, held_inputs = read([options.validation]) if isinstance(options.validation, str) else (options.validation, None)
    model = LDMFilter(**arguments).fit(
        data,
        inputs=inputs,
        validation=held,
        validation_inputs=held_inputs,
        epochs=options.epochs,
        batch_size=options.batch_size,
        progress=not options.quiet,
        log_path=options.log,
        compare=options.compare,
        targets=_read(options.targets) if options.targets else None,
        validation_targets=held_targets,
        supervision=options.supervision,
        warm_up=options.warm_up,
    )
    if options.calibrate_targets:
        model.calibrate_targets(held, held_targets, options.calibrate_targets, held_inputs)
    model.save(options.out)
    if not options.quiet:
        print("\n".join([*model.history_.events, f"wrote {options.out}: {model} after {len(model.history_.epochs)} epoch(s)"]))


def run_infer(command: str, options: Namespace) -> None:
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
    data, inputs = split(_read(options.data), input_names(model), further.get("horizon", 0))
    result = getattr(model, command)(data, inputs=inputs, **further)
    if options.out is None:
        _show(result)
    else:
        _write(result, Path(options.out))


def _is_video(paths: Sequence[str]) -> bool:
    from ldm_filter.data.video import VIDEO_SUFFIXES

    return any(Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES for path in paths)


def _clips(options: Namespace, paths: Sequence[str]) -> Any:
    """Clips that stay in their files."""
    from ldm_filter.data import Clips

    return Clips(paths, tuple(options.size) if options.size else None, options.colour, int(options.memory * 2**30))


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


def run_report(options: Namespace) -> None:
    from ldm_filter.estimator import LDMFilter
    from ldm_filter.report import write_report

    model = LDMFilter.load(options.model, device=options.device)
    data, inputs = split(_read(options.data), input_names(model))
    write_report(model, data, options.out, title=options.title, horizon=options.horizon, source=" ".join(options.data), inputs=inputs)
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
