"""Targets in training: the loss and its gradient are those of the dense joint Gaussian; weights; unlabelled steps; the warm-up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.head import TargetHead
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.objectives.objective import Objective, ObjectiveValue
from ldm_filter.training import TrainingOptions, train
from ldm_filter.training.supervision import Figures, named, target_density
from ldm_filter.training.warm_up import warm_up
from ldm_filter.types import Context, Gaussian, Sequences
from tests.models.problems import rng, seeded

SERIES, STEPS, M, N, D = 3, 6, 2, 3, 2


def model(kind: str = "linear") -> LatentFilter:
    with seeded():
        made = LatentFilter(Encoder((M,), M, "mlp"), LinearDynamics(N, M, generator=rng()), head=TargetHead(N, D, kind)).double()
    with torch.no_grad():
        made.head.weight.copy_(torch.randn(D, N, generator=rng(1), dtype=torch.float64))  # type: ignore[union-attr]
    return made


def batch(seed: int = 2) -> Sequences:
    values = torch.randn(SERIES, STEPS, M, generator=rng(seed), dtype=torch.float64)
    targets = torch.randn(SERIES, STEPS, D, generator=rng(seed + 1), dtype=torch.float64)
    targets[0, 1] = targets[1, 3, 0] = math.nan
    lengths = torch.tensor([STEPS, STEPS, STEPS - 2])
    observed = (torch.arange(STEPS) < lengths[:, None]).unsqueeze(-1).expand_as(values)
    return Sequences(values, observed, lengths, Context(targets=targets))


def dense_loss(made: LatentFilter, given: Sequences) -> Tensor:
    """Mean of -log p(y_t | z_1 .. z_t), each by conditioning the joint Gaussian of h_t and the measurements so far."""
    ssm, head = made.dynamics.state_space(), made.head
    assert head is not None
    measured = made.encoder(given.values, given.observed)
    A, Q, C = (part.double() for part in (ssm.transition_matrix, ssm.transition_cov, ssm.observation_matrix))
    means, covs = [ssm.initial.mean.double()], [[ssm.initial.cov.double()]]  # covs[t][s] = Cov(h_t, h_s), s <= t
    for t in range(1, STEPS):
        means.append(A @ means[-1] + ssm.transition_offset)
        covs.append([A @ covs[-1][s] if s < t - 1 else A @ covs[t - 1][s] for s in range(t)])
        covs[-1].append(A @ covs[t - 1][t - 1] @ A.mT + Q)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for series in range(SERIES):
        for t in range(int(given.lengths[series])):
            y = given.context.targets[series, t]  # type: ignore[index]
            known = ~torch.isnan(y)
            if not known.any():
                continue
            rows = range(t + 1)
            cross = torch.cat([covs[t][s] @ C.mT for s in rows], dim=1)
            square = torch.cat([torch.cat([C @ (covs[r][s] if s <= r else covs[s][r].mT) @ C.mT for s in rows], dim=1) for r in rows])
            square = square + torch.block_diag(*[measured.cov[0, 0]] * (t + 1))
            error = torch.cat([measured.mean[series, s] - C @ means[s] - ssm.observation_offset for s in rows])
            gain = torch.linalg.solve(square, cross.mT).mT
            told = head(Gaussian((means[t] + gain @ error)[None, None], (covs[t][t] - gain @ cross.mT)[None, None]))
            normal = torch.distributions.MultivariateNormal(told.mean[0, 0][known], told.cov.reshape(D, D)[known][:, known])
            total, count = total - normal.log_prob(y[known]), count + 1
    return total / count


def filter_loss(made: LatentFilter, given: Sequences) -> Tensor:
    measurements, seen = made.encode(given.values, given.observed)
    filtered, _ = made.dynamics.moments(measurements, seen, given.context)
    assert made.head is not None
    found = target_density(made.head, filtered, given)
    assert found is not None
    return found.nll(lambda part: part)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_loss_and_gradient_are_those_of_the_joint_gaussian(kind: str) -> None:
    made, given = model(kind), batch()
    losses = [filter_loss(made, given), dense_loss(made, given)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, [*made.parameters()], allow_unused=True) for loss in losses]
    assert sum(part is not None and bool(part.abs().max() > 1e-6) for part in gradients[0]) > 10  # encoder, dynamics and head
    for ours, theirs in zip(*gradients, strict=True):
        if ours is not None or theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_weights_and_batches_without_targets() -> None:
    own = ObjectiveValue(*(torch.tensor(value) for value in (2.0, -1.5, -0.5, 0.0)))
    nothing = torch.tensor(math.nan)
    assert float(Figures(own, torch.tensor(4.0)).loss(0.25)) == 0.75 * 2.0 + 0.25 * 4.0
    assert float(Figures(None, torch.tensor(4.0)).loss(1.0)) == 4.0
    assert float(Figures(own, nothing).loss(0.5)) == 1.0 and float(Figures(own, None).loss(0.0)) == 2.0
    assert named(Figures(own, torch.tensor(4.0)).row(), 0.25)["loss"] == 2.5
    assert named(Figures(None, torch.tensor(4.0)).row(), 1.0) == {"loss": 4.0, "target_nll": 4.0}
    assert "target_nll" not in named(Figures(own, None).row(), 0.0)


def training(weight: float, made: LatentFilter, given: Sequences, epochs: int = 8) -> list[dict[str, float]]:
    options = TrainingOptions(epochs=epochs, supervision=weight, progress=False, accelerator="cpu", precision="64-true", learning_rate=1e-2)
    return train(made, Objective(gauge_weight=0.1), lambda _: iter([given]), 1, options, lambda _: iter([given])).epochs


def test_training_lowers_the_targets_nll() -> None:
    made, given = model(), batch()
    before = float(filter_loss(made, given).detach())
    rows = training(1.0, made, given)
    assert set(rows[0]) >= {"loss", "target_nll", "validation_target_nll"} and "alignment" not in rows[0]
    assert float(filter_loss(made, given).detach()) < before - 0.1
    assert rows[-1]["validation_loss"] == rows[-1]["validation_target_nll"]
    mixed = training(0.5, model(), given, epochs=2)[-1]
    assert mixed["loss"] == pytest.approx(0.5 * (mixed["gauge"] - mixed["alignment"] - mixed["entropy"]) + 0.5 * mixed["target_nll"])


def test_what_a_padded_or_unlabelled_step_holds_is_of_no_account() -> None:
    made, given = model(), batch()
    spoilt = given.context.targets.clone()  # type: ignore[union-attr]
    spoilt[2, STEPS - 2 :] = 1e6
    changed = given._replace(context=Context(targets=spoilt))
    torch.testing.assert_close(filter_loss(made, given), filter_loss(made, changed))
    with pytest.raises(ValueError, match=r"supervision is 1\.5"):
        TrainingOptions(supervision=1.5)


def test_the_warm_up_teaches_the_encoder_alone() -> None:
    made, given = model(), batch()
    targets = torch.stack([given.values[..., 0] * 2 + 1, given.values.square().sum(-1)], dim=-1)
    given = given._replace(context=Context(targets=targets))
    standard = Gaussian(targets.flatten(0, 1).mean(0), torch.diag(targets.flatten(0, 1).var(0)))
    dynamics = {name: value.clone() for name, value in made.dynamics.state_dict().items()}
    options = TrainingOptions(learning_rate=1e-2, progress=False)
    losses = warm_up(made, lambda _: iter([given]), 1, 60, standard, options)
    assert losses[-1] < losses[0] - 1.0
    assert all(torch.equal(value, dynamics[name]) for name, value in made.dynamics.state_dict().items())
