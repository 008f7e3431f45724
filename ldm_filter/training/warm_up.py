"""Before training with targets: the encoder by itself, frame by frame, at a fraction of the cost of the filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from ldm_filter.core.gaussian import log_density
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.training.options import TrainingOptions
from ldm_filter.types import Gaussian, Sequences

__all__ = ["warm_up"]

NOISE_RATE = 3.0


def warm_up(
    model: LatentFilter,
    batches: Callable[[torch.Generator], Iterable[Sequences]],
    steps_per_epoch: int,
    epochs: int,
    standard: Gaussian,
    options: TrainingOptions,
) -> list[float]:
    """Let the first latents be the standardised targets, seen through R, as well as a single observation tells them.

        maximise  < log N((y_t - centre) / scale; z_t, R_t) >      over the first D latents and the steps with all targets known

    Args:
        model: its encoder is changed in place; it has at least as many latents as there are targets.
        batches, steps_per_epoch: as of :func:`~ldm_filter.training.loop.train`. epochs: passes.
        standard: mean and (diagonal) covariance of the targets.
        options: rates and the clip of the training that follows.

    Returns:
        The mean negative log-likelihood of every epoch.
    """
    noise = [*model.encoder.noise.parameters()]
    known = {id(parameter) for parameter in noise}
    rest = [parameter for parameter in model.encoder.parameters() if id(parameter) not in known]
    rates = [options.learning_rate, options.learning_rate * NOISE_RATE]
    optimiser = torch.optim.Adam([{"params": part, "lr": rate} for part, rate in zip((rest, noise), rates, strict=True)])
    schedule = OneCycleLR(optimiser, rates, total_steps=epochs * steps_per_epoch + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(options.seed)
    losses = []
    model.encoder.train()
    for _ in range(epochs):
        total, count = 0.0, 0
        for batch in batches(generator):
            loss, steps = _loss(model, batch, standard)
            if not steps:
                continue
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), options.clip)
            optimiser.step()
            schedule.step()
            total, count = total + float(loss.detach()) * steps, count + steps
        losses.append(total / max(count, 1))
    model.encoder.eval()
    return losses


def _loss(model: LatentFilter, batch: Sequences, standard: Gaussian) -> tuple[Tensor, int]:
    """Mean negative log-likelihood and the number of steps that it is of."""
    assert batch.context.targets is not None
    device = model.encoder.center.device
    targets = (batch.context.targets.to(device) - standard.mean) / standard.cov.diagonal().sqrt()
    size = targets.shape[-1]
    measurements, seen = model.encode(batch.values.to(device), batch.observed.to(device))
    inside = torch.arange(targets.shape[1], device=device) < batch.lengths.to(device)[:, None]
    known = ~torch.isnan(targets).any(-1) & seen & inside
    cov = measurements.cov[..., :size, :size].expand(*targets.shape, size)
    return -log_density(targets[known], Gaussian(measurements.mean[..., :size][known], cov[known])).mean(), int(known.sum())
