"""The table of docs/objectives.md: every estimator on a heavy-tailed case whose entropy is known. ``python -m tests.objectives.heavy_tails``"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_filter.objectives.entropy import ENTROPIES

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "objectives.md"
BEGIN, END = "<!-- heavy-tails:begin -->", "<!-- heavy-tails:end -->"
DIM, SAMPLES, SEEDS, REACH, SHARE, FAR = 2, 3000, 3, 1.5, 0.1, 5.0
NOISY = REACH - 2.0 * REACH * SHARE  # the tenth with the largest s


class Case(NamedTuple):
    """z ``(N, D)``, s ``(N,)`` and a level that tells nothing."""

    z: Tensor
    s: Tensor
    lie: Tensor


def draw(seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    s = REACH * (2.0 * torch.rand(SAMPLES, generator=generator, dtype=torch.float64) - 1.0)
    z = s.exp()[:, None] * torch.randn(SAMPLES, DIM, generator=generator, dtype=torch.float64)
    return Case(z, s, torch.randn(SAMPLES, generator=generator, dtype=torch.float64))


def true_entropy(stretch: float, known: bool) -> float:
    """H[z | s] or H[z] with the noisy tenth stretched by exp(stretch): the latter by quadrature over the log-radius."""
    if known:
        return 0.5 * DIM * (1.0 + math.log(2.0 * math.pi)) + SHARE * DIM * stretch
    s = (np.arange(1000) + 0.5) / 1000 * 2.0 * REACH - REACH
    scale = s + stretch * (s > NOISY)
    rho = np.linspace(-14.0, 12.0, 1501)
    squared = np.exp(2.0 * (rho[:, None] - scale))
    density = np.exp(-0.5 * squared - DIM * scale).mean(1) / (2.0 * math.pi) ** (0.5 * DIM)
    area = 2.0 * math.pi ** (0.5 * DIM) / math.gamma(0.5 * DIM)
    mass = area * np.exp(DIM * rho) * density
    return float(-np.trapezoid(mass * np.log(np.maximum(density, 1e-300)), rho))


def figures(name: str, case: Case, known: bool) -> tuple[float, float, float]:
    """Error in nats, slope as a share of the true one, gain far out."""
    level = case.s if known else case.lie
    noisy = (case.s > NOISY)[:, None]

    def estimate(stretch: Tensor) -> Tensor:
        return ENTROPIES[name](torch.where(noisy, case.z * stretch.exp(), case.z), level)

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = estimate(at)
    (slope,) = torch.autograd.grad(value, at)
    true_slope = (true_entropy(0.01, known) - true_entropy(-0.01, known)) / 0.02
    far = float(estimate(torch.tensor(FAR, dtype=torch.float64))) - float(value.detach())
    return float(value.detach()) - true_entropy(0.0, known), float(slope) / true_slope, far


def rows() -> dict[str, np.ndarray]:
    """``(seeds, 6)`` per estimator: error, slope and gain far out where R knows, then where it lies."""
    cases = [draw(seed) for seed in range(SEEDS)]
    return {name: np.array([[*figures(name, case, True), *figures(name, case, False)] for case in cases]) for name in ENTROPIES}


def table(found: dict[str, np.ndarray]) -> str:
    gains = [true_entropy(FAR, known) - true_entropy(0.0, known) for known in (True, False)]
    heads = [f"{head}, R {what}" for what in ("knows", "lies") for head in ("error", "slope", "far out")]
    lines = [f"| estimator | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    lines.append(f"| *truth* | 0 | 1 | {gains[0]:.2f} | 0 | 1 | {gains[1]:.2f} |")
    for name, values in found.items():
        cells = [f"{mean:.2f} ± {spread:.2f}" for mean, spread in zip(values.mean(0), values.std(0), strict=True)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(rows())}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
