"""The door of the compiled kernels: what comes through in one call, and what is sent back to be looked at by itself."""

from itertools import chain

import pytest
import torch

from ldm_filter import backend
from ldm_filter.core import native
from ldm_filter.core.backends import StepModel, run_step, run_usual
from ldm_filter.core.kalman import filter_moments
from ldm_filter.core.kernels import Arguments, filter_batch, run_links
from ldm_filter.types import Gaussian, StateSpace

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed: a C++ compiler and make install")
SIZES = (5, 7, 3, 2)  # sequences, steps, states, channels


@pytest.fixture(params=[True, False], ids=["exchange", "attributes"])
def exchange(request):
    """Both ways to ask a tensor what it is like: DLPack's functions, and its attributes, which older versions of torch leave."""
    native.kernel("use_exchange")(request.param)
    yield request.param
    native.kernel("use_exchange")(True)


def fields(dtype: torch.dtype = torch.float64, own_noise: bool = False) -> list[torch.Tensor]:
    """A, a, Q, C, c, h0, P0, z, R; A and C are views that are not contiguous."""
    batch, steps, n, m = SIZES
    draw = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=dtype)  # noqa: E731
    R = torch.eye(m, dtype=dtype) + 0.1
    if own_noise:
        R = R * (1 + torch.rand(batch, steps, 1, 1, generator=draw, dtype=dtype))
    return [
        0.4 * normal(n, n).mT,
        normal(n),
        torch.eye(n, dtype=dtype),
        normal(n, m).mT,
        normal(m),
        normal(n),
        2 * torch.eye(n, dtype=dtype),
        normal(batch, steps, m),
        R,
    ]


def moments(x: list[torch.Tensor], observed: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    filtered, log_likelihood = filter_moments(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:]), observed)
    return (*filtered, log_likelihood)


def gradients(x: list[torch.Tensor], observed: torch.Tensor | None, weigh) -> tuple[torch.Tensor, ...]:
    leaves = [v.detach().requires_grad_() for v in x]
    return torch.autograd.grad(weigh(*moments(leaves, observed)), leaves, materialize_grads=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("seen", [None, "all", "some", "steps"])
def test_in_one_call_as_by_the_loops_in_torch(exchange, dtype, own_noise, seen):
    x = fields(dtype, own_noise)
    observed = None if seen is None else torch.ones(SIZES[:2] if seen == "steps" else x[7].shape, dtype=torch.bool)
    if seen in ("some", "steps"):
        observed[1, 2:4] = False
    weights = (
        lambda mean, cov, density: density.sum(),  # one number arrives at all log-likelihoods
        lambda mean, cov, density: (density * torch.arange(SIZES[1])).sum() + mean.square().sum() + cov[..., 0, 1].sum(),
    )
    assert run_usual(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:]), observed) is not None
    with backend("torch"):
        expected = [moments(x, observed), *(gradients(x, observed, weigh) for weigh in weights)]
    found = [moments(x, observed), *(gradients(x, observed, weigh) for weigh in weights)]
    for left, right in zip(chain(*found), chain(*expected), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5 if dtype == torch.float32 else 1e-11)


def spoilt(k: int, value: float) -> list[torch.Tensor]:
    x = [v.clone() for v in fields()]
    x[k][(0,) * x[k].dim()] = value
    return x


@pytest.mark.parametrize("k", range(9))
def test_what_is_not_finite_is_sent_back_and_named(exchange, k):
    names = ("transition_matrix", "transition_offset", "transition_cov", "observation_matrix", "observation_offset", "initial.mean", "initial.cov")
    x = spoilt(k, float("nan"))
    assert run_usual(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:]), None) is None
    with pytest.raises(ValueError, match=(*names, "measurements.mean", "measurements.cov")[k]):
        moments(x)


@pytest.mark.parametrize("k", [2, 6])
def test_a_negative_variance_is_sent_back(exchange, k):
    with pytest.raises(ValueError, match="negative variance"):
        moments(spoilt(k, -1.0))


@pytest.mark.parametrize("change", [lambda x: x.float(), lambda x: x[..., :-1], lambda x: x.to("meta"), lambda x: x.expand(2, 2, *x.shape)])
@pytest.mark.parametrize("k", range(9))
def test_what_does_not_fit_is_sent_back(exchange, k, change):
    x = fields()
    x[k] = change(x[k])
    if k == 7 and x[k].dim() == 5:
        x[k] = x[k][0]
    assert run_usual(StateSpace(*x[:5], Gaussian(*x[5:7])), Gaussian(*x[7:]), None) is None
    with pytest.raises((ValueError, TypeError)):
        moments(x)


def test_measurements_that_are_not_contiguous_are_laid_out(exchange):
    x = fields()
    turned = [*x[:7], x[7].mT.contiguous().mT, x[8]]
    for left, right in zip(moments(turned), moments(x), strict=True):
        assert torch.equal(left, right)


def test_parameters_are_tensors_and_others_are_refused_plainly(exchange):
    class Own(torch.Tensor):
        pass

    x = fields()
    as_parameters = [torch.nn.Parameter(v) for v in x]
    for left, right in zip(moments(as_parameters), moments(x), strict=True):
        assert torch.equal(left.detach(), right)
    with pytest.raises(RuntimeError, match=r"not a plain torch\.Tensor on the CPU"):
        filter_batch(Arguments(*x[:7], x[7].as_subclass(Own), x[8], None), predicted=False)


@pytest.mark.parametrize("name", ["A", "a", "Q", "C", "h0", "P0", "R"])
def test_another_dtype_is_named(exchange, name):
    """A step in float64 of a model in float32; what is wider than the measurements is taken."""
    narrow, wide = (dict(zip(Arguments._fields, fields(dtype), strict=False)) for dtype in (torch.float32, torch.float64))

    def step(x: dict[str, torch.Tensor]):
        belief = Gaussian(x["h0"].expand(SIZES[0], -1), x["P0"].expand(SIZES[0], -1, -1))
        return run_step(StepModel(*(x[k] for k in ("A", "a", "Q", "C", "R")), SIZES[3]), x["z"][:, 0], belief)

    with pytest.raises(TypeError, match=rf"^{name} has dtype torch.float32; expected torch.float64 as the measurements z: convert with"):
        step(wide | {name: narrow[name]})
    if name == "R":
        with pytest.raises(TypeError, match=r"^R has dtype torch.float64; expected torch.float32"):
            step(narrow | {name: wide[name]})
    else:
        assert step(narrow | {name: wide[name]}).filtered.mean.dtype == torch.float32


def test_results_are_plain_tensors_that_outlive_their_inputs(exchange):
    mean, _, _ = moments(fields())
    kept = mean.clone()
    for _ in range(20):
        moments([2 * v for v in fields()])
    assert torch.equal(mean, kept) and type(mean) is torch.Tensor and mean.is_contiguous()
    mean += 1.0  # they may be written to
    assert torch.equal(mean, kept + 1.0)


def test_links_take_contiguous_doubles_alone(exchange):
    with pytest.raises(ValueError, match="float64"):
        run_links(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), True)


def test_soundness_sees_through_views(exchange):
    whole = torch.ones(4, 6, dtype=torch.float64)
    whole[1, 1] = float("nan")
    assert not native.sound((), (whole.mT,)) and native.sound((), (whole[::2, ::2], whole[2:].mT))
    cov = torch.eye(2).expand(3, 2, 2)
    assert native.sound((cov,), ()) and not native.sound((-cov,), ()) and not native.sound((), (torch.ones(2, dtype=torch.int64),))
