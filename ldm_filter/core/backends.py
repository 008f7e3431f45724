"""Who computes a filter run: compiled kernels for the CPU, Triton's for a GPU, or the readable loops in torch, which run anywhere."""

from __future__ import annotations

import contextvars
from types import TracebackType

import torch

from ldm_filter.core import native
from ldm_filter.core.inputs import Given, check_measurements, fold
from ldm_filter.core.linalg import round_cov
from ldm_filter.core.recursion import Filtered, not_positive, run_loops
from ldm_filter.types import Gaussian

__all__ = ["BACKENDS", "backend", "chosen", "run"]

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
        ValueError: for measurements that are not finite; for a forced backend that cannot take the problem.
        NotPositiveDefiniteError: (a ValueError) naming step and series where C P^- C' + R is not positive definite.
    """
    name = _choice.get()
    if name in ("auto", "native") and _native_takes(x, forced=name == "native"):
        return _run_native(x, predicted)
    check_measurements(x)
    return run_loops(fold(x), predicted)


def _native_takes(x: Given, forced: bool) -> bool:
    fits = x.z.device.type == "cpu" and x.z.dtype in (torch.float32, torch.float64)
    if forced and not fits:
        raise ValueError(f'backend is "native", which takes float32 and float64 on the CPU, not {x.z.dtype} on {x.z.device}; use backend("auto")')
    return fits and native.available()


def _run_native(x: Given, predicted: bool) -> Filtered:
    """Numbers are looked at afterwards: one that is not finite shows in the log-likelihood."""
    h0, P0 = x.initial
    matrices = (v.double() for v in (x.A, x.a, x.Q, x.C, x.c, h0, P0))
    out = native.filter_batch(native.Arguments(*matrices, x.z, x.R, x.mask), predicted)
    if out.place[0] >= 0 or not native.all_finite(out.log_likelihood.detach()):
        check_measurements(x)
    if out.place[0] >= 0:
        raise not_positive(out.place[0], out.place[1] if out.cov.shape[0] > 1 else None)
    dtype = x.z.dtype
    before = None if out.predicted_mean is None or out.predicted_cov is None else Gaussian(out.predicted_mean, round_cov(out.predicted_cov, dtype))
    return Filtered(before, Gaussian(out.mean, round_cov(out.cov, dtype)), out.log_likelihood)
