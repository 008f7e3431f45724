"""Training: reproducible, survives what can be survived, names what cannot, and does on two processes what it does on one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from datasets.linear_gaussian import simulate
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import CollapseError, History, TrainingOptions, train
from ldm_filter.training.loop import LEAST_NATS, _trouble
from ldm_filter.training.stepper import Stepper
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


# It learns.


@pytest.mark.parametrize("entropy", ["log-det", "stop-gradient", "knn"])
def test_it_learns_and_keeps_the_best_weights(entropy: str) -> None:
    model, objective = build(), Objective(entropy)
    history = fit(model, objective, epochs=8)
    losses = [row["validation_loss"] for row in history.epochs]
    assert losses[-1] < losses[0] - 0.1
    assert history.best_epoch == losses.index(min(losses))
    held_out = sequences(held_out=True)
    measurements, seen = model.encode(held_out.values, held_out.observed)
    assert float(objective(model.dynamics(), measurements, seen).loss.detach()) == pytest.approx(min(losses), abs=1e-5)
    assert history.events == []
    for row in history.epochs:
        assert {"loss", "alignment", "entropy", "gauge", "bad_steps", "epoch", "seconds"} <= set(row)
        assert {"validation_loss", "validation_nis", "validation_spread", "validation_radius"} <= set(row)
        assert row["loss"] == pytest.approx(row["gauge"] - row["alignment"] - row["entropy"], abs=1e-4)
        assert 0.2 < row["validation_nis"] < 5.0


def test_change_of_variables_trains() -> None:
    with seeded():
        model = LatentFilter(Encoder((3,), 3), LinearDynamics(3, 3, generator=rng()))
    history = fit(model, Objective("jacobian"), epochs=6)
    assert history.epochs[-1]["validation_loss"] < history.epochs[0]["validation_loss"]


def test_without_validation_the_training_loss_decides() -> None:
    history = fit(build(), validate=False)
    losses = [row["loss"] for row in history.epochs]
    assert history.best_epoch == losses.index(min(losses))
    assert {"nis", "spread", "radius"} <= set(history.epochs[0])
    assert not any(name.startswith("validation") for name in history.epochs[0])


def test_validation_data_too_small_to_judge_by_are_left_out() -> None:
    two_steps = Sequences(torch.randn(1, 2, 3, generator=rng()), torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([2]))
    history = train(build(), Objective(), batches_of(sequences()), STEPS, options(), whole(two_steps))
    assert len(history.events) == 1
    assert "the training loss decides, as the validation data cannot: samples hold 2 rows" in history.events[0]
    assert history.best_epoch == 3


@pytest.mark.parametrize(
    ("dtype", "precision", "after"),
    [
        (torch.float64, "32-true", torch.float64),
        (torch.float64, "64-true", torch.float64),
        (torch.float32, "64-true", torch.float64),
        (torch.float32, "bf16-mixed", torch.float32),
    ],
)
def test_precision(dtype: torch.dtype, precision: str, after: torch.dtype) -> None:
    model, data = build(dtype=dtype), sequences(dtype=after)
    history = train(model, Objective(), batches_of(data), STEPS, options(precision=precision, epochs=6), whole(sequences(held_out=True, dtype=after)))
    assert {parameter.dtype for parameter in model.parameters()} == {after}
    assert history.epochs[-1]["validation_loss"] < history.epochs[0]["validation_loss"]


# Seeds.


def test_the_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    found, rows = [], []
    for seed, before in ((3, 0), (3, 99), (4, 0)):
        with seeded():
            network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        model = build(network)
        with seeded(before):  # what the caller's own generator is at has no influence, and stays where it was
            state = torch.random.get_rng_state()
            history = fit(model, mask_rate=0.2, seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
        found.append(weights(model))
        rows.append([row["validation_loss"] for row in history.epochs])
    assert same(found[0], found[1])
    assert rows[0] == rows[1]
    assert not same(found[0], found[2])


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


# Early stop, log, mask.


def test_early_stop_and_the_weights_of_the_best_epoch() -> None:
    script, kept = [3.0, 2.0, 1.0, 1.5, 1.5, 1.0, 0.5, 0.4], []
    model = build()

    def judge(value: ObjectiveValue, epoch: int) -> ObjectiveValue:
        kept.append(weights(model))
        return value if epoch < 0 else value._replace(loss=torch.tensor(script[epoch]))

    history = fit(model, Meddling(judge=judge), epochs=8, patience=3)
    assert history.best_epoch == 2
    assert len(history.epochs) == 6
    assert history.events == ["epoch 5: stopped early, no better loss for 3 epochs"]
    assert same(weights(model), kept[3])
    assert len(fit(build(), Meddling(judge=judge), epochs=8, patience=None).epochs) == 8


def test_the_log_has_a_strict_json_line_for_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    history = fit(build(), Meddling(lambda value, call: spoilt(value) if 3 <= call < 6 else value), log_path=path, epochs=3)
    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["validation_loss"] == history.epochs[0]["validation_loss"]
    assert rows[1]["loss"] is None
    assert rows[1]["events"] == history.events
    assert "events" not in rows[0]
    fit(build(), log_path=path, epochs=2)
    assert len(path.read_text().splitlines()) == 5


def test_mask_rate_hides_entries_in_training_only() -> None:
    model, seen = build(), []
    encode = model.encode

    def spy(values: Tensor, observed: Tensor) -> Any:
        seen.append((torch.is_grad_enabled(), float(observed.float().mean()), bool((values[~observed] == 0).all())))
        return encode(values, observed)

    model.encode = spy  # type: ignore[method-assign]
    fit(model, mask_rate=0.3)
    training = [share for grad, share, _ in seen if grad]
    assert sum(training) / len(training) == pytest.approx(0.7, abs=0.02)
    assert len(set(training)) > 1
    assert all(share == 1.0 for grad, share, _ in seen if not grad)
    assert all(zero for _, _, zero in seen)
    assert float(model.encoder.network.missing.weight.detach().abs().max()) > 0  # type: ignore[union-attr, operator]


def test_nothing_given_is_changed() -> None:
    data = sequences()
    before = [part.clone() for part in data[:3]]
    train(build(), Objective(), batches_of(data), STEPS, options(mask_rate=0.3), whole(data))
    assert all(torch.equal(one, other) for one, other in zip(before, data[:3], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"devices": 0}, "devices is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a positive number"),
        ({"clip": math.inf}, "clip is inf"),
        ({"dynamics_rate": math.nan}, "dynamics_rate is nan"),
        ({"patience": 0}, "patience is 0"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
    ],
)
def test_options_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**change)


# Two processes.


def run_on(processes: int, folder: Path, *arguments: str) -> Any:
    out = folder / f"{processes}{''.join(arguments)}.pt"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": "error::UserWarning:lightning_fabric"}
    command = [sys.executable, "-m", "tests.training_script", str(processes), str(out), *arguments]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("entropy", ["log-det", "knn", "jacobian"])
def test_two_processes_train_as_one_on_the_joint_batch(tmp_path: Path, entropy: str) -> None:
    """Loss, gradient (through the weights after Adam's steps) and decisions, with unequal numbers of observed steps."""
    one, two = (run_on(processes, tmp_path, entropy) for processes in (1, 2))
    assert one["world_size"] == 1
    assert two["world_size"] == 2
    for name in ("loss", "alignment", "entropy", "gauge", "validation_loss"):
        for row, other in zip(one["epochs"], two["epochs"], strict=True):
            assert other[name] == pytest.approx(row[name], abs=1e-7), name
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    for name, gradient in one["gradient"].items():
        torch.testing.assert_close(two["gradient"][name], gradient, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.slow
def test_one_process_in_trouble_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    found = run_on(2, tmp_path, "log-det", "fail")
    assert found["events"] == ["epoch 0: 1 step(s) skipped, first: process 1 could not evaluate its share of the batch"]
    assert all(math.isfinite(row["loss"]) for row in found["epochs"])
