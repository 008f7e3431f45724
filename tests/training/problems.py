"""A small system to train on, and objectives that go wrong on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from datasets.linear_gaussian import simulate
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import History, TrainingOptions, train
from ldm_filter.types import Sequences
from tests.models.problems import rng, seeded

STEPS = 3  # batches of an epoch


def sequences(series: int = 24, held_out: bool = False, dtype: torch.dtype = torch.float32) -> Sequences:
    """Three channels of one two-dimensional system; the held-out series are others of the same system."""
    values = simulate(48, 20, state_dim=2, measurement_dim=3, radius=0.95, seed=7).measurements.to(dtype)
    values = values[-series:] if held_out else values[:series]
    return Sequences(values.clone(), torch.ones(values.shape, dtype=torch.bool), torch.full((series,), 20))


def build(network: str | nn.Module = "mlp", dtype: torch.dtype = torch.float32, **choices: str) -> LatentFilter:
    with seeded():
        model = LatentFilter(Encoder((3,), 2, network, **choices), LinearDynamics(2, 2, generator=rng())).to(dtype)
    flat = sequences(dtype=dtype).values.flatten(0, 1)
    model.encoder.fit_normalisation(flat, torch.ones_like(flat, dtype=torch.bool), flat.mean(0), flat.std(0))
    return model


def batches_of(data: Sequences, count: int = STEPS) -> Callable[[torch.Generator], Iterator[Sequences]]:
    def batches(generator: torch.Generator) -> Iterator[Sequences]:
        for index in torch.randperm(len(data.values), generator=generator).tensor_split(count):
            yield Sequences(data.values[index], data.observed[index], data.lengths[index])

    return batches


def whole(data: Sequences) -> Callable[[torch.Generator], Iterator[Sequences]]:
    return lambda _: iter([data])


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(**({"epochs": 4, "progress": False, "accelerator": "cpu"} | changes))


def fit(model: LatentFilter, objective: Any = None, validate: bool = True, **changes: Any) -> History:
    dtype = model.dynamics.mean.dtype
    validation = whole(sequences(held_out=True, dtype=dtype)) if validate else None
    return train(model, objective or Objective(), batches_of(sequences(dtype=dtype)), STEPS, options(**changes), validation)


def weights(model: LatentFilter) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class Meddling:
    """An objective whose value is changed by ``meddle(value, call)`` in training, and by ``judge(value, call)`` on validation data."""

    needs_volume = detach_target = False
    share = 0.0

    def at(self, progress: float) -> Meddling:
        return self

    def __init__(self, meddle: Callable[[ObjectiveValue, int], ObjectiveValue] | None = None, judge: Any = None) -> None:
        self.objective, self.meddle, self.judge = Objective(), meddle, judge
        self.calls = self.judged = 0

    def __call__(self, *arguments: Any, **named: Any) -> ObjectiveValue:
        value = self.objective(*arguments, **named)
        if torch.is_grad_enabled():
            self.calls += 1
            return value if self.meddle is None else self.meddle(value, self.calls - 1)
        self.judged += 1
        return value if self.judge is None else self.judge(value, self.judged - 2)  # the first look comes before the first epoch


def spoilt(value: ObjectiveValue) -> ObjectiveValue:
    return value._replace(loss=value.loss * math.nan)
