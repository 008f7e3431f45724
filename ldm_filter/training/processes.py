"""Data-parallel training: what the processes share, so that together they do what one would with the whole batch."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import pad

from ldm_filter.types import Context, Sequences

__all__ = ["Gather", "share"]


class Gather:
    """Joins tensors ``(N, ...)`` of all processes, with gradients, where N may differ; on one process it does nothing.

    A process that cannot evaluate its share must :meth:`tell`, or the others would wait for it: their next call then raises.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    def __call__(self, part: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return part
        sizes = self._sizes(len(part))
        if min(sizes) < 0:
            raise PeerError(f"process {sizes.index(-1)} could not evaluate its share of the batch")
        padded = pad(part, [0, 0] * (part.ndim - 1) + [0, max(sizes) - len(part)])
        joined = torch.as_tensor(self.fabric.all_gather(padded, sync_grads=part.requires_grad))
        return torch.cat([piece[:size] for piece, size in zip(joined, sizes, strict=True)])

    def tell(self, error: Exception) -> None:
        """Let the other processes know of an error, unless it came from them."""
        if self.fabric.world_size > 1 and not isinstance(error, PeerError):
            self._sizes(-1)

    def _sizes(self, size: int) -> list[int]:
        own = torch.tensor([size], device=self.fabric.device)
        return torch.as_tensor(self.fabric.all_gather(own)).flatten().tolist()


class PeerError(ValueError):
    """Another process failed."""


def share(batch: Sequences, rank: int, processes: int) -> Sequences:
    """Every ``processes``-th series of a batch, from ``rank`` on.

    Raises:
        ValueError: fewer series than processes.
    """
    if processes == 1:
        return batch
    if len(batch.values) < processes:
        raise ValueError(f"a batch of {len(batch.values)} series cannot be shared by {processes} processes; raise batch_size")
    own = slice(rank, None, processes)
    context = Context(*(part if part is None or len(part) == 1 else part[own] for part in batch.context))
    return Sequences(batch.values[own], batch.observed[own], batch.lengths[own], context)
