"""Training: it learns, reproducibly, keeps the best weights, stops in time, and writes down what happened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import TrainingOptions, train
from ldm_filter.types import Sequences
from tests.models.problems import rng, seeded
from tests.training.problems import STEPS, Meddling, batches_of, build, fit, options, same, sequences, spoilt, weights, whole

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


def test_what_is_hardly_better_does_not_renew_the_patience() -> None:
    """The losses after the first fall by less than the tolerance each, and by more than it together: that is progress, and they are the best ones."""
    script = [3.0, 2.96, 2.92, 2.88, 2.87, 2.86, 2.85, 2.84]

    def judge(value: ObjectiveValue, epoch: int) -> ObjectiveValue:
        return value if epoch < 0 else value._replace(loss=torch.tensor(script[epoch]))

    history = fit(build(), Meddling(judge=judge), epochs=8, patience=3, tolerance=0.1)
    assert (len(history.epochs), history.best_epoch) == (7, 6)
    assert history.events == ["epoch 6: stopped early, no better loss for 3 epochs"]
    assert len(fit(build(), Meddling(judge=judge), epochs=8, patience=3).epochs) == 8


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
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
    ],
)
def test_options_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**change)


def test_weights_of_the_way_to_the_objective_are_kept_for_the_time_being_only() -> None:
    """Log-det bounds the entropy from above, so that its loss is the lower one: by it, an annealed training would never get anywhere."""

    class Annealed(Meddling):
        def at(self, progress: float) -> Meddling:
            self.share = 1.0 if progress < 0.5 else 0.0
            return self

    script = [0.5, 0.4, 0.4, 0.6, 1.5, 1.2, 1.3, 1.4]
    scripted = Annealed(judge=lambda value, epoch: value if epoch < 0 else value._replace(loss=torch.tensor(script[epoch])))
    history = fit(build(), scripted, epochs=8, patience=3)
    assert history.best_epoch == 5
    assert len(history.epochs) == 8
