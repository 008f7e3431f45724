"""Is the filter consistent with the data it is given? Figures, bounds and advice in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ldm_filter import metrics
from ldm_filter.core.linalg import stationary
from ldm_filter.estimator.inference import Run, normalised_innovations, observation_moments
from ldm_filter.estimator.selection import Size, smallest_good
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.types import StateSpace

__all__ = ["Diagnosis", "Mode", "diagnose", "duration"]

LEVELS = (0.5, 0.8, 0.95)
LAGS = 10
# A direction of the state with less than this share of the largest signal-to-noise ratio is idle.
IDLE = 1e-3


@dataclass(frozen=True)
class Mode:
    """An eigenvalue of A (one of a conjugate pair). Period and half-life in steps, and in seconds where the sampling step is known."""

    modulus: float
    period: float
    half_life: float
    period_seconds: float | None
    half_life_seconds: float | None

    def described(self, unit: str = "s") -> str:
        """Period and half-life in words, in time where the sampling step is known."""
        times = ((self.period_seconds, self.period), (self.half_life_seconds, self.half_life))
        return ", ".join(f"{steps:.3g} steps" if time is None else duration(time, unit) for time, steps in times)


def duration(seconds: float, unit: str = "s") -> str:
    """A time in the largest unit of which it is at least two; a number of another unit as it is.

    >>> duration(7200.0), duration(0.004), duration(3.5, ""), duration(float("inf"))
    ('2 h', '4 ms', '3.5', 'never')
    """
    if math.isinf(seconds):
        return "never"
    if unit != "s":
        return f"{seconds:.3g} {unit}".rstrip()
    for size, name in ((31_557_600.0, "years"), (86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{1e3 * seconds:.3g} ms"


@dataclass(frozen=True)
class Diagnosis:
    """What :meth:`ldm_filter.LDMFilter.diagnose` found; ``print`` it.

    Attributes:
        nis: mean NIS / m, 1 where the predicted spread of the latents is right. nis_bounds: its 95 % interval if innovations are white.
        coverage: share of observations inside the one-step predictive interval, by level.
        autocorrelation: largest modulus of the innovations' autocorrelation over lags 1 to 10; whiteness_bound: its 95 % bound at 0.
        autocorrelations: it by lag, from 1. pit: shares of the observations in the tenths of their one-step predictive distribution, each 0.1 where
            it is right; pit_distance: the largest distance of the distribution of these values from uniform.
        spectrum: modes of A, slowest decay first.
        carried: signal-to-noise ratio of each direction of the state (squared Hankel singular values), largest first: how much the past tells
            about it, and it about the measurements to come.
        sizes: what ``state_dim="auto"`` tried, by the likelihood of held-out data.
        unit: of the sampling step, ``"s"`` for dates, "" for numbers of the data's own unit.
        advice: sentences; empty where nothing is wrong.
    """

    nis: float
    nis_bounds: tuple[float, float]
    coverage: dict[float, float]
    autocorrelation: float
    whiteness_bound: float
    autocorrelations: list[float]
    pit: list[float]
    pit_distance: float
    spectrum: list[Mode]
    carried: list[float]
    sizes: list[Size] = field(default_factory=list)
    unit: str = "s"
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        low, high = self.nis_bounds
        lines = [
            f"NIS / m            {self.nis:.3f}   (consistent: {low:.3f} to {high:.3f})",
            "coverage           " + ", ".join(f"{level:.0%}: {share:.1%}" for level, share in self.coverage.items()),
            f"autocorrelation    {self.autocorrelation:.3f}   (white: below {self.whiteness_bound:.3f})",
            f"PIT                {self.pit_distance:.3f} from uniform, tenths " + " ".join(f"{share:.2f}" for share in self.pit),
            "modes              modulus   period, half-life",
        ]
        lines += [f"                   {mode.modulus:.4f}    {mode.described(self.unit)}" for mode in self.spectrum]
        lines += [f"state_dim {size.state_dim:<9d}{size.score:.4f} nats per held-out entry" for size in self.sizes]
        return "\n".join(lines + [f"- {sentence}" for sentence in self.advice])


@torch.no_grad()
def diagnose(run: Run, model: LatentFilter, readout: Readout, sizes: list[Size] | None = None) -> Diagnosis:
    """Compute a :class:`Diagnosis` of a filtered run; ``sizes``: what a choice of the state dimension tried.

    Raises:
        ValueError: nothing observed, or series too short for the autocorrelation.
    """
    nis = normalised_innovations(run.measurements, run.result.projected, run.mask)[run.seen]
    m = run.measurements.mean.shape[-1]
    mean, std = observation_moments(model, readout, run.result.predicted, run.sequences.context)
    values, observed = run.sequences.values.cpu(), run.sequences.observed.cpu()
    flat = ((values - mean.cpu()) / std.cpu())[observed].double()
    ranks = torch.special.ndtr(flat).sort().values
    coverage = {level: float((flat.abs() <= math.sqrt(2) * torch.erfinv(torch.tensor(level))).float().mean()) for level in LEVELS}
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
        autocorrelations=white.autocorrelation.tolist(),
        pit=(torch.histc(ranks, 10, 0.0, 1.0) / len(ranks)).tolist(),
        pit_distance=float((ranks - (torch.arange(len(ranks)) + 0.5) / len(ranks)).abs().max()),
        spectrum=_spectrum(model.dynamics.mean_transition(run.result, run.sequences.context), run.labels.attrs.get("step")),
        carried=_carried(model, run),
        sizes=list(sizes or ()),
        unit="" if run.labels.attrs.get("time_kind", "numbers") == "numbers" else "s",
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


def _carried(model: LatentFilter, run: Run) -> list[float]:
    """Eigenvalues of P W, P the stationary covariance and W = sum_k A'^k C' S^-1 C A^k the information of the measurements to come."""
    ssm = model.dynamics()
    if not isinstance(ssm, StateSpace):
        return []
    A, C, Q = ssm.transition_matrix.double(), ssm.observation_matrix.double(), ssm.transition_cov.double()
    if float(torch.linalg.eigvals(A).abs().max()) >= 1.0:
        return []
    S = run.result.projected.cov[0, -1].double()
    information = stationary(A.mT, C.mT @ torch.linalg.solve(S, C))
    values = torch.linalg.eigvals(stationary(A, Q) @ information).real.clamp_min(0.0)
    return sorted(values.tolist(), reverse=True)


def _size_advice(found: Diagnosis) -> list[str]:
    """Whether the state is too small or too large; what the held-out likelihood says goes before what the innovations say."""
    used = len(found.carried)
    if found.sizes:
        best = max(found.sizes, key=lambda size: size.score)
        taken = smallest_good(found.sizes)
        tried = ", ".join(f"{size.state_dim}: {size.score:.3f}" for size in found.sizes)
        return [f"State size by held-out likelihood ({tried} nats per entry): {taken} is about as good as the best, {best.state_dim}."]
    advice = []
    if found.autocorrelation > max(0.1, 3 * found.whiteness_bound):
        advice.append(
            f"Innovations are autocorrelated ({found.autocorrelation:.2f}): the state may be too small for the motion (two states per frequency). "
            "state_dim='auto' compares sizes by the likelihood of held-out data."
        )
    idle = sum(ratio < IDLE * max(found.carried) for ratio in found.carried)
    if idle:
        advice.append(
            f"{idle} of {used} directions of the state tell next to nothing about the measurements to come: it may be too large; try "
            f"state_dim={used - idle}, or 'auto', and compare score() on held-out data."
        )
    return advice


def _advice(found: Diagnosis) -> list[str]:
    advice = _size_advice(found)
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
