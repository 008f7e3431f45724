"""The networks of the pendulum tasks: one encoder for all that learn, and a recurrent network to stand beside the filter."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.pendulum_tasks import Bench

__all__ = ["Encoder", "Rival", "answer", "fit_rival"]

FEATURES = 64


class Encoder(nn.Module):
    """Images ``(N, 24, 24)`` -> ``(N, outputs)``: 16 filters of 8x8 pixels every 4 pixels, two dense layers.

    The published encoder (5x5, pooling, 3x3, pooling) takes 30 times as long on a CPU.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Unflatten(1, (1, 24)),
            nn.Conv2d(1, 16, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 36, 128),
            nn.LayerNorm(128),
            nn.SiLU(),
            nn.Linear(128, FEATURES),
            nn.SiLU(),
        )
        self.out = nn.Linear(FEATURES, outputs)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.trunk(images))


class Rival(nn.Module):
    """Mean and log variances of (sin, cos) from images: one by one, or by a GRU that also sees how long ago the last one was."""

    def __init__(self, recurrent: bool, hidden: int = 64) -> None:
        super().__init__()
        self.encoder = Encoder(FEATURES)
        self.gru = nn.GRU(FEATURES + 1, hidden, batch_first=True) if recurrent else None
        self.head = nn.Linear(hidden if recurrent else FEATURES, 4)

    def forward(self, frames: Tensor, stamps: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, T, 2)`` each, of frames ``(B, T, 24, 24)`` uint8 and their numbers ``(B, T)``."""
        features = self.encoder((frames.flatten(0, 1).float() - 100.0) / 80.0).unflatten(0, frames.shape[:2])
        if self.gru is not None:
            gap = torch.diff(stamps, dim=1, prepend=stamps[:, :1] - 1).float().unsqueeze(-1)
            features = self.gru(torch.cat([features, gap / 2.0], dim=-1))[0]
        mean, log_var = self.head(features).chunk(2, dim=-1)
        return mean, 14.0 * torch.tanh(log_var / 14.0)


def fit_rival(data: Bench, recurrent: bool, device: torch.device) -> tuple[Rival, int]:
    """Adam, one cycle, clipped gradients, the likelihood of the targets; the weights of the best held-out epoch. Returns the updates as well."""
    torch.manual_seed(data.seed)
    settings, generator = data.settings, torch.Generator().manual_seed(data.seed)
    model = Rival(recurrent).to(device)
    frames, stamps, target = (torch.from_numpy(part) for part in (data.train.frames, data.train.stamps, data.train.target))
    held = max(1, len(frames) // 20)
    batches = -(-(len(frames) - held) // settings.batch_size)
    optimiser = torch.optim.Adam(model.parameters(), settings.learning_rate)
    schedule = OneCycleLR(optimiser, settings.learning_rate, total_steps=settings.rival_epochs * batches + 1, pct_start=0.3)
    best, weights = math.inf, model.state_dict()
    for _ in range(settings.rival_epochs):
        model.train()
        for rows in (held + torch.randperm(len(frames) - held, generator=generator)).tensor_split(batches):
            optimiser.zero_grad()
            _loss(model, *(part[rows].to(device) for part in (frames, stamps, target))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            loss = float(_loss(model, *(part[:held].to(device) for part in (frames, stamps, target))))
        if loss < best:
            best, weights = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval(), settings.rival_epochs * batches


def _loss(model: Rival, frames: Tensor, stamps: Tensor, target: Tensor) -> Tensor:
    mean, log_var = model(frames, stamps)
    return 0.5 * ((target - mean).square() / log_var.exp() + log_var + math.log(2 * math.pi)).sum(-1).mean()


@torch.no_grad()
def answer(model: Rival, frames: NDArray, stamps: NDArray, device: torch.device) -> tuple[NDArray, NDArray]:
    """Mean and covariance of (sin, cos), in pieces."""
    parts = [
        model(torch.from_numpy(images).to(device), torch.from_numpy(number).to(device))
        for images, number in zip(np.array_split(frames, max(1, len(frames) // 50)), np.array_split(stamps, max(1, len(frames) // 50)), strict=True)
    ]
    mean, log_var = (torch.cat(part).cpu().double() for part in zip(*parts, strict=True))
    return mean.numpy(), torch.diag_embed(log_var.exp()).numpy()
