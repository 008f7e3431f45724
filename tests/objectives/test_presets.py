"""The named methods against their published losses, written out by hand; and what goes together with what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ldm_filter.core.directional import normalise
from ldm_filter.models.recurrent import build_predictor
from ldm_filter.objectives.objective import ESTIMATORS, Objective
from ldm_filter.objectives.presets import ANNEALED, LATENT_MODELS, OBJECTIVES, PRESETS, Composition, compose
from ldm_filter.types import Gaussian
from tests.core.problems import constant_ssm
from tests.models.problems import seeded

PAIRS, DIM = 40, 3


def views() -> Tensor:
    """Two views of each event as a series of two steps, ``(B, 2, m)``; a leaf."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(PAIRS, 1, DIM, generator=generator, dtype=torch.float64)
    return (shared + 0.3 * torch.randn(PAIRS, 2, DIM, generator=generator, dtype=torch.float64)).requires_grad_()


def predictor_of(composition: Composition) -> torch.nn.Module:
    """The preset's latent model with weights that are not those of the start."""
    with seeded():
        module = build_predictor(composition.latent_model, DIM, composition.objective.space, **composition.settings).double()
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return module


def evaluate(name: str, z: Tensor, log_volume: Tensor | None = None) -> Tensor:
    """-F of a preset, without the gauge; on the sphere of the latents' directions, as the encoder gives them there."""
    composition = PRESETS[name]
    measurements = Gaussian(z, torch.eye(DIM, dtype=torch.float64)[None, None])
    observed = torch.ones(z.shape[:2], dtype=torch.bool)
    value = replace(composition.objective, gauge_weight=0.0)(
        predictor_of(composition)(measurements, observed), measurements, observed, log_volume=log_volume
    )
    assert float(value.gauge.detach()) == 0.0
    return value.loss


def predicted(name: str, z: Tensor) -> Tensor:
    """What the preset's own latent model says about each second view, ``(B, m)``."""
    measurements = Gaussian(z, torch.eye(DIM, dtype=torch.float64)[None, None])
    density = predictor_of(PRESETS[name])(measurements, torch.ones(z.shape[:2], dtype=torch.bool)).density
    return density[0].expand_as(z)[:, 1]


def vicreg(z: Tensor) -> Tensor:
    """Bardes et al., eqs. 1-6, with their weights 25, 25, 1."""
    one, two = z[:, 0], z[:, 1]

    def variance(x: Tensor) -> Tensor:
        return torch.relu(1.0 - torch.sqrt(x.var(0) + 1e-4)).mean()

    def covariance(x: Tensor) -> Tensor:
        cov = torch.cov(x.mT)
        return sum(cov[i, j] ** 2 for i in range(DIM) for j in range(DIM) if i != j) / DIM  # type: ignore[return-value]

    invariance = (one - two).square().sum(-1).mean()
    return 25.0 * invariance + 25.0 * (variance(one) + variance(two)) + covariance(one) + covariance(two)


def vicreg_log_det(z: Tensor) -> Tensor:
    one, two = z[:, 0], z[:, 1]
    volume = sum(torch.logdet(torch.cov(x.mT, correction=0)) for x in (one, two))
    return 25.0 * (one - two).square().sum(-1).mean() - 0.5 * volume


def nt_xent(z: Tensor) -> Tensor:
    """Chen et al., eq. 1, at temperature 0.1: l(i, j) + l(j, i), the mean over pairs."""
    rows = torch.cat([z[:, 0], z[:, 1]])
    total = z.new_zeros(())
    for i in range(2 * PAIRS):
        j = (i + PAIRS) % (2 * PAIRS)
        similar = rows @ rows[i] / 0.1
        others = torch.cat([similar[:i], similar[i + 1 :]])
        total = total - similar[j] + torch.logsumexp(others, 0)
    return total / PAIRS


def info_nce(z: Tensor) -> Tensor:
    """van den Oord et al., eq. 4: which of all targets belongs to the prediction? Every step of both views is one."""
    measurements = Gaussian(z, torch.eye(DIM, dtype=torch.float64)[None, None])
    density = predictor_of(PRESETS["cpc"])(measurements, torch.ones(z.shape[:2], dtype=torch.bool)).density
    scores = density.direction.reshape(-1, DIM) @ z.reshape(-1, DIM).mT / 0.1  # type: ignore[union-attr]
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def byol(z: Tensor) -> Tensor:
    """Grill et al., eq. 2: |p/|p| - z'/|z'||^2, the target detached."""
    p = predicted("byol", z)
    return (p / p.norm(dim=-1, keepdim=True) - z[:, 1].detach()).square().sum(-1).mean()


def simsiam(z: Tensor) -> Tensor:
    """Chen and He, eq. 1: the negative cosine to the detached target, one direction (the reversed pair gives the other)."""
    return -torch.nn.functional.cosine_similarity(predicted("simsiam", z), z[:, 1].detach(), dim=-1).mean()


def jepa(z: Tensor) -> Tensor:
    """Assran et al., eq. 1: squared distance to the detached target."""
    return (predicted("jepa", z) - z[:, 1].detach()).square().sum(-1).mean()


PUBLISHED: dict[str, Callable[[Tensor], Tensor]] = {
    "vicreg": vicreg_log_det,
    "vicreg-hinge": vicreg,
    "simclr": nt_xent,
    "cpc": info_nce,
    "byol": byol,
    "simsiam": simsiam,
    "jepa": jepa,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_the_published_loss_up_to_a_constant(name: str) -> None:
    """The same gradient, and the same difference of the loss between two sets of latents."""
    place = normalise if PRESETS[name].objective.space == "sphere" else torch.clone
    z = views()
    ours, theirs = evaluate(name, place(z)), PUBLISHED[name](place(z))
    (slope,) = torch.autograd.grad(ours, z)
    (expected,) = torch.autograd.grad(theirs, z)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)
    other = place(0.7 * views().detach().flip(0).roll(1, -1) + 0.3)
    difference = float((evaluate(name, other) - ours).detach())
    assert abs(difference) > 1e-3
    assert difference == pytest.approx(float((PUBLISHED[name](other) - theirs).detach()), rel=1e-6, abs=1e-9)


def test_ica_is_the_likelihood_of_linear_independent_components() -> None:
    """z = W x: < sum_d log p(w_d x) > + log |det W|, p logistic (Bell and Sejnowski's infomax), in W."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(PAIRS, 2, DIM, generator=generator, dtype=torch.float64)
    w = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    sources = (data @ w.mT).reshape(-1, DIM)
    likelihood = (-2.0 * torch.log(torch.cosh(0.5 * sources)) - math.log(4.0)).sum(-1).mean() + torch.linalg.slogdet(w).logabsdet
    ours = evaluate("ica", data @ w.mT, torch.linalg.slogdet(w).logabsdet.expand(7))
    assert float(ours.detach()) == pytest.approx(-float(likelihood.detach()), abs=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(value, w)[0] for value in (-ours, likelihood)))


def test_temporal_ica_is_the_likelihood_of_independent_autoregressions() -> None:
    data = views().detach()
    memory = torch.tanh(predictor_of(PRESETS["temporal-ica"]).memory.detach())  # type: ignore[union-attr, operator]
    density = torch.distributions.Normal(memory * data[:, 0], 1.0).log_prob(data[:, 1]).sum(-1).mean()
    assert float(evaluate("temporal-ica", data, torch.full((3,), 0.7, dtype=torch.float64)).detach()) == pytest.approx(
        -float(density) - 0.7, abs=1e-10
    )


def test_kalman_is_the_default() -> None:
    assert PRESETS["kalman"] == compose("log-det") == Composition("dynamics", Objective("log-det"))


def test_penalty_of_vicreg_is_the_second_order_of_the_log_determinant() -> None:
    """Why Table 1 calls it a log-determinant: at unit variances 1/2 log det C = -D/4 c + O(correlation^3)."""
    from ldm_filter.objectives.entropy import log_det, variance_covariance

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, DIM, generator=generator, dtype=torch.float64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.mT)), (z - z.mean(0)).mT, upper=False).mT
    mix = torch.tensor([[0.0, 1.0, -0.5], [1.0, 0.0, 0.3], [-0.5, 0.3, 0.0]], dtype=torch.float64)

    def lost(size: float) -> tuple[float, float]:
        moved = white @ torch.linalg.cholesky(torch.eye(DIM, dtype=torch.float64) + size * mix).mT
        ours = variance_covariance(moved, variance_weight=0.0, covariance_weight=DIM / 4)
        return float(log_det(moved) - log_det(white)), float(ours)

    for size in (0.02, 0.04):
        exact, surrogate = lost(size)
        assert surrogate == pytest.approx(exact, rel=2 * size)


# What goes together.


def is_refused(latent_model: str, entropy: str, space: str, mutual_information: bool) -> str | None:
    try:
        compose(entropy, latent_model, space, mutual_information, square=True)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("latent_model", "space"), list(itertools.product(LATENT_MODELS, ("plane", "sphere"))))
def test_every_combination_is_evaluated_or_refused_with_the_reason(latent_model: str, space: str) -> None:
    """Latent model x estimator x {LDM, MI} x {plane, sphere}: a finite value, and a gradient for the latents, or a reason."""
    entropies = [name for name in OBJECTIVES if name not in PRESETS]
    for entropy, mutual_information in itertools.product(entropies, (True, False)):
        reason = is_refused(latent_model, entropy, space, mutual_information)
        if reason is not None:
            assert any(word in reason for word in ("expected one of", "do not go together: ", "has no joint form")), reason
            continue
        chosen = compose(entropy, latent_model, space, mutual_information, square=True)
        leaf = views()
        z = normalise(leaf) if space == "sphere" else leaf
        measurements, observed = Gaussian(z, torch.eye(DIM, dtype=torch.float64)[None, None]), torch.ones(PAIRS, 2, dtype=torch.bool)
        model = constant_ssm(DIM, DIM) if latent_model == "dynamics" else predictor_of(chosen)(measurements, observed)
        volume = torch.zeros(3, dtype=torch.float64) if chosen.objective.needs_volume else None
        value = chosen.objective(model, measurements, observed, log_volume=volume)
        (slope,) = torch.autograd.grad(value.loss, leaf)
        name = f"{latent_model} {entropy} {space} {mutual_information}"
        assert torch.isfinite(value.loss), name
        assert torch.isfinite(slope).all(), name
        assert float(slope.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("latent_model", "entropy", "space", "reason"),
    [
        ("dynamics", "kde", "sphere", "its predictions are densities on the plane and leave the sphere"),
        ("sources", "kde", "sphere", "leave the sphere"),
        ("pair", "log-det", "sphere", "points of a sphere fill no volume"),
        ("recurrent", "jacobian", "sphere", "points of a sphere fill no volume"),
        ("recurrent", "info-nce", "plane", "expected one of log-det"),
        ("pair", "stop-gradient", "plane", "without a predictor every encoder that gives a constant is optimal"),
        ("sources", "stop-gradient", "plane", "it predicts nothing from the past"),
        ("recurrent", "conditional-log-det", "plane", "it takes no notice of R"),
        ("kalman", "log-det", "plane", "latent_model is 'kalman', expected one of auto, dynamics"),
    ],
)
def test_refusals(latent_model: str, entropy: str, space: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compose(entropy, latent_model, space)


def test_presets_refuse_what_contradicts_them() -> None:
    assert compose("simclr", "pair", "sphere") is PRESETS["simclr"]
    assert compose("jepa", mutual_information=False) is PRESETS["jepa"]
    with pytest.raises(ValueError, match="'simclr' has latent_model 'pair', not 'recurrent'"):
        compose("simclr", "recurrent")
    with pytest.raises(ValueError, match="'vicreg' lives on the plane, not the sphere"):
        compose("vicreg", space="sphere")
    with pytest.raises(ValueError, match="'cpc' is a form of F_MI; leave mutual_information out"):
        compose("cpc", mutual_information=False)
    with pytest.raises(ValueError, match="noise is 'input', but latent_model 'pair' takes no notice of R"):
        compose("vicreg", noise="input")
    with pytest.raises(ValueError, match="it has a belief of its own about the first latent"):
        Composition("recurrent", Objective(prior="flat"))
    for name in ("ica", "jacobian"):
        with pytest.raises(ValueError, match="needs latent_dim equal to the number of entries"):
            compose(name)
        assert compose(name, square=True).objective.needs_volume


def test_auto() -> None:
    assert compose("auto").objective.entropy == "log-det"
    assert compose("auto", square=True).objective.entropy == "jacobian"
    for square in (True, False):
        assert compose("auto", noise="input", square=square).objective.entropy == "conditional-log-det"
    assert compose("auto", "sources", square=True).objective.entropy == "jacobian"
    assert compose("auto", "sources").objective.entropy == "log-det"
    assert compose("auto", "pair", "sphere").objective.entropy == "kde"
    with pytest.raises(ValueError, match="objective is 'entropy', expected one of auto, log-det"):
        compose("entropy")
    assert set(ESTIMATORS["plane"]) | set(ESTIMATORS["sphere"]) | set(PRESETS) | set(ANNEALED) | {"auto"} == set(OBJECTIVES)
