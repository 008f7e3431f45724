"""Polynomial dynamics: what regression finds, where it is held, and what is left to training. (What all kinds share: test_nonlinear.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, vmap
from torch.testing import assert_close

from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.types import Context, Gaussian


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(inputs: int = 0, degree: int = 3) -> PolynomialDynamics:
    return PolynomialDynamics(LinearDynamics(2, 2, generator=rng(0), input_dim=inputs).double(), degree).double()


def law(states: Tensor, inputs: Tensor | float = 0.0) -> Tensor:
    """A cubic motion, with a term of state times input."""
    x, y = states.unbind(-1)
    return torch.stack([x + 0.2 * y - 0.1 * x * y**2, 0.9 * y + 0.3 * x**2 - 0.2 + inputs * (0.5 + 0.1 * x)], dim=-1)


def test_regression_finds_a_cubic_law_exactly() -> None:
    dynamics, states = made(), torch.randn(200, 2, generator=rng(1)).double()
    rest = dynamics.fit_motion(states, law(states))
    assert float(rest.abs().max()) < 1e-6
    fresh = torch.randn(50, 2, generator=rng(2)).double()
    ahead = dynamics.predict(Gaussian(fresh, torch.zeros(50, 2, 2).double()))
    assert_close(ahead.mean, law(fresh), rtol=0.0, atol=1e-5)


def test_inputs_enter_products() -> None:
    dynamics, states, inputs = made(inputs=1), torch.randn(300, 2, generator=rng(1)).double(), torch.randn(300, 1, generator=rng(3)).double()
    rest = dynamics.fit_motion(states, law(states, inputs[:, 0]), Context(inputs=inputs[:, None]))
    assert float(rest.abs().max()) < 1e-6
    ahead = dynamics.predict(Gaussian(states, torch.zeros(300, 2, 2).double()), Context(inputs=inputs[:, None]))
    assert_close(ahead.mean, law(states, inputs[:, 0]), rtol=0.0, atol=1e-5)


def test_slope_is_the_derivative_of_the_motion() -> None:
    dynamics, states = made(degree=4), torch.randn(20, 2, generator=rng(1)).double()
    dynamics.fit_motion(torch.randn(100, 2, generator=rng(2)).double(), torch.randn(100, 2, generator=rng(4)).double())
    move = dynamics.state_space().transition
    assert_close(dynamics.slope(states), vmap(jacfwd(lambda x: move(x, 1).mean))(states), rtol=1e-9, atol=1e-9)


def test_beyond_the_reach_the_polynomial_is_held() -> None:
    dynamics = made()
    with torch.no_grad():
        dynamics.weight.normal_(generator=rng(5))
        far, further = (dynamics._law().value(torch.tensor([[size, -size]]).double()) for size in (6.5, 60.0))
        paths = dynamics.prior_paths(500, rng(6), 2)
    assert_close(far, further, rtol=0.0, atol=0.0)
    assert torch.isfinite(paths).all()


def test_what_the_polynomial_can_say_is_not_trained_twice() -> None:
    fixed = {name for name, parameter in made(inputs=1).named_parameters() if not parameter.requires_grad}
    assert fixed == {"base.contraction", "base.slack", "base.mean", "base.input_matrix", "base.observation"}


def test_bad_arguments_are_named() -> None:
    base = LinearDynamics(2, 2, generator=rng(0))
    with pytest.raises(ValueError, match="degree is 1"):
        PolynomialDynamics(base, degree=1)
    with pytest.raises(ValueError, match="reach is 0"):
        PolynomialDynamics(base, reach=0.0)
    with pytest.raises(ValueError, match="before has 5 states"):
        PolynomialDynamics(base).fit_motion(torch.zeros(5, 2), torch.zeros(5, 2))
