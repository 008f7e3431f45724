"""The package as installed: its version, and its compiled kernels against a plain loop in torch."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ldm_filter
from ldm_filter.core import native
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.types import Gaussian, StateSpace

ROOT = Path(__file__).parents[1]
NAMES = ("A", "C", "K", "z", "a", "h0")
SIZES = [(1, 1, 1, 1), (1, 40, 3, 2), (3, 1, 2, 2), (5, 7, 3, 3), (16, 16, 4, 2), (19, 17, 5, 1), (37, 33, 2, 5)]  # (batch, time, n, m)

compiled = pytest.mark.skipif(not native._load(), reason="the compiled kernels are not installed")


def loop(A: Tensor, C: Tensor, K: Tensor, z: Tensor, a: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The recursion as its docstring says it."""
    steps = z.shape[1]
    As, Cs, Ks = (x.expand(-1, steps, -1, -1).unbind(1) for x in (A, C, K))
    zs, offsets = z.unbind(1), a.expand(-1, steps, -1).unbind(1)
    predicted, filtered, innovation = [h0], [], []
    for t in range(steps):
        if t > 0:
            predicted.append((As[t] @ filtered[-1][..., None])[..., 0] + offsets[t])
        innovation.append(zs[t] - (Cs[t] @ predicted[-1][..., None])[..., 0])
        filtered.append(predicted[-1] + (Ks[t] @ innovation[-1][..., None])[..., 0])
    return torch.stack(predicted, 1), torch.stack(filtered, 1), torch.stack(innovation, 1)


def problem(size: tuple[int, int, int, int], seed: int, varying: bool = False, own_offset: bool = False, own: str = "") -> list[Tensor]:
    """The arguments of the recursion; each sequence has the matrices in ``own`` to itself, the batch shares the others."""
    batch, steps, n, m = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    times = steps if varying else 1
    b_A, b_C, b_K = (batch if name in own else 1 for name in "ACK")
    A = 0.9 * torch.linalg.qr(normal(b_A, times, n, n)).Q
    C = normal(b_C, times, m, n) / (n * m) ** 0.5
    K = 0.4 * C[:1].mT + 0.05 * normal(b_K, steps, n, m)
    return [A, C, K, normal(batch, steps, m), normal(batch if own_offset else 1, times, n), normal(batch, n)]


def gradients(recursion, inputs: list[Tensor], weights: list[Tensor | None]) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    used = [(y, w) for y, w in zip(recursion(*leaves), weights, strict=True) if w is not None]
    grads = torch.autograd.grad([y for y, _ in used], leaves, [w for _, w in used], allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))


def test_version_is_that_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version(project["name"]) == ldm_filter.__version__ == project["version"]


def test_kernels_are_built_where_there_is_a_compiler():
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("no C++ compiler")
    assert native.available()
    assert native._load().__version__ == importlib.metadata.version("ldm-filter"), "built from another version: run make install"


def test_missing_kernels_warn_once_and_say_how_to_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, native._EXTENSION, None)
    native._load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"results are the same, but slower.*Install a C\+\+ compiler") as caught:
            assert not native.available()
            assert not native.available()
        assert len(caught) == 1
        with pytest.raises(RuntimeError, match="reinstall"):
            native.mean_recursion(*problem((1, 2, 2, 1), seed=0))
    finally:
        native._load.cache_clear()


@compiled
@pytest.mark.parametrize("own_offset, own", [(False, ""), (True, ""), (False, "K"), (True, "ACK")])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_the_loop(size, varying, own_offset, own):
    inputs = problem(size, 1, varying, own_offset, own)
    for ours, plain in zip(native.mean_recursion(*inputs), loop(*inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    generator = torch.Generator().manual_seed(2)
    at_predicted, at_filtered, at_innovation = (torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in loop(*inputs))
    single: list[list[Tensor | None]] = [[at_predicted, None, None], [None, at_filtered, None], [None, None, at_innovation]]
    for weights in ([at_predicted, at_filtered, at_innovation], *single):
        pairs = zip(NAMES, gradients(native.mean_recursion, inputs, weights), gradients(loop, inputs, weights), strict=True)
        for name, ours, plain in pairs:
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"gradient of {name}: {text}")


@compiled
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 4, 2, 2), (2, 18, 3, 1)])
def test_gradcheck(size):
    inputs = [x.requires_grad_() for x in problem(size, seed=3, varying=True, own_offset=True)]
    assert torch.autograd.gradcheck(native.mean_recursion, inputs)


@compiled
@pytest.mark.parametrize("size", SIZES)
def test_float32_is_as_close_as_its_inputs_allow(size):
    exact = problem(size, seed=4)
    single = [x.float() for x in exact]
    rounded = [x.double() for x in single]
    weights: list[Tensor | None] = [torch.ones_like(y) for y in loop(*rounded)]
    for ours, plain in zip(native.mean_recursion(*single), loop(*rounded), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=1e-6)
    grads = gradients(native.mean_recursion, single, [w.float() for w in weights if w is not None])
    for ours, plain in zip(grads, gradients(loop, rounded, weights), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5 * max(1.0, plain.abs().max().item()))


@compiled
def test_float32_does_not_drift_over_a_long_series():
    exact = problem((2, 3_000, 4, 2), seed=5)
    single = [x.float() for x in exact]
    ours = native.mean_recursion(*single)[1].double()
    carried = loop(*(x.double() for x in single))[1]
    assert (ours - carried).abs().max() <= 2e-7 * carried.abs().max()


@compiled
@pytest.mark.parametrize("masked", [False, True])
def test_the_filter_gives_the_same_without_the_kernels(monkeypatch, masked):
    A, C, _, z, a, h0 = problem((5, 12, 3, 2), seed=12)
    cov = torch.eye(3, dtype=torch.float64)
    ssm = StateSpace(A[0, 0], a[0, 0], 0.1 * cov, C[0, 0], torch.ones(2, dtype=torch.float64), Gaussian(h0, cov))
    observed = torch.arange(24).reshape(1, 12, 2) % 5 > 0 if masked else None
    arguments = (ssm, Gaussian(z, 0.5 * cov[:2, :2]), observed)
    fast = filter_sequence(*arguments)
    monkeypatch.setattr(native, "available", lambda: False)
    for name in ("mean_recursion", "covariance_recursion", "log_density"):
        monkeypatch.setattr(native, name, None)  # calling it now would fail
    torch.testing.assert_close(fast, filter_sequence(*arguments), rtol=1e-12, atol=1e-12)


@compiled
def test_double_gains_beside_float32_data():
    A, C, K, z, a, h0 = problem((6, 9, 3, 2), seed=6)
    inputs = [A, C, K, z.float(), a.float(), h0.float()]
    grads = gradients(native.mean_recursion, inputs, [torch.ones(6, 9, 3), None, None])
    assert [g.dtype for g in grads] == [x.dtype for x in inputs]
    plain = loop(A, C, K, z.float().double(), a.float().double(), h0.float().double())[0]
    torch.testing.assert_close(native.mean_recursion(*inputs)[0].double(), plain, rtol=1e-6, atol=1e-6)


@compiled
def test_a_sequence_does_not_depend_on_its_batch_and_nothing_is_changed():
    inputs = problem((21, 30, 4, 3), seed=7, own_offset=True)
    before = [x.clone() for x in inputs]
    together = native.mean_recursion(*inputs)[1]
    A, C, K, z, a, h0 = inputs
    for b in (0, 15, 16, 20):
        alone = native.mean_recursion(A, C, K, z[b : b + 1], a[b : b + 1], h0[b : b + 1])[1]
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-14, atol=1e-14)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@compiled
def test_views_expansions_and_an_empty_batch():
    A, C, K, z, a, h0 = problem((6, 10, 3, 2), seed=8)
    strided = [
        A.mT.contiguous().mT,
        C.expand(6, 10, 2, 3),
        K.expand(6, -1, -1, -1),
        z.transpose(0, 1).contiguous().transpose(0, 1),
        a.expand(6, 10, 3),
        h0[:1].expand(6, 3),
    ]
    for ours, plain in zip(native.mean_recursion(*strided), loop(*strided), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weights: list[Tensor | None] = [torch.full((1, 10, 3), 6.0, dtype=torch.float64).expand(6, 10, 3), None, None]
    for ours, plain in zip(gradients(native.mean_recursion, strided, weights), gradients(loop, strided, weights), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
    assert native.mean_recursion(A, C, K, z[:0], a, h0[:0])[0].shape == (0, 10, 3)


@compiled
def test_a_nan_stays_in_its_sequence():
    inputs = problem((18, 8, 3, 2), seed=9)
    clean = native.mean_recursion(*inputs)[1]
    inputs[3][17, 4, 0] = float("nan")
    dirty = native.mean_recursion(*inputs)[1]
    assert torch.equal(dirty[:17], clean[:17])
    assert torch.equal(dirty[17, :4], clean[17, :4]) and dirty[17, 4:].isnan().all()


@compiled
def test_second_derivatives_are_refused():
    inputs = [x.requires_grad_() for x in problem((2, 3, 2, 1), seed=10)]
    (grad,) = torch.autograd.grad(native.mean_recursion(*inputs)[1].square().sum(), inputs[3], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@compiled
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_named(name):
    inputs = dict(zip(NAMES, problem((3, 5, 4, 2), seed=11), strict=True))
    with pytest.raises(TypeError, match=rf"^{name} is a ndarray"):
        native.mean_recursion(**{**inputs, name: inputs[name].numpy()})
    with pytest.raises(TypeError, match="expected torch"):
        native.mean_recursion(**{**inputs, name: inputs[name].half()})
    with pytest.raises(ValueError, match="on the CPU"):
        native.mean_recursion(**{**inputs, name: inputs[name].to("meta")})
    for wrong in (inputs[name][0], inputs[name][..., :-1], torch.cat([inputs[name]] * 2)):
        with pytest.raises(ValueError, match="has shape"):
            native.mean_recursion(**{**inputs, name: wrong})
