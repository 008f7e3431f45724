"""The contract of every latent model that predicts in closed form; a new one is a line in MODELS."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import special
from torch import Tensor, nn

from ldm_filter.core import directional
from ldm_filter.models.predictors import PairPredictor, PredictiveDensity, RegressionPredictor, SourcePredictor
from ldm_filter.models.recurrent import RecurrentPredictor, build_predictor
from ldm_filter.objectives.latent_models import prediction_log_density, source_log_density
from ldm_filter.objectives.objective import Objective
from ldm_filter.types import Gaussian, Sources, VonMisesFisher
from tests.models.problems import rng, seeded


def walk(series: int, steps: int, dim: int = 3) -> Gaussian:
    """z_t = 0.8 z_{t-1} + noise that mixes the latents."""
    noise = torch.randn(series, steps, dim, generator=rng(7), dtype=torch.float64) @ torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0.2, 0.4]]).double()
    z = noise.clone()
    for step in range(1, steps):
        z[:, step] += 0.8 * z[:, step - 1] + 0.1
    return Gaussian(z, torch.eye(dim, dtype=torch.float64)[None, None])


def regression() -> RegressionPredictor:
    """Has seen one batch, and is used from then on."""
    module, measurements = RegressionPredictor(3), walk(50, 10)
    module(measurements, everything(measurements.mean))
    return module.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "pair": lambda: PairPredictor(3),
    "pair-fixed": lambda: PairPredictor(3, variance=0.3),
    "pair-predictor": lambda: PairPredictor(3, learned=True),
    "pair-regression": regression,
    "pair-sphere": lambda: PairPredictor(3, "sphere"),
    "pair-predictor-sphere": lambda: PairPredictor(3, "sphere", learned=True, concentration=5.0),
    "gru": lambda: RecurrentPredictor(3),
    "lstm": lambda: RecurrentPredictor(3, cell="lstm", variance=0.3),
    "gru-sphere": lambda: RecurrentPredictor(3, "sphere", concentration=5.0),
    "sources": lambda: SourcePredictor(3),
    "sources-static": lambda: SourcePredictor(3, "laplace", temporal=False),
    "sources-gaussian": lambda: SourcePredictor(3, "gaussian"),
}
STATIC = "sources-static"


def model_of(name: str) -> nn.Module:
    with seeded():
        module = MODELS[name]().double()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return module


def latents(name: str, series: int = 4, steps: int = 9) -> Tensor:
    z = torch.randn(series, steps, 3, generator=rng(1), dtype=torch.float64)
    return directional.normalise(z) if "sphere" in name else z


def density(name: str, z: Tensor, observed: Tensor, detach_target: bool = False) -> tuple[Tensor, Tensor]:
    measurements = Gaussian(z, torch.eye(3, dtype=torch.float64)[None, None])
    prediction = model_of(name)(measurements, observed)
    return prediction_log_density(prediction, measurements, detach_target), prediction.counted


def everything(z: Tensor) -> Tensor:
    return torch.ones(z.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("name", MODELS)
class TestContract:
    def test_a_step_is_predicted_from_those_before_it_alone(self, name: str) -> None:
        """log P(z_t | z_<t) of the steps before a change is what it was, bit for bit."""
        z = latents(name)
        changed = z.clone()
        changed[:, 5:] = latents(name).flip(0)[:, 5:]
        before, after = (density(name, x, everything(x))[0].detach() for x in (z, changed))
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.equal(before[:, 5:], after[:, 5:])

    def test_it_sees_the_past(self, name: str) -> None:
        z = latents(name).requires_grad_()
        value = density(name, z, everything(z), detach_target=True)[0][:, 5].sum()
        if name == STATIC:
            assert not value.requires_grad
            return
        (slope,) = torch.autograd.grad(value, z)
        assert float(slope[:, 4].abs().min()) > 0.0
        assert float(slope[:, 5:].abs().max()) == 0.0  # a detached target, and nothing from the future

    def test_detaching_the_target_changes_no_value(self, name: str) -> None:
        z = latents(name)
        assert torch.equal(*(density(name, z, everything(z), detach).__getitem__(0) for detach in (True, False)))

    def test_what_is_hidden_counts_for_nothing(self, name: str) -> None:
        z = latents(name)
        observed = torch.rand(z.shape[:2], generator=rng(2)) > 0.3
        bad = torch.where(observed.unsqueeze(-1), z, torch.nan).requires_grad_()
        value, counted = density(name, bad, observed)
        expected, _ = density(name, z, observed)
        assert torch.equal(value.detach(), expected.detach())
        assert not bool((counted & ~observed).any())
        assert bool((value[~counted] == 0).all())
        (slope,) = torch.autograd.grad(value.sum(), bad)
        assert torch.isfinite(slope).all()

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        z, module = latents(name), model_of(name)
        measurements = Gaussian(z, torch.eye(3, dtype=torch.float64)[None, None])
        if not list(module.parameters()):
            assert name in ("pair-fixed", "pair-regression", STATIC)
            return
        prediction_log_density(module(measurements, everything(z)), measurements).sum().backward()
        for label, parameter in module.named_parameters():
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, label

    def test_gradient(self, name: str) -> None:
        raw = torch.randn(2, 4, 3, generator=rng(3), dtype=torch.float64, requires_grad=True)
        place = directional.normalise if "sphere" in name else torch.clone
        assert torch.autograd.gradcheck(lambda x: density(name, place(x), everything(x))[0], raw)

    def test_float32_and_nothing_given_is_changed(self, name: str) -> None:
        z = latents(name).float()
        observed, kept = everything(z), z.clone()
        measurements = Gaussian(z, torch.eye(3)[None, None])
        value = prediction_log_density(model_of(name).float()(measurements, observed), measurements)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), density(name, kept.double(), observed)[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(z, kept) and bool(observed.all())


# The regression of neighbours.


def neighbours(z: Tensor) -> tuple[Tensor, Tensor]:
    return z[:, :-1].flatten(0, 1), z[:, 1:].flatten(0, 1)


def profile(z: Tensor) -> Tensor:
    """Mean log-likelihood of a regression maximised over its coefficients: -1/2 log det of the residuals' covariance - m/2 (1 + log 2 pi)."""
    before, after = (part - part.mean(0) for part in neighbours(z))
    rest = after - before @ torch.linalg.lstsq(before, after).solution
    return -0.5 * torch.logdet(rest.mT @ rest / len(rest)) - 1.5 * (1 + math.log(2 * math.pi))


def test_regression_is_the_maximum_in_value_and_in_the_gradient_of_the_latents() -> None:
    z = walk(40, 8).mean.requires_grad_()
    measurements = Gaussian(z, torch.eye(3, dtype=torch.float64)[None, None])
    prediction = RegressionPredictor(3)(measurements, everything(z))
    value = prediction_log_density(prediction, measurements).sum() / prediction.counted.sum()
    expected = profile(z)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (value, expected)), rtol=1e-5, atol=1e-7)


def test_regression_with_the_log_determinant_is_the_gaussian_mutual_information() -> None:
    measurements = walk(500, 2)
    value = Objective("log-det", gauge_weight=0.0)(
        RegressionPredictor(3)(measurements, everything(measurements.mean)), measurements, everything(measurements.mean)
    )
    before, after = (torch.linalg.qr(part - part.mean(0)).Q for part in neighbours(measurements.mean))
    correlations = torch.linalg.svdvals(before.mT @ after)
    assert float(-value.loss) == pytest.approx(float(-0.5 * torch.log1p(-correlations.square()).sum()), abs=1e-5)


def test_regression_averages_what_training_batches_gave() -> None:
    module, measurements = RegressionPredictor(3, memory=0.5), walk(60, 5)
    halves = [Gaussian(half, measurements.cov) for half in measurements.mean.split(30)]
    for half in halves:
        module(half, everything(half.mean))
    pairs = [torch.cat(neighbours(half.mean), dim=-1) for half in halves]
    torch.testing.assert_close(module.mean, 0.5 * (pairs[0].mean(0) + pairs[1].mean(0)))
    kept = module.mean.clone()
    module.eval()(measurements, everything(measurements.mean))
    assert torch.equal(module.mean, kept)
    with pytest.raises(ValueError, match="the batch holds 4 pairs"):
        module.train()(Gaussian(measurements.mean[:1], measurements.cov), everything(measurements.mean[:1]))
    with pytest.raises(ValueError, match=r"memory is 1\.0"):
        RegressionPredictor(3, memory=1.0)


# Densities.


@pytest.mark.parametrize("dim", [2, 3, 5, 32])
@pytest.mark.parametrize("kappa", [1e-3, 0.5, 10.0, 300.0, 5000.0])
def test_normaliser_of_von_mises_and_fisher(dim: int, kappa: float) -> None:
    concentration = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    value = directional.log_normaliser(dim, concentration)
    (slope,) = torch.autograd.grad(value, concentration)
    order = dim / 2 - 1
    expected = order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - math.log(special.ive(order, kappa)) - kappa
    assert float(value.detach()) == pytest.approx(expected, rel=1e-10, abs=1e-9)
    assert float(slope) == pytest.approx(-special.ive(order + 1, kappa) / special.ive(order, kappa), rel=1e-6, abs=1e-9)


def test_von_mises_fisher_integrates_to_one() -> None:
    """Over the circle, and over the sphere by its area times the mean at evenly drawn points."""
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    at = VonMisesFisher(torch.tensor([0.6, 0.8], dtype=torch.float64), torch.tensor(7.0, dtype=torch.float64))
    assert float(directional.log_density(circle, at).exp().mean()) * 2 * math.pi == pytest.approx(1.0, abs=1e-9)
    points = directional.normalise(torch.randn(200_000, 3, generator=rng(), dtype=torch.float64))
    at = VonMisesFisher(torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    assert float(directional.log_density(points, at).exp().mean()) * 4 * math.pi == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("family", ["gaussian", "logistic", "laplace"])
def test_source_densities_are_those_of_torch(family: str) -> None:
    z, location = (torch.randn(50, 2, generator=rng(seed), dtype=torch.float64) for seed in (0, 1))
    uniform = torch.distributions.Uniform(torch.zeros(50, 2).double(), 1.0)
    standard = {
        "gaussian": torch.distributions.Normal(location, 1.0),
        "laplace": torch.distributions.Laplace(location, 1.0),
        "logistic": torch.distributions.TransformedDistribution(
            uniform, [torch.distributions.SigmoidTransform().inv, torch.distributions.AffineTransform(location, 1.0)]
        ),
    }[family]
    torch.testing.assert_close(source_log_density(z, Sources(location, family)), standard.log_prob(z).sum(-1))


def test_errors_name_the_choice() -> None:
    with pytest.raises(ValueError, match="space is 'torus'"):
        PredictiveDensity(2, "torus")
    with pytest.raises(ValueError, match="latent_dim is 1, expected at least 2 on the sphere"):
        PairPredictor(1, "sphere")
    with pytest.raises(ValueError, match="the sphere takes a concentration and no other spread"):
        PairPredictor(2, "sphere", variance=1.0)
    with pytest.raises(ValueError, match=r"variance is 0\.0, expected a positive number"):
        PairPredictor(2, variance=0.0)
    with pytest.raises(ValueError, match="cell is 'rnn', expected one of gru, lstm"):
        RecurrentPredictor(2, cell="rnn")
    with pytest.raises(ValueError, match="latent_model is 'dynamics'"):
        build_predictor("dynamics", 2, "plane")
    with pytest.raises(ValueError, match="family is 'cauchy'"):
        source_log_density(torch.zeros(1, 2), Sources(torch.zeros(1, 2), "cauchy"))
    with pytest.raises(ValueError, match="dim is 1, expected at least 2"):
        directional.log_normaliser(1, torch.tensor(1.0))
    for kappa in (0.0, 1e5):
        with pytest.raises(ValueError, match="expected a number above 0"):
            directional.log_normaliser(3, torch.tensor(kappa))
    z = torch.full((1, 2, 3), 0.9)
    with pytest.raises(ValueError, match="latents are not of unit length"):
        prediction_log_density(PairPredictor(3, "sphere")(Gaussian(z, torch.eye(3)), everything(z)), Gaussian(z, torch.eye(3)))
