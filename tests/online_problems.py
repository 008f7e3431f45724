"""Models, series and the two ways through them that the tests of the online filter share."""

from __future__ import annotations

import numpy as np
import torch

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.online import OnlineFilter, StepResult

CHANNELS = 6


def make_model(noise: str = "constant", dtype: torch.dtype = torch.float64, event_shape: tuple[int, ...] = (CHANNELS,)) -> LatentFilter:
    """A model with nothing left at zero, as after a fit."""
    generator = torch.Generator().manual_seed(0)
    model = LatentFilter(Encoder(event_shape, latent_dim=4, network="mlp", noise=noise), LinearDynamics(8, 4, generator=generator)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
        for name, spread in (("center", 0.5), ("scale", 0.1), ("shift", 0.5), ("gain", 0.1), ("noise_scale", 0.5)):
            buffer = getattr(model.encoder, name)
            buffer.add_(spread * torch.rand(buffer.shape, generator=generator, dtype=dtype))
        factor = torch.randn(model.encoder.missing_cov.shape, generator=generator, dtype=dtype)
        model.dynamics.observation_offset.add_(torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=dtype))
        model.encoder.missing_cov.copy_(0.3 * factor @ factor.mT)
    return model


def make_series(steps: int, series: int = 1, event_shape: tuple[int, ...] = (CHANNELS,), holes: bool = True) -> np.ndarray:
    """Values with single entries and whole steps missing, among them the first step of the first series."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(series, steps, *event_shape))
    if holes:
        values[rng.random(values.shape) < 0.1] = np.nan
        values[rng.random(values.shape[:2]) < 0.2] = np.nan
        values[0, 0] = np.nan
    return values


def run_batch(model: LatentFilter, values: np.ndarray) -> dict[str, torch.Tensor]:
    """The reference: the whole series through the model at once, and the NIS from its projections."""
    x = torch.from_numpy(values).to(model.encoder.center.dtype)
    observed = ~x.isnan()
    with torch.no_grad():
        measurements, seen = model.encode(x.nan_to_num(0.0), observed)
        result = model(x.nan_to_num(0.0), observed)
    innovation = (measurements.mean - result.projected.mean).unsqueeze(-1)
    nis = (innovation.mT @ torch.linalg.solve(result.projected.cov, innovation))[..., 0, 0] / innovation.shape[-2]
    cov = result.filtered.cov.expand(len(x), -1, -1, -1)
    return {"mean": result.filtered.mean, "cov": cov, "log_likelihood": result.log_likelihood, "nis": nis.masked_fill(~seen, torch.nan)}


def run_online(online: OnlineFilter, rows: np.ndarray) -> StepResult:
    """All steps, stacked over time."""
    return StepResult(*(torch.stack(field) for field in zip(*(online.step(row) for row in rows), strict=True)))


def assert_equal_results(first: StepResult, second: StepResult) -> None:
    for name, a, b in zip(StepResult._fields, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
