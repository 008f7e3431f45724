"""Results tables, generated: ``python -m benchmarks.tables`` rewrites what stands between the markers of the two READMEs.

Every figure comes from the JSON lines of ``benchmarks/results``, except the published ones, which are quoted beside the tasks' settings.
Runs of the ``smoke`` budget claim nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks import calibration_plot, cells, framework_methods, records
from benchmarks.ablations import ABLATIONS, sentence
from benchmarks.budgets import budget_table
from benchmarks.calibration_table import calibration_table
from benchmarks.cells import Code
from benchmarks.dot_methods import default_methods
from benchmarks.dot_tasks import SETTINGS
from benchmarks.families import PUBLISHED, current_code
from benchmarks.goals import goals_table
from benchmarks.markdown import replace_between, table
from benchmarks.records import Row

__all__ = ["ablation_tables", "framework_tables", "full_tables", "summary_table", "update"]

FULL = ("<!-- tables:begin -->", "<!-- tables:end -->")
ABLATED = ("<!-- ablations:begin -->", "<!-- ablations:end -->")
FRAMEWORK = ("<!-- framework:begin -->", "<!-- framework:end -->")
BUDGETS = ("<!-- budgets:begin -->", "<!-- budgets:end -->")
CALIBRATION = ("<!-- calibration:begin -->", "<!-- calibration:end -->")
GOALS = ("<!-- goals:begin -->", "<!-- goals:end -->")
SUMMARY = ("<!-- results:begin -->", "<!-- results:end -->")
NOTHING = "No results yet: `python -m benchmarks.quality --task all --budget cpu --seeds 3` makes them."
# (name in the results, heading, format)
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("r2", "R²", ".4f"),
    ("affine_r2", "R² of the truth", ".4f"),
    ("affine_r2_in_range", "R² in range", ".4f"),
    ("r2_position", "R², position", ".4f"),
    ("r2_angle", "R², angle", ".4f"),
    ("r2_cos", "R², cos", ".4f"),
    ("r2_sin", "R², sin", ".4f"),
    ("r2_velocity", "R², velocity", ".4f"),
    ("r2_angular_velocity", "R², angular velocity", ".4f"),
    ("mlp_r2", "R², MLP", ".4f"),
    ("mse", "MSE", ".1e"),
    ("db", "MSE, dB", ".2f"),
    ("db_smoothed", "smoothed, dB", ".2f"),
    ("rmse", "RMSE", ".4f"),
    ("excess", "excess error", ".2f"),
    ("mlp_excess", "excess error, MLP", ".2f"),
    ("nis", "NIS / m", ".2f"),
    ("nees", "NEES / d", ".2f"),
    ("coverage50", "in 50 %", ".3f"),
    ("coverage80", "in 80 %", ".3f"),
    ("coverage95", "in 95 %", ".3f"),
    ("coverage80_conformal", "in 80 %, conformal", ".3f"),
    ("coverage95_conformal", "in 95 %, conformal", ".3f"),
    ("coverage50_turned", "in 50 %, turned", ".3f"),
    ("coverage95_turned", "in 95 %, turned", ".3f"),
    ("pit_distance", "PIT", ".3f"),
    ("pit_distance_turned", "PIT, turned", ".3f"),
    ("nees_scaled", "NEES / d, scaled", ".2f"),
    ("coverage95_scaled", "in 95 %, scaled", ".3f"),
    ("coverage95_clean", "in 95 %, turned, clean third", ".3f"),
    ("coverage95_noisy", "in 95 %, turned, noisy third", ".3f"),
    ("auc", "AUC of jumps", ".3f"),
    ("growth", "error grows by, %", ".2f"),
    ("settled", "settled after, steps", ".0f"),
    ("settled_most", "at most", ".0f"),
    ("step_us", "step, µs", ".0f"),
    ("step_us_first", "first tenth", ".0f"),
    ("step_us_last", "last tenth", ".0f"),
    ("steps", "steps", ".0e"),
    ("grown_mib", "memory grows by, MiB", ".1f"),
    ("state_kib", "state, KiB", ".1f"),
    ("nll", "NLL", ".2f"),
    ("nll_scaled", "NLL, scaled", ".2f"),
    ("nll_turned", "NLL, turned", ".2f"),
    ("nll_full", "NLL, whole covariance", ".2f"),
    ("crps", "CRPS", ".4f"),
    ("noise_corr", "corr(R, v)", ".3f"),
    ("affine_r2_back", "R² back", ".4f"),
    ("mcc", "MCC", ".4f"),
    ("procrustes", "Procrustes", ".4f"),
    ("eig_error", "eigenvalues", ".4f"),
    ("dyn_r2", "dynR²", ".4f"),
    ("injectivity", "injectivity", ".3f"),
    ("neighbours", "neighbours", ".2f"),
    ("fit_seconds", "fit, s", ".0f"),
    ("r2_at_60s", "R² within 60 s", ".4f"),
)
SUMMARY_COLUMNS = (
    ("coverage95", "in 95 % ellipse", ".3f"),
    ("coverage95_turned", "in 95 %, turned", ".3f"),
    ("nis", "NIS / m", ".2f"),
    ("fit_seconds", "fit, s", ".0f"),
)
ABLATION_COLUMNS = ("r2", "mse", "excess", "nis", "coverage95", "coverage95_scaled", "nll", "noise_corr", "fit_seconds")
PUBLISHED_COLUMNS = ("r2", "mlp_r2", "nis", "coverage95", "affine_r2", "affine_r2_in_range", "db", "db_smoothed", "nll", "mse")


def full_tables(rows: Sequence[Row], code: Code) -> str:
    """One table per task, condition and budget: every method, mean and spread over seeds, the published figures below.

    Args:
        rows: runs, see `records.read`.
        code: of today; methods with runs by other code are marked.
    """
    parts = []
    for task, condition, budget in cells.groups(rows):
        if (task, condition) in ABLATIONS or condition == framework_methods.CONDITION:
            continue
        group = [row for row in records.newest(rows) if (row["task"], row["condition"], row["budget"]) == (task, condition, budget)]
        title = ", ".join(part for part in (f"`{task}`", condition, f"budget {budget}") if part)
        parts.append(f"### {title}\n\n{_task_table(task, group, code)}\n\n{cells.footer(group, code)}")
    return "\n\n".join(parts) or NOTHING


def summary_table(rows: Sequence[Row], code: Code) -> str:
    """One line per task: the learned filter (with its default objective) beside the best classical one, the exact one and the paper."""
    lines, used = [], []
    for task, condition, budget in cells.groups(rows):
        group = [row for row in records.newest(rows) if (row["task"], row["condition"], row["budget"]) == (task, condition, budget)]
        ours = [row for row in group if task in SETTINGS and row["method"] == default_methods(task)[0]]
        if not ours or condition:
            continue
        best = _best([row for row in group if row["method"].startswith("pca-em")])
        oracle = [row for row in group if row["method"] == "oracle"]
        shown = [*ours, *best, *oracle]
        used += shown
        name = f"`{task}`" + ("" if budget == "cpu" else f", budget {budget}") + cells.mark(shown, code)
        line = [name, cells.figure(ours, "r2", ".4f"), cells.figure(best, "r2", ".4f"), cells.figure(oracle, "r2", ".4f")]
        quoted = [row.r2 for row in PUBLISHED.get(task, ()) if row.name.startswith("paper") and "re-run" not in row.name]
        line += [" / ".join(quoted), *(cells.figure(ours, key, form) for key, _, form in SUMMARY_COLUMNS)]
        lines.append(line)
    if not lines:
        return NOTHING
    heads = ["task", "R², learned filter", "R², best PCA + Kalman filter", "R², exact filter", "R², paper", *(head for _, head, _ in SUMMARY_COLUMNS)]
    return f"{table(heads, lines)}\n\n{cells.footer(used, code)}"


def ablation_tables(rows: Sequence[Row], code: Code) -> str:
    """One table and one sentence per ablation, of the ``cpu`` budget."""
    parts = []
    for (task, condition), ablation in ABLATIONS.items():
        group = [row for row in records.newest(rows) if (row["task"], row["condition"], row["budget"]) == (task, condition, "cpu")]
        by_variant = {name: [row for row in group if row["method"] == name] for name in ablation.variants}
        by_variant = {name: found for name, found in by_variant.items() if found}
        if not by_variant:
            continue
        columns = [column for column in COLUMNS if column[0] in ABLATION_COLUMNS and any(cells.value(row, column[0]) is not None for row in group)]
        lines = [
            [ablation.variants[name].words + cells.mark(found, code), str(len(found)), *(cells.figure(found, key, form) for key, _, form in columns)]
            for name, found in by_variant.items()
        ]
        means = {name: {key: mean(row["metrics"][key] for row in found) for key in ("r2", "mse", "coverage95")} for name, found in by_variant.items()}
        shown = table(["variant", "seeds", *(head for _, head, _ in columns)], lines)
        parts.append(f"**{ablation.question}** (`{task}`)\n\n{shown}\n\n{sentence(ablation, means)}")
    used = [row for row in records.newest(rows) if (row["task"], row["condition"]) in ABLATIONS and row["budget"] == "cpu"]
    return "\n\n".join([*parts, cells.footer(used, code)]) if parts else NOTHING


def framework_tables(rows: Sequence[Row], code: Code) -> str:
    """Every estimator and named method, one table per task, of the ``cpu`` budget."""
    used = [row for row in records.newest(rows) if row["condition"] == framework_methods.CONDITION and row["budget"] == "cpu"]
    parts = []
    for task in framework_methods.CONDITIONS:
        lines = []
        for name, method in framework_methods.METHODS.items():
            group = [row for row in used if (row["task"], row["method"]) == (task, name)]
            if group:
                collapsed = f"{sum(row['metrics']['collapsed'] for row in group):.0f} of {len(group)}"
                figures = (
                    cells.figure(group, key, form) for key, form in (("latent_r2", ".4f"), ("r2", ".4f"), ("nis", ".2f"), ("fit_seconds", ".0f"))
                )
                lines.append([f"`{name}`" + cells.mark(group, code), method.model, method.entropy, *figures, collapsed])
        if lines:
            heads = ["objective", "latent model", "entropy", "R² of the encoder", "R² of the filter", "NIS / m", "fit, s", "seeds that collapsed"]
            parts.append(f"### All objectives on `{task}`\n\n{table(heads, lines)}")
    return "\n\n".join([*parts, cells.footer(used, code)]) if parts else NOTHING


def update(root: Path = records.ROOT) -> list[Path]:
    """Rewrite the marked parts of ``benchmarks/README.md`` and ``README.md``; a file without the markers is left alone. Returns what changed."""
    rows = records.read(root / "benchmarks" / "results")
    changed = []
    jobs: tuple[tuple[Path, tuple[str, str], Callable[[Sequence[Row], Code], str]], ...] = (
        (root / "benchmarks" / "README.md", GOALS, goals_table),
        (root / "benchmarks" / "README.md", FULL, full_tables),
        (root / "benchmarks" / "README.md", ABLATED, ablation_tables),
        (root / "benchmarks" / "README.md", FRAMEWORK, framework_tables),
        (root / "benchmarks" / "README.md", BUDGETS, budget_table),
        (root / "benchmarks" / "README.md", CALIBRATION, calibration_table),
        (root / "README.md", SUMMARY, summary_table),
    )
    for path, markers, render in jobs:
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        after = replace_between(before, markers, render(rows, current_code))
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return list(dict.fromkeys(changed))


def _task_table(task: str, group: Sequence[Row], code: Code) -> str:
    columns = [column for column in COLUMNS if any(cells.value(row, column[0]) is not None for row in group)]
    lines = []
    for method in _methods(group):
        rows = [row for row in group if row["method"] == method]
        name = f"**`{method}`**" if method.startswith("ldm-") else f"`{method}`"
        lines.append(
            [name + cells.mark(rows, code), rows[0]["readout"], str(len(rows)), *(cells.figure(rows, key, form) for key, _, form in columns)]
        )
    for quoted in PUBLISHED.get(task, ()):
        if quoted.condition not in (None, group[0]["condition"]):
            continue
        figures = [getattr(quoted, key) if key in PUBLISHED_COLUMNS else "" for key, _, _ in columns]
        lines.append([f"*{quoted.name}*", quoted.readout, "", *figures])
    return table(["method", "read-out", "seeds", *(head for _, head, _ in columns)], lines)


def _methods(group: Sequence[Row]) -> list[str]:
    """The learned filters, then the baselines, then the oracle."""
    names = sorted({row["method"] for row in group})
    return sorted(names, key=lambda name: (name == "oracle", not name.startswith("ldm-"), name))


def _best(rows: Sequence[Row]) -> list[Row]:
    """The runs of the method with the best mean R2."""
    by_method = [[row for row in rows if row["method"] == name] for name in sorted({row["method"] for row in rows})]
    return max(by_method, key=lambda group: mean(row["metrics"]["r2"] for row in group), default=[])


if __name__ == "__main__":
    calibration_plot.draw(records.read(records.RESULTS), records.ROOT / "benchmarks" / "calibration.png")
    for path in update():
        print(f"{path.relative_to(records.ROOT)} rewritten")
