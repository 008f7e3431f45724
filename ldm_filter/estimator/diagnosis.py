"""Is the filter consistent with the data it is given? Figures, bounds and advice in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ldm_filter import metrics
from ldm_filter.estimator.inference import Run, normalised_innovations, observation_moments
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout

__all__ = ["Diagnosis", "Mode", "diagnose"]

LEVELS = (0.5, 0.8, 0.95)
LAGS = 10


@dataclass(frozen=True)
class Mode:
    """An eigenvalue of A (one of a conjugate pair). Period and half-life in steps, and in seconds where the sampling step is known."""

    modulus: float
    period: float
    half_life: float
    period_seconds: float | None
    half_life_seconds: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What :meth:`ldm_filter.LDMFilter.diagnose` found; ``print`` it.

    Attributes:
        nis: mean NIS / m, 1 where the predicted spread of the latents is right. nis_bounds: its 95 % interval if innovations are white.
        coverage: share of observations inside the one-step predictive interval, by level.
        autocorrelation: largest modulus of the innovations' autocorrelation over lags 1 to 10; whiteness_bound: its 95 % bound at 0.
        spectrum: modes of A, slowest decay first.
        advice: sentences; empty where nothing is wrong.
    """

    nis: float
    nis_bounds: tuple[float, float]
    coverage: dict[float, float]
    autocorrelation: float
    whiteness_bound: float
    spectrum: list[Mode]
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        low, high = self.nis_bounds
        lines = [
            f"NIS / m            {self.nis:.3f}   (consistent: {low:.3f} to {high:.3f})",
            "coverage           " + ", ".join(f"{level:.0%}: {share:.1%}" for level, share in self.coverage.items()),
            f"autocorrelation    {self.autocorrelation:.3f}   (white: below {self.whiteness_bound:.3f})",
            "modes              modulus   period   half-life (steps)",
        ]
        lines += [f"                   {mode.modulus:.4f}  {mode.period:7.1f}  {mode.half_life:8.1f}" for mode in self.spectrum]
        return "\n".join(lines + [f"- {sentence}" for sentence in self.advice])


@torch.no_grad()
def diagnose(run: Run, model: LatentFilter, readout: Readout) -> Diagnosis:
    """Compute a :class:`Diagnosis` of a filtered run.

    Raises:
        ValueError: nothing observed, or series too short for the autocorrelation.
    """
    nis = normalised_innovations(run.measurements, run.result.projected, run.mask)[run.seen]
    m = run.measurements.mean.shape[-1]
    mean, std = observation_moments(model, readout, run.result.predicted, run.sequences.context)
    values, observed = run.sequences.values.cpu(), run.sequences.observed.cpu()
    flat = ((values - mean.cpu()) / std.cpu())[observed].abs()
    coverage = {level: float((flat <= math.sqrt(2) * torch.erfinv(torch.tensor(level))).float().mean()) for level in LEVELS}
    projected = run.result.projected
    lags = min(LAGS, run.seen.shape[1] - 2)
    if lags < 1:
        raise ValueError(f"data has {run.seen.shape[1]} steps, a diagnosis needs at least 3; give a longer series")
    white = metrics.whiteness(
        projected.mean.cpu(),
        projected.cov.expand(*projected.mean.shape, m).cpu(),
        torch.where(run.seen.unsqueeze(-1) if run.mask.ndim == 2 else run.mask, run.measurements.mean, projected.mean).cpu(),
        lags,
        run.seen.cpu(),
    )
    found = Diagnosis(
        nis=float(nis.double().mean()),
        nis_bounds=metrics.chi2_bounds(m, len(nis), normalised=True),
        coverage=coverage,
        autocorrelation=float(abs(white.autocorrelation).max()),
        whiteness_bound=float(max(white.bound)),
        spectrum=_spectrum(model.dynamics().transition_matrix, run.labels.attrs.get("step")),
    )
    found.advice.extend(_advice(found))
    return found


def _spectrum(transition: torch.Tensor, step: float | None) -> list[Mode]:
    modes = []
    for value in torch.linalg.eigvals(transition.double()).tolist():
        modulus, angle = abs(value), math.atan2(value.imag, value.real)
        if angle < -1e-12:
            continue  # the other of a conjugate pair
        period = 2 * math.pi / angle if angle > 1e-9 else math.inf
        half_life = math.log(0.5) / math.log(modulus) if 0.0 < modulus < 1.0 else (0.0 if modulus == 0.0 else math.inf)
        seconds = (None, None) if step is None else (period * step, half_life * step)
        modes.append(Mode(modulus, period, half_life, *seconds))
    return sorted(modes, key=lambda mode: -mode.modulus)


def _advice(found: Diagnosis) -> list[str]:
    advice = []
    small = found.autocorrelation > max(0.1, 3 * found.whiteness_bound)
    if small:
        advice.append(
            f"Innovations are autocorrelated ({found.autocorrelation:.2f}): the state may be too small for the motion (two states per frequency). "
            "Raise state_dim and compare score() on held-out data."
        )
    if found.nis > 1.2:
        advice.append(f"NIS / m is {found.nis:.2f}: the filter is overconfident here. Train longer, raise state_dim, or use noise='input'.")
    elif found.nis < 0.8:
        advice.append(f"NIS / m is {found.nis:.2f}: the filter is too cautious here. Train longer (Q and R are still shrinking).")
    worst = max(found.coverage, key=lambda level: abs(found.coverage[level] - level))
    if abs(found.coverage[worst] - worst) > 0.05:
        advice.append(
            f"The {worst:.0%} predictive interval holds {found.coverage[worst]:.1%}: fit the read-out on data like this, or use readout='mlp'."
        )
    return advice
