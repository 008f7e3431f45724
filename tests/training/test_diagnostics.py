"""What training logs beside the loss: agreement of the gradients, effective dimension."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_filter.objectives.objective import Objective
from ldm_filter.training import train
from ldm_filter.training.stepper import _health
from tests.models.problems import rng
from tests.training.problems import build, fit, options, same, sequences, weights, whole


def test_gradients_of_estimators_are_compared() -> None:
    """Of an objective with itself 1; of F_MI and F_LDM of one estimator what their gradients say, taken by hand."""
    model, data = build(dtype=torch.float64), sequences(dtype=torch.float64)
    others = {"same": Objective(gauge_weight=0.0), "ldm": Objective(mutual_information=False), "knn": Objective("knn")}
    history = train(model, Objective(), whole(data), 1, options(epochs=1, compare=others))
    row = history.epochs[0]
    assert row["cosine_same"] == pytest.approx(1.0, abs=1e-12)
    assert -1.0 <= row["cosine_knn"] <= 1.0

    def gradient(objective: Objective) -> Tensor:
        measurements, seen = model.encode(data.values, data.observed)
        value = objective(model.dynamics(), measurements, seen)
        found = torch.autograd.grad(value.loss - value.gauge, [*model.encoder.parameters()], allow_unused=True)
        return torch.cat([part.flatten() for part in found if part is not None])

    expected = torch.nn.functional.cosine_similarity(gradient(Objective()), gradient(others["ldm"]), dim=0)
    assert row["cosine_ldm"] == pytest.approx(float(expected), abs=1e-9)
    assert row["cosine_ldm"] < 1.0 - 1e-6


def test_comparing_changes_nothing_and_a_comparison_that_fails_is_told() -> None:
    one, other = build(), build()
    fit(one, validate=False)
    history = fit(other, validate=False, compare={"knn": Objective("knn", options={"k": 10_000})})
    assert same(weights(one), weights(other))
    assert len(history.events) == 4 and "gradients could not be compared: samples hold" in history.events[0]


def test_effective_dimension() -> None:
    """(tr S)^2 / tr S^2: 2 for a round cloud of two latents, near 1 for a line."""
    noise = torch.randn(4000, 2, generator=rng(), dtype=torch.float64)
    assert _health(noise, noise[:, 0].square())["dimension"] == pytest.approx(2.0, abs=0.01)
    assert _health(noise * torch.tensor([1.0, 0.1]), noise[:, 0].square())["dimension"] == pytest.approx(1.01**2 / 1.0001, abs=0.01)
    assert "nis" not in _health(noise, noise[:0, 0])
