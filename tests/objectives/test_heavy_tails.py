"""No heavy tail fools the conditional estimators; the table in the documentation is what the code gives."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from ldm_filter.objectives.entropy import ENTROPIES, log_det
from ldm_filter.objectives.scale_mixture import scale_mixture
from tests.objectives import heavy_tails


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    return heavy_tails.rows()


def test_true_entropy_by_quadrature() -> None:
    """Without a spread of scales it is the Gaussian's; stretching a tenth far away adds 0.1 D per nat and what tells the groups apart."""
    gain = heavy_tails.true_entropy(9.0, False) - heavy_tails.true_entropy(8.0, False)
    assert gain == pytest.approx(0.1 * heavy_tails.DIM, abs=1e-3)
    s = heavy_tails.draw(0).s
    assert float((s > heavy_tails.NOISY).double().mean()) == pytest.approx(0.1, abs=0.02)


def test_scale_mixture_where_r_knows_and_where_it_lies(found: dict[str, np.ndarray]) -> None:
    for values in found["scale-mixture"]:
        assert np.abs(values[[0, 3]]).max() < 0.1
        assert np.abs(values[[1, 4]] - 1.0).max() < 0.15
        # Never more than the share's own gain and the entropy of telling two groups apart.
        most = heavy_tails.SHARE * heavy_tails.DIM * heavy_tails.FAR - sum(p * math.log(p) for p in (0.1, 0.9))
        assert values[[2, 5]].max() < most + 0.15


def test_what_the_others_do(found: dict[str, np.ndarray]) -> None:
    """Log-det is fooled whatever R knows; its conditional form where R lies."""
    assert found["log-det"][:, [1, 2]].min(0) == pytest.approx([4.5, 9.0], abs=0.5)
    assert np.abs(found["conditional-log-det"][:, [0, 1]] - [0.0, 1.0]).max() < 0.15
    assert found["conditional-log-det"][:, 4].min() > 2.0


def test_the_documented_table_is_what_the_code_gives(found: dict[str, np.ndarray]) -> None:
    text = heavy_tails.DOCUMENT.read_text(encoding="utf-8").split(heavy_tails.BEGIN)[1].split(heavy_tails.END)[0]

    def numbers(table: str) -> list[float]:
        return [float(number) for number in re.findall(r"-?\d+\.\d+", table)]

    assert set(re.findall(r"`([a-z-]+)`", text)) == set(ENTROPIES)
    np.testing.assert_allclose(numbers(text), numbers(heavy_tails.table(found)), atol=0.03)


def test_scale_mixture_of_light_tails_is_the_log_determinant() -> None:
    """A ring and a box, whose best Gaussian is the one of their covariance."""
    angle = 2 * math.pi * torch.rand(3000, generator=rng(), dtype=torch.float64)
    ring = torch.stack([angle.cos(), 0.3 * angle.sin()], dim=-1)
    box = torch.rand(3000, 2, generator=rng(1), dtype=torch.float64)
    for z in (ring, box):
        assert float(scale_mixture(z)) == pytest.approx(float(log_det(z)), abs=0.03)


def test_scale_mixture_of_a_student_t() -> None:
    """A scale mixture with a continuum of scales: nu = 3 in two dimensions, H = log(nu pi) - log Gamma ratio + (nu + D)/2 (psi difference)."""
    nu, dim = 3.0, 2
    chi2 = torch.distributions.Chi2(torch.tensor(nu, dtype=torch.float64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scale = (nu / chi2.sample((20_000,))).sqrt()
    z = scale[:, None] * torch.randn(20_000, dim, generator=rng(), dtype=torch.float64)
    half, whole = (torch.tensor(value, dtype=torch.float64) for value in (nu / 2, (nu + dim) / 2))
    truth = float(torch.lgamma(half) - torch.lgamma(whole) + dim / 2 * math.log(nu * math.pi) + whole * (torch.digamma(whole) - torch.digamma(half)))
    assert float(scale_mixture(z)) == pytest.approx(truth, abs=0.03)
    assert float(log_det(z)) > truth + 0.1


def test_scale_mixture_names_its_settings() -> None:
    z = torch.randn(50, 2, generator=rng())
    with pytest.raises(ValueError, match="nodes is 0"):
        scale_mixture(z, nodes=0)
    with pytest.raises(ValueError, match="condition has 49 rows, samples have 50"):
        scale_mixture(z, z[:49, 0])
    with pytest.raises(ValueError, match="condition holds a value that is not finite"):
        scale_mixture(z, z[:, 0].log())
