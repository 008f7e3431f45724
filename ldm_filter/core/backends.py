"""Who computes a filter run: compiled kernels for the CPU, Triton's for a GPU, or the readable loops in torch, which run anywhere."""

from __future__ import annotations

import contextvars
from types import TracebackType

import torch
from torch import Tensor

from ldm_filter.core import native, triton
from ldm_filter.core.inputs import Given, check_measurements, fold
from ldm_filter.core.linalg import affine, round_cov, symmetrise
from ldm_filter.core.recursion import Filtered, not_positive, predict_cov, run_loops
from ldm_filter.types import Gaussian

__all__ = ["BACKENDS", "backend", "chosen", "run", "run_step"]

BACKENDS = ("auto", "native", "triton", "torch")
_choice: contextvars.ContextVar[str] = contextvars.ContextVar("ldm_filter_backend", default="auto")


class backend:
    """Choose what computes from here on, or within a ``with`` block.

    Args:
        name: ``"auto"``: the fastest that takes the problem; ``"native"``: the compiled CPU kernels; ``"triton"``: GPU kernels;
            ``"torch"``: the loops that the kernels are tested against. One that is forced and cannot take a problem says so.

    Raises:
        ValueError: for another name.

    >>> with backend("torch"):
    ...     chosen()
    'torch'
    >>> chosen()
    'auto'
    """

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend is {name!r}, expected one of {', '.join(map(repr, BACKENDS))}")
        self._before = _choice.get()
        _choice.set(name)

    def __enter__(self) -> backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _choice.set(self._before)


def chosen() -> str:
    """The name that :class:`backend` set last."""
    return _choice.get()


def run(x: Given, predicted: bool) -> Filtered:
    """Filter sequences by the chosen backend.

    Raises:
        ValueError, RuntimeError: for measurements that are not finite; for a forced backend that cannot take the problem.
        NotPositiveDefiniteError: (a ValueError) naming step and series where C P^- C' + R is not positive definite.
    """
    name = _choice.get()
    if name in ("auto", "native") and _native_takes(x, forced=name == "native"):
        return _run_native(x, predicted)
    check_measurements(x)
    problem = fold(x)
    if name == "triton" or (name == "auto" and x.z.is_cuda and triton.supports(problem)):
        return triton.run(problem, predicted)
    return run_loops(problem, predicted)


def run_step(A: Tensor, a: Tensor, Q: Tensor, C: Tensor, R: Tensor, z: Tensor, belief: Gaussian, mask: Tensor | None = None) -> Filtered:
    """One step of a whole batch whose transition depends on the state, so that the loop over time stays with the caller.

        h^- = A h + a,   P^- = A P A' + Q,   h, P = condition on z = C h^- + v,  v ~ N(0, R)

    Args:
        A, a, Q: ``(1 | B, n, n)``, ``(1 | B, n)``, ``(1 | B, n, n)``. C, R: ``(1 | B, m, n)``, ``(1 | B, m, m)``. All in one dtype.
        z: ``(B, m)``, less the observation's offset. belief: before the step, mean ``(B, n)``, cov ``(B, n, n)``.
        mask: bool ``(1 | B, m)``, or None where everything is observed.

    Returns:
        Predicted and filtered beliefs ``(B, n)``, ``(B, n, n)`` and log-likelihood ``(B,)``, in the dtype of z.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where C P^- C' + R is not positive definite.
    """
    batch = z.shape[0]
    cov = belief.cov.expand(batch, -1, -1)
    fields = [v.unsqueeze(1) for v in (A, a, Q, C, R, z)]
    hidden = None if mask is None else mask.unsqueeze(1)
    given = Given(fields[0], fields[1], fields[2], fields[3], z.new_zeros(1, 1, z.shape[1]), fields[4], fields[5], Gaussian(belief.mean, cov), hidden)
    if _choice.get() in ("auto", "native") and _native_takes(given, forced=_choice.get() == "native"):
        out = _run_native(given, predicted=True, from_belief=True)
    else:
        before = Gaussian(affine(a, A, belief.mean), symmetrise(predict_cov(cov.double(), A.double(), Q.double())).to(z.dtype))
        out = run_loops(fold(given._replace(initial=before)), predicted=True)
    assert out.predicted is not None  # asked for
    (h0, P0), (h, P) = ((mean[:, 0], cov[:, 0].expand(batch, -1, -1)) for mean, cov in (out.predicted, out.filtered))
    return Filtered(Gaussian(h0, P0), Gaussian(h, P), out.log_likelihood[:, 0])


def _native_takes(x: Given, forced: bool) -> bool:
    fits = x.z.device.type == "cpu" and x.z.dtype in (torch.float32, torch.float64)
    if forced and not fits:
        raise ValueError(f'backend is "native", which takes float32 and float64 on the CPU, not {x.z.dtype} on {x.z.device}; use backend("auto")')
    return fits and native.available()


def _run_native(x: Given, predicted: bool, from_belief: bool = False) -> Filtered:
    """Numbers are looked at afterwards: one that is not finite shows in the log-likelihood."""
    A, a, Q, C, c, h0, P0 = (v.double() for v in (x.A, x.a, x.Q, x.C, x.c, *x.initial))
    z = x.z
    if c.shape[0] > 1:  # an offset of each series by itself, as inputs to the read-out make it
        z, c = (z - c).to(z.dtype), c.new_zeros(1, 1, c.shape[-1])
    out = native.filter_batch(native.Arguments(A, a, Q, C, c, h0, P0, z, x.R, x.mask, from_belief), predicted)
    if out.place[0] >= 0 or not native.all_finite(out.log_likelihood.detach()):
        check_measurements(x)
    if out.place[0] >= 0:
        raise not_positive(out.place[0], out.place[1] if out.cov.shape[0] > 1 else None)
    dtype = x.z.dtype
    before = None if out.predicted_mean is None or out.predicted_cov is None else Gaussian(out.predicted_mean, round_cov(out.predicted_cov, dtype))
    return Filtered(before, Gaussian(out.mean, round_cov(out.cov, dtype)), out.log_likelihood)
