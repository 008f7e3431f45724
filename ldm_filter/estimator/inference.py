"""Run a fitted model over parsed data and name what comes out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.linalg import cholesky, whiten
from ldm_filter.estimator.context import to_device
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.types import Context, FilterResult, Gaussian, Labels, Sequences

__all__ = ["Run", "last_belief", "last_memory", "memories", "observation_moments", "predictive_density", "result_fields", "run_filter"]

CHUNK_STEPS = 1 << 16
Field = tuple[tuple[str, ...], Tensor]


class Run(NamedTuple):
    """A filtered (and perhaps smoothed) batch."""

    sequences: Sequences
    labels: Labels
    measurements: Gaussian
    seen: Tensor
    result: FilterResult
    smoothed: Gaussian | None
    mask: Tensor


@torch.no_grad()
def run_filter(model: LatentFilter, sequences: Sequences, labels: Labels, smooth: bool = False) -> Run:
    """Filter in chunks that carry the belief: the memory beyond the result's own does not grow with the series' length."""
    model.eval()
    device = model.encoder.center.device
    batch = max(1, sequences.values.shape[0])
    values, observed = sequences.values.to(device), sequences.observed.to(device)
    context = to_device(sequences.context, device)
    chunks = list(model.filter_chunks(values, observed, max(1, CHUNK_STEPS // batch), context))
    measurements = _join_gaussians([chunk[0] for chunk in chunks])
    seen = torch.cat([chunk[1] for chunk in chunks], dim=1)
    parts = [chunk[2] for chunk in chunks]
    result = FilterResult(
        _join_gaussians([part.predicted for part in parts]),
        _join_gaussians([part.filtered for part in parts]),
        _join_gaussians([part.projected for part in parts]),
        torch.cat([part.log_likelihood for part in parts], dim=1),
    )
    smoothed = model.dynamics.smooth(result, context).smoothed if smooth else None
    return Run(sequences._replace(context=context), labels, measurements, seen, result, smoothed, model.mask(observed))


def result_fields(run: Run, readout: Readout, model: LatentFilter) -> dict[str, Field]:
    """The variables of a result Dataset, with their dims."""
    result, seen = run.result, run.seen.unsqueeze(-1)
    latent_mean = torch.where(seen if run.mask.ndim == 2 else run.mask, run.measurements.mean, result.projected.mean)
    latent_cov = run.measurements.cov
    if not bool(run.seen.all()):
        latent_cov = torch.where(seen.unsqueeze(-1), latent_cov, result.projected.cov)
    fields: dict[str, Field] = {}
    for name, gaussian, dim in (
        ("filtered", result.filtered, "state"),
        ("predicted", result.predicted, "state"),
        ("projected", result.projected, "latent"),
        ("latent", Gaussian(latent_mean, latent_cov), "latent"),
        *((("smoothed", run.smoothed, "state"),) if run.smoothed is not None else ()),
    ):
        fields[f"{name}_mean"] = (("series", "time", dim), gaussian.mean)
        fields[f"{name}_cov"] = (("series", "time", dim, f"{dim}_aux"), gaussian.cov)
    fields["log_likelihood"] = (("series", "time"), result.log_likelihood)
    nis = normalised_innovations(run.measurements, result.projected, run.mask)
    fields["nis"] = (("series", "time"), nis.to(result.log_likelihood.dtype))
    mean, std = observation_moments(model, readout, result.filtered if run.smoothed is None else run.smoothed, run.sequences.context)
    dims = ("series", "time", *run.labels.event_dims)
    return fields | {"reconstruction_mean": (dims, mean), "reconstruction_std": (dims, std)}


@torch.no_grad()
def normalised_innovations(measurements: Gaussian, projected: Gaussian, seen: Tensor) -> Tensor:
    """NIS / m = e' S^-1 e / m, ``(B, T)`` in float64, mean 1 where the model is consistent; NaN where nothing is observed.

    With a mask per latent, ``seen (B, T, m)``, m is the number of latents observed, and S their block.
    """
    innovation, cov = (measurements.mean - projected.mean).double(), projected.cov.double()
    if seen.ndim == 2:
        return whiten(cholesky(cov), innovation).square().mean(-1).masked_fill(~seen, torch.nan)
    kept = seen.double()
    cov = kept.unsqueeze(-1) * cov * kept.unsqueeze(-2) + torch.diag_embed(1.0 - kept)
    return whiten(cholesky(cov), kept * innovation).square().sum(-1) / kept.sum(-1)  # 0 / 0 is NaN


@torch.no_grad()
def observation_moments(model: LatentFilter, readout: Readout, belief: Gaussian, context: Context) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observation given a belief about the state, ``(B, T, *event)`` in the data's units."""
    mean, var = readout.moments(model.with_inputs(belief, context))
    event = model.encoder.event_shape
    std = var.clamp_min(0.0).sqrt().expand_as(mean)
    scale = model.encoder.scale
    return mean.unflatten(-1, event) * scale + model.encoder.center, std.unflatten(-1, event) * scale


@torch.no_grad()
def predictive_density(run: Run, model: LatentFilter, readout: Readout) -> Tensor:
    """log N(x_tc; E[x_tc | x_<t], Var[x_tc | x_<t]) of every entry, ``(B, T, *event)`` in float64; NaN where it is not observed."""
    mean, std = observation_moments(model, readout, run.result.predicted, run.sequences.context)
    observed, values = run.sequences.observed.to(mean.device), run.sequences.values.to(mean.device)
    density = torch.distributions.Normal(mean.double(), std.double(), validate_args=False).log_prob(values.double())
    return density.masked_fill(~observed, torch.nan)


def last_belief(run: Run) -> Gaussian:
    """The filtered state at each series' last true step: mean ``(B, n)``, cov ``(B, n, n)``."""
    filtered = run.result.filtered
    series = torch.arange(len(filtered.mean), device=filtered.mean.device)
    last = (run.sequences.lengths - 1).to(filtered.mean.device)
    cov = filtered.cov.expand(*filtered.mean.shape, filtered.mean.shape[-1])
    return Gaussian(filtered.mean[series, last], cov[series, last])


def memories(run: Run, model: LatentFilter) -> tuple[Tensor, ...]:
    """What the dynamics have to know besides the belief to go on after each step: one tensor ``(B, T, k)``, or nothing."""
    memory = model.dynamics.remember(run.measurements, run.seen, run.result)
    return () if memory is None else (memory,)


def last_memory(run: Run, model: LatentFilter) -> tuple[Tensor, ...]:
    """The same at each series' last true step, ``(B, k)``."""
    return tuple(part[torch.arange(len(part), device=part.device), (run.sequences.lengths - 1).to(part.device)] for part in memories(run, model))


def _join_gaussians(parts: list[Gaussian]) -> Gaussian:
    """Concatenate over time; shared covariances stay shared where they are so in every chunk."""
    if len(parts) == 1:
        return parts[0]
    batch = max(part.cov.shape[0] for part in parts)
    covs = [part.cov.expand(batch, part.mean.shape[1], *part.cov.shape[2:]) for part in parts]
    return Gaussian(torch.cat([part.mean for part in parts], dim=1), torch.cat(covs, dim=1))
