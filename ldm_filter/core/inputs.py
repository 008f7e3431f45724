"""The door of the core: every argument is checked once, and brought to one layout, before any arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_filter.core import native
from ldm_filter.types import Gaussian, StateSpace

__all__ = [
    "Given",
    "Problem",
    "Transition",
    "check_count",
    "check_kind",
    "check_mask",
    "check_measurements",
    "check_numbers",
    "check_tensors",
    "check_transition",
    "fill_missing",
    "fold",
    "lay_out",
    "layout",
    "mask_missing",
    "prepare",
]


_FLOATING = (torch.float32, torch.float64)


class Problem(NamedTuple):
    """A filtering problem in one layout, b in {1, B} and t in {1, T} for each field by itself.

    Attributes:
        A, a, Q: transition ``(b, t, n, n)``, ``(b, t, n)``, ``(b, t, n, n)``.
        C: observation matrix ``(b, t, m, n)``; its rows are zero where the channel is missing.
        R: measurement covariance ``(b, t, m, m)``; its rows and columns are those of the identity where missing.
        z: measurement less observation offset ``(B, T, m)``; zero where missing.
        initial: mean ``(B, n)``, cov ``(b, n, n)``.
        seen: number of observed channels, ``(b, T)`` or a number.
    """

    A: Tensor
    a: Tensor
    Q: Tensor
    C: Tensor
    R: Tensor
    z: Tensor
    initial: Gaussian
    seen: Tensor | int


class Given(NamedTuple):
    """A filtering problem as it came, checked and in one layout, b in {1, B} and t in {1, T} for each field by itself.

    Attributes:
        A, a, Q, C, c, R: as in :class:`Problem`, nothing masked; c: observation offset ``(b, t, m)``.
        z: measurement ``(B, T, m)``, anything where it is missing.
        initial: mean ``(b, n)``, cov ``(b, n, n)``.
        mask: bool ``(b, T, m)``, or None where everything is observed.
    """

    A: Tensor
    a: Tensor
    Q: Tensor
    C: Tensor
    c: Tensor
    R: Tensor
    z: Tensor
    initial: Gaussian
    mask: Tensor | None


def lay_out(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None) -> Given:
    """Check everything but the numbers of the measurements; the caller's tensors are not changed."""
    check_kind("measurements", measurements, Gaussian)
    mean = measurements.mean
    check_tensors({"measurements.mean": mean, "measurements.cov": measurements.cov})
    if mean.dim() != 3 or 0 in mean.shape:
        raise ValueError(
            f"measurements.mean has shape {tuple(mean.shape)}; expected (batch, time, dim), none of them 0: "
            "give one series as mean[None], one channel as mean[..., None]"
        )
    batch, steps, m = mean.shape
    way = check_transition(ssm, mean, batch, steps)
    n = way.A.shape[-1]
    C, c, R = ssm.observation_matrix, ssm.observation_offset, measurements.cov
    check_tensors({"ssm.observation_matrix": C, "ssm.observation_offset": c}, mean)
    C = layout("ssm.observation_matrix", C, (m, n), batch, steps)
    c = layout("ssm.observation_offset", c, (m,), batch, steps)
    R = layout("measurements.cov", R, (m, m), batch, steps)
    check_numbers({}, {"ssm.observation_matrix": C, "ssm.observation_offset": c})
    return Given(way.A, way.a, way.Q, C, c, R, mean, way.initial, check_mask(observed, mean))


def check_measurements(x: Given) -> None:
    """Refuse observed measurements and covariances that are not finite, and negative variances."""
    check_numbers({"measurements.cov": x.R}, {"measurements.mean": fill_missing(x.z, x.mask)})


def fold(x: Given) -> Problem:
    """Work the mask into the observation."""
    batch, _, m = x.z.shape
    C, R, z = mask_missing(x.C, x.R, fill_missing(x.z, x.mask) - x.c, x.mask)
    seen = m if x.mask is None else x.mask.sum(-1, dtype=torch.float64)
    initial = x.initial._replace(mean=x.initial.mean.expand(batch, x.A.shape[-1]))
    return Problem(x.A, x.a, x.Q, C, R, z, initial, seen)


def prepare(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None) -> Problem:
    """Check the arguments of a filter and lay them out; the caller's tensors are not changed."""
    given = lay_out(ssm, measurements, observed)
    check_measurements(given)
    return fold(given)


class Transition(NamedTuple):
    """The moving half of a model in one layout: ``(1 | B, 1 | T, ...)``, and the first belief ``(1 | B, ...)``."""

    A: Tensor
    a: Tensor
    Q: Tensor
    initial: Gaussian


def check_transition(ssm: StateSpace, like: Tensor, batch: int | None, steps: int, initial: str = "ssm.initial") -> Transition:
    """The transition of a model, checked; ``like`` gives dtype and device.

    ``batch`` None: the model's own batch size; ``initial`` is what the caller calls the first belief.
    """
    check_kind("ssm", ssm, StateSpace)
    check_kind(initial, ssm.initial, Gaussian)
    A, a, Q, (h, P) = ssm.transition_matrix, ssm.transition_offset, ssm.transition_cov, ssm.initial
    names = ("ssm.transition_matrix", "ssm.transition_offset", "ssm.transition_cov", f"{initial}.mean", f"{initial}.cov")
    check_tensors(dict(zip(names, (A, a, Q, h, P), strict=True)), like)
    n = A.shape[-1] if A.dim() else 0
    if batch is None:
        batch = max(x.shape[0] if x.dim() > dims else 1 for x, dims in ((A, 2), (a, 1), (Q, 2), (h, 1), (P, 2)))
    A = layout(names[0], A, (n, n), batch, steps)
    a = layout(names[1], a, (n,), batch, steps)
    Q = layout(names[2], Q, (n, n), batch, steps)
    h = layout(names[3], h, (n,), batch, None)
    P = layout(names[4], P, (n, n), batch, None)
    check_numbers({names[2]: Q, names[4]: P}, {names[0]: A, names[1]: a, names[3]: h})
    return Transition(A, a, Q, Gaussian(h, P))


def layout(name: str, x: Tensor, event: tuple[int, ...], batch: int, steps: int | None) -> Tensor:
    """View ``x`` as ``(1 | batch, 1 | steps, *event)``, or ``(1 | batch, *event)`` where ``steps`` is None; refuse what does not broadcast."""
    lead = (batch,) if steps is None else (batch, steps)
    shape = x.shape
    if shape == event:
        return x.view((1,) * len(lead) + event)
    fits = len(shape) == len(lead) + len(event) and shape[len(lead) :] == event
    if not fits or any(have not in (1, want) for have, want in zip(shape, lead, strict=False)):
        wanted = ", ".join(str(v) if v == 1 else f"1 or {v}" for v in lead) + "".join(f", {v}" for v in event)
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected {event} or ({wanted}): "
            f"add the missing leading dimension{'s' if steps is not None else ''} with [None], or check which dimension is which"
        )
    return x


def check_kind(name: str, value: object, kind: type) -> None:
    """A bundle of tensors is the named tuple that it should be."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a {kind.__name__}: see ldm_filter.types")


def check_tensors(fields: dict[str, Tensor], like: Tensor | None = None) -> None:
    """All are floating tensors of one dtype on one device."""
    first = next(iter(fields))
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    for name, x in fields.items():
        if isinstance(x, Tensor) and x.dtype == dtype and x.device == device and dtype in _FLOATING:
            continue  # as nearly all do
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; expected a torch.Tensor: convert with torch.as_tensor")
        like = x if like is None else like
        dtype, device = like.dtype, like.device
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; expected a floating dtype: convert with .to(torch.float32) or .to(torch.float64)")
        if x.dtype != like.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {like.dtype} as the other arguments (first: {first}): convert with .to(...)")
        if x.device != like.device:
            raise ValueError(f"{name} is on {x.device}; expected {like.device} as the other arguments: move it with .to(...)")


def check_numbers(covs: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Every entry is finite and no variance is negative; one transfer from the device for all of them."""
    if torch.compiler.is_compiling() or native.sound(covs.values(), others.values()):
        return  # what is traced has no numbers yet; the operator looks at its own when it runs
    everything = covs | others
    finite = [torch.isfinite(x.detach()).all() for x in everything.values()]
    positive = [(x.detach().diagonal(dim1=-2, dim2=-1) >= 0).all() for x in covs.values()]
    flags = torch.stack(finite + positive).tolist()
    for name, good in zip(everything, flags, strict=False):
        if not good:
            bad = (~torch.isfinite(everything[name])).nonzero()[0].tolist()
            mend = ": mark missing entries False in observed" if name in ("measurements.mean", "measurement.mean") else ""
            raise ValueError(f"{name} is not finite at index {bad} of shape {tuple(everything[name].shape)}; expected finite numbers{mend}")
    for name, good in zip(covs, flags[len(everything) :], strict=True):
        if not good:
            raise ValueError(f"{name} has a negative variance on its diagonal; expected a positive semi-definite covariance: check its sign")


def check_mask(observed: Tensor | None, mean: Tensor) -> Tensor | None:
    """The mask as ``(1 | B, ..., m)``, or None where everything is observed. It comes as the mean is, or without its last dimension."""
    if observed is None:
        return None
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        kind = observed.dtype if isinstance(observed, Tensor) else f"a {type(observed).__name__}"
        raise TypeError(f"observed is {kind}; expected a boolean torch.Tensor, True where observed: convert with .bool()")
    mask = observed.unsqueeze(-1).expand(*observed.shape, mean.shape[-1]) if observed.dim() == mean.dim() - 1 else observed
    if mask.shape != mean.shape and not (mean.dim() > 1 and mask.shape == (1, *mean.shape[1:])):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}; expected {tuple(mean.shape[:-1])} per step or {tuple(mean.shape)} per channel "
            "(the batch may be 1): check which dimension is which"
        )
    if observed.device != mean.device:
        raise ValueError(f"observed is on {observed.device}; expected {mean.device} as the measurements: move it with .to(...)")
    return None if not torch.compiler.is_compiling() and bool(observed.all()) else mask


def fill_missing(mean: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where missing, before any arithmetic: a NaN that is only selected away later still poisons the gradient."""
    return mean if mask is None else torch.where(mask, mean, torch.zeros((), dtype=mean.dtype, device=mean.device))


def mask_missing(C: Tensor, R: Tensor, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Marginalise the missing channels: a channel with zero row in C, unit noise and zero innovation changes nothing."""
    if mask is None:
        return C, R, z
    seen = mask.to(z.dtype)
    return seen.unsqueeze(-1) * C, seen.unsqueeze(-1) * R * seen.unsqueeze(-2) + torch.diag_embed(1.0 - seen), seen * z


def check_count(name: str, value: int) -> None:
    """A number of steps or paths is at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; expected an int of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1")
