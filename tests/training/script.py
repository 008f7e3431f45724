"""Run by tests/training/test_processes.py on one or two processes: trains a small model and saves what it did.

python -m tests.training.script <processes> <out> <entropy> [fail]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import TrainingOptions, train
from ldm_filter.types import Sequences
from tests.models.problems import rng, seeded


class Failing:
    """On the second process, the second step cannot be evaluated."""

    needs_volume = detach_target = False

    def __init__(self, objective: Objective) -> None:
        self.objective, self.calls = objective, 0

    def __call__(self, *arguments: Any, **named: Any) -> ObjectiveValue:
        self.calls += torch.is_grad_enabled()
        if self.calls == 2 and torch.is_grad_enabled() and torch.distributed.get_rank() == 1:
            raise ValueError("not here")
        return self.objective(*arguments, **named)


def data(seed: int, share: float) -> Sequences:
    values = torch.randn(8, 12, 3, generator=rng(seed), dtype=torch.float64).cumsum(1)
    observed = torch.rand(8, 12, 3, generator=rng(seed + 1)) < share
    observed[::2, 5:9] = False  # all of it in the share of one process
    return Sequences(values * observed, observed, torch.full((8,), 12))


def main(processes: int, out: str, entropy: str, *fail: str) -> None:
    latents = 3 if entropy == "jacobian" else 2
    with seeded():
        model = LatentFilter(Encoder((3,), latents), LinearDynamics(3, latents, generator=rng())).double()
    gradients: list[dict[str, torch.Tensor]] = []
    options = TrainingOptions(epochs=3, progress=False, accelerator="cpu", devices=processes, mask_rate=0.1)
    objective: Any = Failing(Objective(entropy)) if fail else Objective(entropy)
    halves = data(0, 0.9), data(2, 1.0)

    def batches(generator: torch.Generator) -> Any:
        for half in halves:
            yield half
            if not gradients:  # of the first step, as the optimiser saw it
                gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    history = train(model, objective, batches, 2, options, lambda _: iter([data(4, 0.9)]))
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world_size == 1 or torch.distributed.get_rank() == 0:
        found = {
            "epochs": history.epochs,
            "events": history.events,
            "weights": model.state_dict(),
            "gradient": gradients[0],
            "world_size": world_size,
        }
        torch.save(found, out)
    if world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
