"""Who computes a filter run: compiled kernels for the CPU, Triton's for a GPU, or the readable loops in torch, which run anywhere."""

from __future__ import annotations

import contextvars
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core import kernels, native, triton
from ldm_filter.core.inputs import Given, check_measurements, fold
from ldm_filter.core.linalg import affine, round_cov, symmetrise
from ldm_filter.core.operators import filter_traced, refuse_failed
from ldm_filter.core.recursion import LOG_2PI, Filtered, correct_cov, gain_of, log_density_of, not_positive, predict_cov, run_loops
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["BACKENDS", "StepModel", "backend", "chosen", "compiled", "run", "run_step", "run_usual"]

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


@torch.compiler.assume_constant_result
def chosen() -> str:
    """The name that :class:`backend` set last; in a traced program the one that was set when it was traced."""
    return _choice.get()


class StepModel(NamedTuple):
    """What one step of a batch needs of its model, with or without a leading batch dimension.

    Attributes:
        A, a, Q: transition ``(1 | B, n, n)``, ``(1 | B, n)``, ``(1 | B, n, n)``.
        C, R: observation ``(1 | B, m, n)`` and measurement covariance ``(1 | B, m, m)``; a row of zeros, and those of the identity, where missing.
        seen: number of observed channels, ``(1 | B,)`` or a number.
    """

    A: Tensor
    a: Tensor
    Q: Tensor
    C: Tensor
    R: Tensor
    seen: Tensor | int


def run(x: Given, predicted: bool) -> Filtered:
    """Filter sequences by the chosen backend.

    Raises:
        ValueError, RuntimeError: for measurements that are not finite; for a forced backend that cannot take the problem.
        NotPositiveDefiniteError: (a ValueError) naming step and series where C P^- C' + R is not positive definite.
    """
    name = chosen()
    if compiled(x.z):
        return _run_native(x, predicted)
    check_measurements(x)
    problem = fold(x)
    if name == "triton" or (name == "auto" and x.z.is_cuda and triton.supports(problem)):
        return triton.run(problem, predicted)
    return run_loops(problem, predicted)


def run_usual(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None) -> tuple[Gaussian, Tensor] | None:
    """The filtered moments and the log-likelihood where all is as it nearly always is, checked and computed in one call of the kernels.

    Returns:
        None where it is not, also where something is to be refused: then each argument has to be looked at by itself.
    """
    if torch.compiler.is_compiling() or chosen() not in ("auto", "native") or not native.available():
        return None
    if not (isinstance(ssm, StateSpace) and isinstance(measurements, Gaussian) and isinstance(ssm.initial, Gaussian)):
        return None
    A, a, Q, C, c, initial = ssm
    z, R = measurements
    if not all(isinstance(x, Tensor) and x.dtype == z.dtype for x in (z, A, a, Q, C, c, *initial, R)):
        return None
    out = kernels.filter_usual(kernels.Arguments(A, a, Q, C, c, *initial, z, R, observed))
    return None if out is None else (Gaussian(out.mean, round_cov(out.cov, z.dtype)), out.log_likelihood)


def run_step(ssm: StepModel, z: Tensor, belief: Gaussian, step: int = 0) -> Filtered:
    """One step of a whole batch whose transition depends on the state, so that the loop over time stays with the caller.

        h^- = A h + a,   P^- = A P A' + Q,   h, P = condition on z = C h^- + v,  v ~ N(0, R)

    Args:
        ssm: the matrices of the step.
        z: ``(B, m)``, less the observation's offset; 0 where missing.
        belief: before the step, mean ``(B, n)``, cov ``(1 | B, n, n)``.
        step: its number, for errors.

    Returns:
        Predicted and filtered beliefs, ``(B, n)`` and ``(B, n, n)``, and the log-likelihood ``(B,)``, in the dtype of z.

    Raises:
        NotPositiveDefiniteError: (a ValueError) where C P^- C' + R is not positive definite.
    """
    if not compiled(z):
        A, a, Q, C, R = (x.reshape(-1, *x.shape[-k:]) for x, k in zip(ssm[:5], (2, 1, 2, 2, 2), strict=True))
        return _loop_step(StepModel(A, a, Q, C, R, ssm.seen), z, belief, step)
    m = z.shape[-1]
    seen = ssm.seen if isinstance(ssm.seen, Tensor) or ssm.seen == m else torch.tensor(ssm.seen)
    out = None if torch.compiler.is_compiling() else kernels.filter_step(*ssm[:5], z, *belief, seen if isinstance(seen, Tensor) else None)
    if out is None:
        return _step_of_series(ssm, z, belief, step)
    if out.place[0] >= 0:
        raise not_positive(step, out.place[1])
    assert out.predicted_mean is not None and out.predicted_cov is not None  # always there
    return Filtered(Gaussian(out.predicted_mean, out.predicted_cov), Gaussian(out.mean, out.cov), out.log_likelihood)


def _step_of_series(ssm: StepModel, z: Tensor, belief: Gaussian, step: int) -> Filtered:
    """The same as series of one step, whatever the tensors' layout, and in a traced program."""
    (batch, m), n = z.shape, ssm.A.shape[-1]
    A, a, Q, C, R = (x.reshape(-1, 1, *x.shape[-k:]) for x, k in zip(ssm[:5], (2, 1, 2, 2, 2), strict=True))
    arguments = kernels.Arguments(A, a, Q, C, z.new_zeros(m), belief.mean, belief.cov.expand(batch, n, n), z.unsqueeze(1), R, None, True)
    out = filter_traced(arguments, True) if torch.compiler.is_compiling() else kernels.filter_batch(arguments, predicted=True)
    if out.place[0] >= 0:
        raise not_positive(step, out.place[1])
    assert out.predicted_mean is not None and out.predicted_cov is not None  # asked for
    before, after = (_of_step(mean, cov, z.dtype) for mean, cov in ((out.predicted_mean, out.predicted_cov), (out.mean, out.cov)))
    return Filtered(before, after, out.log_likelihood[:, 0] + 0.5 * LOG_2PI * (m - ssm.seen))


def _of_step(mean: Tensor, cov: Tensor, dtype: torch.dtype) -> Gaussian:
    """The only step of a series."""
    return Gaussian(mean[:, 0], round_cov(cov, dtype)[:, 0].expand(mean.shape[0], -1, -1))


def _loop_step(ssm: StepModel, z: Tensor, belief: Gaussian, step: int) -> Filtered:
    """The same in torch, anywhere."""
    A, a, Q, C, R, seen = ssm
    cov = symmetrise(predict_cov(belief.cov.double(), A.double(), Q.double()))
    K, factor, info = gain_of(cov, C.double(), R.double())
    if bool(info.any()):
        raise not_positive(step, int(info.nonzero()[0]))
    mean = affine(a, A, belief.mean)
    innovation = affine(z, C, mean, -1.0)
    whitened = torch.linalg.solve_triangular(factor, innovation.double().unsqueeze(-1), upper=False).squeeze(-1)
    filtered = Gaussian(affine(mean, K.to(z.dtype), innovation), round_cov(correct_cov(cov, K, C.double(), R.double()), z.dtype))
    return Filtered(Gaussian(mean, round_cov(cov, z.dtype)), filtered, log_density_of(innovation, whitened, factor, seen))


def compiled(x: Tensor) -> bool:
    """Whether the compiled CPU kernels compute on such a tensor.

    Raises:
        ValueError: they are forced and do not take it.
    """
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if chosen() == "native" and not fits:
        raise ValueError(f'backend is "native", which takes float32 and float64 on the CPU, not {x.dtype} on {x.device}; use backend("auto")')
    return fits and chosen() in ("auto", "native") and native.available()


def _run_native(x: Given, predicted: bool) -> Filtered:
    """Numbers are looked at afterwards: one that is not finite shows in the log-likelihood."""
    z, c = x.z, x.c
    if c.shape[0] > 1:  # an offset of each series by itself, as inputs to the read-out make it
        z, c = z - c, c.new_zeros(1, 1, c.shape[-1])
    arguments = kernels.Arguments(x.A, x.a, x.Q, x.C, c, *x.initial, z, x.R, x.mask)
    if torch.compiler.is_compiling():
        out = filter_traced(arguments, predicted)
    else:
        out = kernels.filter_batch(arguments, predicted)
        refuse_failed(arguments, out)
    dtype = x.z.dtype
    before = None if out.predicted_mean is None or out.predicted_cov is None else Gaussian(out.predicted_mean, round_cov(out.predicted_cov, dtype))
    return Filtered(before, Gaussian(out.mean, round_cov(out.cov, dtype)), out.log_likelihood)
