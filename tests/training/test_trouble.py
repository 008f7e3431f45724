"""Training survives what can be survived and names what cannot: steps that go wrong, and collapses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import CollapseError, train
from ldm_filter.training.loop import LEAST_NATS, _trouble
from ldm_filter.training.stepper import Stepper
from ldm_filter.types import Sequences
from tests.training.problems import STEPS, Meddling, batches_of, build, fit, options, same, sequences, spoilt, weights, whole

# Steps that go wrong.


def test_a_nan_is_skipped_and_named() -> None:
    model = build()
    history = fit(model, Meddling(lambda value, call: spoilt(value) if call in (4, 5) else value))
    assert history.events == ["epoch 1: 2 step(s) skipped, first: loss nan, norm of the gradient nan"]
    assert [row["bad_steps"] for row in history.epochs] == [0.0, 2.0, 0.0, 0.0]
    assert all(math.isfinite(row["loss"]) for row in history.epochs)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_a_nan_in_the_very_first_step_is_no_special_case() -> None:
    """(torch warns where a schedule is advanced before the optimiser.)"""
    history = fit(build(), Meddling(lambda value, call: spoilt(value) if call == 0 else value))
    assert history.events == ["epoch 0: 1 step(s) skipped, first: loss nan, norm of the gradient nan"]


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    def explode(value: ObjectiveValue, call: int) -> ObjectiveValue:
        return value._replace(loss=value.loss + (0.0 * value.alignment).sqrt()) if call == 2 else value  # 0 with an infinite slope

    model = build()
    history = fit(model, Meddling(explode))
    assert len(history.events) == 1
    assert history.events[0].startswith("epoch 0: 1 step(s) skipped, first: loss ")
    assert history.events[0].endswith(", norm of the gradient nan")
    assert "loss nan" not in history.events[0]
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_a_step_that_the_filter_refuses_is_skipped_with_its_reason() -> None:
    def refuse(value: ObjectiveValue, call: int) -> ObjectiveValue:
        if call == 7:
            raise ValueError("the innovation covariance is not positive definite at step 3")
        return value

    history = fit(build(), Meddling(refuse))
    assert history.events == ["epoch 2: 1 step(s) skipped, first: the innovation covariance is not positive definite at step 3"]


def test_an_error_in_the_first_step_is_the_callers() -> None:
    small = sequences(2)
    small = Sequences(small.values[:, :1], small.observed[:, :1], torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match="samples hold 1 rows in 2 dimensions, at least 3 are needed; use a larger batch"):
        train(build(), Objective(), batches_of(small, 2), 2, options())


def test_many_bad_steps_in_a_row_bring_the_best_weights_back() -> None:
    kept: list[dict[str, Tensor]] = []
    model = build()

    def judge(value: ObjectiveValue, epoch: int) -> ObjectiveValue:
        kept.append(weights(model))
        return value

    objective = Meddling(lambda value, call: spoilt(value) if 20 <= call < 26 else value, judge)
    data = sequences()
    history = train(model, objective, batches_of(data, 10), 10, options(epochs=4), whole(sequences(held_out=True)))
    assert history.events[0].startswith("epoch 2: 5 step(s) skipped, first: loss nan")
    assert history.events[1] == "epoch 2: loss is nan; back to the weights of epoch 1 at half the rate"
    assert math.isnan(history.epochs[2]["loss"])
    assert math.isfinite(history.epochs[3]["loss"])
    assert history.best_epoch in (1, 3)


# Collapses.


def sabotaged(model: LatentFilter, epochs: set[int], harm: Callable[[LatentFilter], None]) -> Callable[[torch.Generator], Iterator[Sequences]]:
    """Batches that harm the model at the end of some epochs."""
    plain, count = batches_of(sequences()), [0]

    def batches(generator: torch.Generator) -> Iterator[Sequences]:
        yield from plain(generator)
        if count[0] in epochs:
            with torch.no_grad():
                harm(model)
        count[0] += 1

    return batches


def flatten(model: LatentFilter) -> None:
    model.encoder.gain.mul_(1e-12)


def copy_a_latent(model: LatentFilter) -> None:
    model.encoder.linear.weight[1] = model.encoder.linear.weight[0]
    last = model.encoder.network.last
    assert isinstance(last, nn.Linear)
    last.weight[1], last.bias[1] = last.weight[0], last.bias[0]


def drown(model: LatentFilter) -> None:
    model.encoder.noise.factor.add_(15.0 * torch.eye(2))  # type: ignore[union-attr, operator]


def be_too_sure(model: LatentFilter) -> None:
    model.encoder.noise.factor.sub_(15.0 * torch.eye(2))  # type: ignore[union-attr, operator]
    model.dynamics.cov_factor.sub_(15.0 * torch.eye(2))


def poison(model: LatentFilter) -> None:
    model.dynamics.mean.fill_(math.nan)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (flatten, "collapse of the latents: validation_entropy fell to -"),
        (copy_a_latent, "they span fewer than 2 dimensions"),
        (drown, "the model no longer fits its latents: validation_nis is"),
        (be_too_sure, "the model no longer fits its latents: validation_nis is"),
        (poison, "validation_loss is nan"),
    ],
)
def test_a_collapse_is_named_and_survived(harm: Callable[[LatentFilter], None], named: str, validate: bool) -> None:
    model = build()
    validation = whole(sequences(held_out=True)) if validate else None
    history = train(model, Objective(), sabotaged(model, {2}, harm), STEPS, options(epochs=6), validation)
    told = next(event for event in history.events if "back to" in event)
    assert told.startswith("epoch 2: ")
    assert told.endswith("back to the weights of epoch 1 at half the rate")
    if validate or "they span" in named:
        assert named in told
    assert len(history.epochs) == 6
    assert history.best_epoch > 2
    assert min(row.get("validation_loss", row["loss"]) for row in history.epochs[3:]) < history.epochs[1].get("validation_loss", math.inf)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_repeated_collapses_end_in_an_error_and_the_best_weights() -> None:
    model, kept = build(), []

    def judge(value: ObjectiveValue, epoch: int) -> ObjectiveValue:
        kept.append(weights(model))
        return value

    batches = sabotaged(model, set(range(2, 20)), flatten)
    with pytest.raises(CollapseError, match=r"training collapsed 4 times, last: collapse of the latents.*Lower learning_rate") as caught:
        train(model, Meddling(judge=judge), batches, STEPS, options(epochs=20), whole(sequences(held_out=True)))  # type: ignore[arg-type]
    history = caught.value.history
    assert len(history.epochs) == 6
    assert history.best_epoch == 1
    assert same(weights(model), kept[2])  # the first look came before the first epoch


def test_a_collapse_from_the_start_gives_the_starting_weights_back() -> None:
    model = build()
    start = weights(model)
    with pytest.raises(CollapseError) as caught:
        train(model, Objective(), sabotaged(model, set(range(20)), poison), STEPS, options(epochs=20), whole(sequences(held_out=True)))
    assert caught.value.history.best_epoch == -1
    assert "back to the starting weights" in " ".join(caught.value.history.events)
    assert same(weights(model), start)


def test_an_absurd_learning_rate_does_not_leave_a_broken_model() -> None:
    model = build()
    try:
        history = fit(model, learning_rate=1e4, epochs=10)
    except CollapseError as error:
        history = error.history
    assert history.events
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())
    held_out = sequences(held_out=True)
    assert torch.isfinite(model(held_out.values, held_out.observed).log_likelihood).all()


def test_a_recovery_halves_every_rate_from_the_next_step_on() -> None:
    rates: list[list[tuple[float, ...]]] = []
    for slow in (False, True):
        model = build()
        groups = [{"params": list(model.encoder.parameters()), "lr": 1e-3}, {"params": list(model.dynamics.parameters()), "lr": 3e-3}]
        optimiser = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [1e-3, 3e-3], total_steps=13)
        stepper = Stepper(Fabric(accelerator="cpu", devices=1), model, Objective(), optimiser, schedule, 1.0)
        used: list[tuple[float, ...]] = []
        for step in range(12):
            if slow and step == 5:
                stepper.slow_down()
                assert not stepper.optimiser.state
            used.append(tuple(group["lr"] for group in stepper.optimiser.param_groups))
            assert stepper.step(sequences(8), []) is None
        rates.append(used)
    plain, slowed = (torch.tensor(used, dtype=torch.float64) for used in rates)
    torch.testing.assert_close(slowed[:5], plain[:5], rtol=1e-12, atol=0)
    torch.testing.assert_close(slowed[5:], 0.5 * plain[5:], rtol=1e-12, atol=0)
    assert float(plain[:, 1].max()) == pytest.approx(3e-3, rel=0.05)


def test_no_false_alarms() -> None:
    """Entropies far below 0 are ordinary: many latents, little noise, a conditional entropy."""
    fine = {"loss": 1e6, "entropy": -200.0, "validation_entropy": -200.0, "validation_nis": 300.0, "validation_spread": 1e-3, "bad_steps": 4.0}
    assert _trouble(fine, 20) is None
    assert _trouble({"loss": 5.0, "validation_loss": 1e7}, 2) is None  # held-out data of another kind are no collapse
    assert "validation_loss is inf" in str(_trouble(fine | {"validation_loss": math.inf}, 20))
    assert "entropy fell to" in str(_trouble({"loss": 0.0, "entropy": 2 * LEAST_NATS - 1}, 2))


def test_one_broken_measurement_is_no_collapse() -> None:
    held_out = sequences(held_out=True)
    held_out.values[3, 5] = 1e6
    history = train(build(), Objective(), batches_of(sequences()), STEPS, options(), whole(held_out))
    assert history.events == []
