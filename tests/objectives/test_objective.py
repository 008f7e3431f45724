"""The objective's value, gradients and invariances on models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.objectives.latent_models import kalman_log_density
from ldm_filter.objectives.objective import ESTIMATORS, Objective
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, random_measurements

# The change of variables needs the encoder's volume and is tested apart; VICReg's penalty has no joint form.
NAMES = tuple(name for name in ESTIMATORS["plane"] if name not in ("jacobian", "variance-covariance"))


def autoregression(a: float, series: int = 200, steps: int = 40) -> tuple[StateSpace, Gaussian]:
    """z_t = a z_{t-1} + w of unit variance, and the model it came from (the measurement noise is next to nothing)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(series, steps, 2, generator=generator, dtype=torch.float64)
    z = [noise[:, 0]]
    for t in range(1, steps):
        z.append(a * z[-1] + math.sqrt(1 - a * a) * noise[:, t])
    eye = torch.eye(2, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    ssm = StateSpace(a * eye, zero, (1 - a * a) * eye, eye, zero, Gaussian(zero, eye))
    return ssm, Gaussian(torch.stack(z, dim=1), 1e-9 * eye.expand(1, 1, 2, 2))


def everything(measurements: Gaussian) -> Tensor:
    return torch.ones(measurements.mean.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("a", [0.0, 0.6, 0.9])
@pytest.mark.parametrize(("entropy", "tolerance"), [("log-det", 0.05), ("knn", 0.2)])
def test_autoregression_in_closed_form(a: float, entropy: str, tolerance: float) -> None:
    """With the true model F_MI is the mutual information of present and past, F_LDM (a divergence) is 0."""
    ssm, measurements = autoregression(a)
    information = -math.log(1 - a * a) * 39 / 40  # of two independent latents; the first step has no past
    mi = Objective(entropy)(ssm, measurements, everything(measurements))
    ldm = Objective(entropy, mutual_information=False)(ssm, measurements, everything(measurements))
    assert float(mi.alignment + mi.entropy) == pytest.approx(information, abs=tolerance)
    assert float(ldm.alignment + ldm.entropy) == pytest.approx(0.0, abs=tolerance)
    assert float(mi.gauge) == pytest.approx(0.0, abs=1e-2)
    assert float(mi.loss) == pytest.approx(float(mi.gauge - mi.alignment - mi.entropy))


def test_a_wrong_model_loses_its_divergence_from_the_truth() -> None:
    ssm, measurements = autoregression(0.9)
    wrong = ssm._replace(transition_cov=4.0 * ssm.transition_cov)
    value = Objective("log-det", mutual_information=False)(wrong, measurements, everything(measurements))
    # KL[N(0, q) || N(0, 4 q)] of two latents
    assert float(value.alignment + value.entropy) == pytest.approx(-(math.log(4.0) + 0.25 - 1.0), abs=0.03)


@pytest.mark.parametrize("mutual_information", [True, False])
@pytest.mark.parametrize("entropy", ["log-det", "conditional-log-det", "kde"])
def test_a_joint_change_of_scale_changes_nothing_but_the_gauge(entropy: str, mutual_information: bool) -> None:
    """z -> T z, R -> T R T', C -> T C; and h -> S h, A -> S A S^-1, Q -> S Q S', C -> C S^-1."""
    ssm = constant_ssm(3, 2)
    measurements = random_measurements(4, 20, 2, varying=entropy != "kde")
    t = torch.diag(torch.tensor([1e-3, 50.0], dtype=torch.float64))
    s = torch.tensor([[2.0, 0.0, 0.3], [0.1, 1e2, 0.0], [0.0, 0.5, 1e-2]], dtype=torch.float64)
    back = torch.linalg.inv(s)
    moved = StateSpace(
        s @ ssm.transition_matrix @ back,
        s @ ssm.transition_offset,
        s @ ssm.transition_cov @ s.mT,
        t @ ssm.observation_matrix @ back,
        t @ ssm.observation_offset,
        Gaussian(s @ ssm.initial.mean, s @ ssm.initial.cov @ s.mT),
    )
    rescaled = Gaussian(measurements.mean @ t.mT, t @ measurements.cov @ t.mT)
    objective = Objective(entropy, mutual_information, gauge_weight=0.0)
    before, after = objective(ssm, measurements, everything(measurements)), objective(moved, rescaled, everything(measurements))
    assert float(after.alignment) == pytest.approx(float(before.alignment) - math.log(1e-3 * 50.0), abs=1e-8)
    assert float(after.loss) == pytest.approx(float(before.loss), abs=1e-8)
    gauge = Objective(entropy, mutual_information, gauge_weight=2.0)
    assert float(gauge(moved, rescaled, everything(measurements)).gauge) > 10 * float(gauge(ssm, measurements, everything(measurements)).gauge)


def test_gauge_is_least_at_zero_mean_and_unit_variance() -> None:
    ssm, measurements = autoregression(0.0, steps=20)
    objective = Objective("stop-gradient", gauge_weight=1.0)
    flat = measurements.mean.flatten(0, 1)
    standard = (measurements.mean - flat.mean(0)) / flat.std(0, correction=0)
    for scale, shift in ((1.0, 0.0), (1.3, 0.0), (0.7, 0.0), (1.0, 0.4)):
        gauge = float(objective(ssm, measurements._replace(mean=scale * standard + shift), everything(measurements)).gauge)
        assert gauge == pytest.approx(shift**2 + scale**2 - 1 - math.log(scale**2), abs=1e-9)


def test_stop_gradient_has_the_value_of_the_likelihood_but_not_its_gradient() -> None:
    """The gradient leaves out the target: it is that of the likelihood less the part that runs through z_t of the residual."""
    ssm = constant_ssm(3, 2)
    measurements = random_measurements(2, 6, 2)
    z = measurements.mean.requires_grad_()
    observed = everything(measurements)
    observed[1, 3] = False
    plain = kalman_log_density(ssm, measurements._replace(mean=z), observed)
    plug_in = kalman_log_density(ssm, measurements._replace(mean=z), observed, detach_target=True)
    torch.testing.assert_close(plug_in, plain, rtol=1e-10, atol=1e-10)
    full, part = torch.autograd.grad(plain.sum(), z)[0], torch.autograd.grad(plug_in.sum(), z)[0]
    # d/dz_t of -1/2 (z_t - m)' S^-1 (z_t - m), with m and S held
    projected = filter_sequence(ssm, measurements._replace(mean=z.detach()), observed).projected
    target = -torch.linalg.solve(projected.cov, (z.detach() - projected.mean).unsqueeze(-1)).squeeze(-1) * observed.unsqueeze(-1)
    torch.testing.assert_close(part, full - target, rtol=1e-8, atol=1e-8)
    assert float(part[:, -1].abs().max()) == 0.0  # the last latent predicts nothing
    value = Objective("stop-gradient")(ssm, measurements, observed)
    assert float(value.entropy) == 0.0


def test_stop_gradient_does_not_carry_a_nan_from_hidden_steps_into_the_gradient() -> None:
    ssm = constant_ssm(2, 2)
    measurements = random_measurements(1, 4, 2)
    observed = everything(measurements)
    observed[0, 2] = False
    mean = measurements.mean.clone()
    mean[0, 2] = torch.nan
    offset = ssm.transition_offset.clone().requires_grad_()
    kalman_log_density(ssm._replace(transition_offset=offset), Gaussian(mean, measurements.cov), observed, detach_target=True).sum().backward()
    assert offset.grad is not None
    assert torch.isfinite(offset.grad).all()


@pytest.mark.parametrize("mutual_information", [True, False])
@pytest.mark.parametrize("entropy", NAMES)
def test_hidden_steps_count_for_nothing(entropy: str, mutual_information: bool) -> None:
    ssm = constant_ssm(3, 2)
    measurements = random_measurements(5, 12, 2, varying=True)
    observed = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) > 0.25
    objective = Objective(entropy, mutual_information)
    garbage = measurements._replace(mean=torch.where(observed.unsqueeze(-1), measurements.mean, 1e6))
    torch.testing.assert_close(objective(ssm, garbage, observed).loss, objective(ssm, measurements, observed).loss, rtol=0, atol=0)
    # and a series padded with hidden steps is the series
    pad = Gaussian(
        torch.cat([measurements.mean, torch.zeros(5, 4, 2)], dim=1), torch.cat([measurements.cov, torch.eye(2).double().expand(5, 4, 2, 2)], dim=1)
    )
    padded = torch.cat([observed, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(objective(ssm, pad, padded).loss, objective(ssm, measurements, observed).loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mutual_information", [True, False])
@pytest.mark.parametrize("entropy", NAMES)
def test_every_process_evaluates_the_global_batch(entropy: str, mutual_information: bool) -> None:
    """Two halves of unequal numbers of observed steps: what the other half would send is recorded, then played back."""
    ssm = constant_ssm(3, 2)
    measurements = random_measurements(6, 15, 2, varying=True)
    observed = torch.rand(6, 15, generator=torch.Generator().manual_seed(1)) > 0.3
    observed[:3, 5:9] = False
    objective = Objective(entropy, mutual_information)
    halves = [(Gaussian(measurements.mean[half], measurements.cov[half]), observed[half]) for half in (slice(0, 3), slice(3, 6))]
    sent: list[list[Tensor]] = [[], []]
    for half, record in zip(halves, sent, strict=True):

        def keep(part: Tensor, record: list[Tensor] = record) -> Tensor:
            record.append(part)
            return part

        objective(ssm, *half, gather=keep)
    joined = [iter([torch.cat(parts) for parts in zip(*sent, strict=True)]) for _ in halves]
    values = [objective(ssm, *half, gather=lambda _, parts=parts: next(parts)) for half, parts in zip(halves, joined, strict=True)]
    joint = objective(ssm, measurements, observed)
    for name in ("entropy", "gauge"):
        torch.testing.assert_close(getattr(values[0], name), getattr(joint, name), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(getattr(values[1], name), getattr(joint, name), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(0.5 * (values[0].alignment + values[1].alignment), joint.alignment, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(0.5 * (values[0].loss + values[1].loss), joint.loss, rtol=1e-10, atol=1e-10)


def test_change_of_variables_is_the_likelihood_of_the_data() -> None:
    """x = T^-1 z with z of the model: F = < log p(z) > + log |det T| = < log p(x) >, whatever T, with no entropy to estimate."""
    ssm, latents = autoregression(0.6)
    t = torch.tensor([[3.0, 1.0], [0.0, 0.01]], dtype=torch.float64)
    data = torch.linalg.solve(t, latents.mean.unsqueeze(-1)).squeeze(-1)
    back = torch.linalg.inv(t)
    of_data = StateSpace(*ssm[:3], back, ssm.observation_offset, ssm.initial)
    density = kalman_log_density(of_data, Gaussian(data, back @ latents.cov @ back.mT))
    volume = torch.full((7,), math.log(0.03), dtype=torch.float64)
    value = Objective("jacobian")(ssm, latents, everything(latents), log_volume=volume)
    assert float(value.alignment + value.entropy) == pytest.approx(float(density.mean()), abs=1e-8)
    assert float(value.loss) == pytest.approx(float(value.gauge - density.mean()), abs=1e-8)
    with pytest.raises(ValueError, match="log_volume is None"):
        Objective("jacobian")(ssm, latents, everything(latents))


def test_errors_give_the_reason() -> None:
    for name in ("auto", "logdet", "info-nce"):
        with pytest.raises(ValueError, match=f"entropy is '{name}', expected one of log-det"):
            Objective(name)
    with pytest.raises(ValueError, match="on the sphere; points of a sphere fill no volume"):
        Objective("log-det", space="sphere")
    with pytest.raises(ValueError, match=r"expected one of kde, knn, info-nce, stop-gradient on the sphere$"):
        Objective("entropy", space="sphere")
    with pytest.raises(ValueError, match="space is 'torus', expected 'plane' or 'sphere'"):
        Objective(space="torus")
    with pytest.raises(ValueError, match="prior is 'uniform'"):
        Objective(prior="uniform")
    with pytest.raises(ValueError, match="no estimate of the earlier latent's entropy; use prior='empirical'"):
        Objective("stop-gradient", prior="flat")
    with pytest.raises(ValueError, match="variance-covariance stands for the entropy of one step and has no joint form"):
        Objective("variance-covariance", mutual_information=False)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gauge_weight is"):
            Objective(gauge_weight=weight)
    ssm, measurements = constant_ssm(2, 2), random_measurements(2, 3, 2)
    with pytest.raises(ValueError, match="space is 'sphere', but the latent model's prediction is not von Mises-Fisher"):
        Objective("kde", space="sphere")(ssm, measurements, everything(measurements))


def test_a_batch_without_observations_is_refused() -> None:
    ssm, measurements = constant_ssm(2, 2), random_measurements(2, 3, 2)
    for name in NAMES:
        with pytest.raises(ValueError, match="observed is False at every step"):
            Objective(name)(ssm, measurements, torch.zeros(2, 3, dtype=torch.bool))


def test_an_annealed_objective_goes_from_one_estimator_to_the_other() -> None:
    ssm, measurements = autoregression(0.6, series=20)
    seen = everything(measurements)
    first, last, way = Objective("log-det"), Objective("knn"), Objective("knn", start="log-det")
    entropies = [float(objective(ssm, measurements, seen).entropy) for objective in (first, last)]
    found = [float(way.at(progress)(ssm, measurements, seen).entropy) for progress in (0.0, 0.4, 0.5, 0.6, 0.9)]
    middle = 0.5 * sum(entropies)
    assert found == pytest.approx([entropies[0], entropies[0], middle, entropies[1], entropies[1]])
    assert float(way(ssm, measurements, seen).entropy) == pytest.approx(entropies[1])  # what held-out data are judged by
    assert first.at(0.1) is first
    with pytest.raises(ValueError, match="start is 'log-det'"):
        Objective("kde", space="sphere", start="log-det")
