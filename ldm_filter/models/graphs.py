"""Encoder and filter step as plain graphs: no branches on data, no factorisation that another runtime lacks. What ``LDMFilter.export`` writes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.known import DirectEncoder
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout

__all__ = ["MOST_LATENTS", "EncoderGraph", "StepGraph", "inverse_factor"]

# A Cholesky factor written out has about m^2 nodes.
MOST_LATENTS = 32


class EncoderGraph(nn.Module):
    """values ``(N, *event)``, NaN = missing -> measurement mean ``(N, m)`` and covariance ``(N, m, m)``; equal to the encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        encoder, observed = self.encoder, ~torch.isnan(values)
        if isinstance(encoder, DirectEncoder):
            mean = torch.where(observed, values, torch.zeros_like(values))
            return mean, encoder.measurement_cov.expand(values.shape[0], -1, -1)
        normalised = (torch.where(observed, values, encoder.center) - encoder.center) / encoder.scale
        axes = (1, *[1] * len(encoder.event_shape))[1:]
        seen = observed.flatten(1).any(-1).reshape(-1, *axes)
        missing = (seen & ~observed).to(values.dtype)[:, None]
        normalised = normalised[:, None]
        cov = encoder.noise(normalised, missing) * encoder.gain[:, None] * encoder.gain * encoder.noise_scale
        cov = cov[:, 0] + torch.einsum("nc,cij->nij", encoder._absence(missing)[:, 0], encoder.missing_cov)
        return encoder.embed(normalised, missing)[:, 0], cov


class StepGraph(nn.Module):
    """One step of the filter, from the observation to the state and back to the observation.

        h^- = A h + a + B u,  P^- = A P A' + Q   (first row: the initial belief);   S = C P^- C' + R = L L',   K = P^- C' L^-T L^-1
        h = h^- + K e,  P = (I - K C) P^- (I - K C)' + K R K',   x = W h + b + g(h)

    Inputs:
        values ``(N, *event)``, NaN = missing; state_mean ``(N, n)`` and state_cov ``(N, n, n)`` float64, what the step before gave;
        first ``(N,)`` bool: no step before, so that they do not count; inputs ``(N, u)`` float64, where the model has some.

    Outputs:
        new_state_mean, new_state_cov, log_likelihood ``(N,)``, nis ``(N,)`` (divided by the latents observed, NaN where none is), and
        observation_mean ``(N, *event)`` in the data's units; all float64.

    Raises:
        ValueError: dynamics that are not linear, or more than 32 latents.
    """

    A: Tensor
    a: Tensor
    Q: Tensor
    C: Tensor
    c: Tensor
    start_mean: Tensor
    start_cov: Tensor
    B: Tensor
    D: Tensor
    input_mean: Tensor
    input_scale: Tensor
    log_turn: Tensor

    def __init__(self, model: LatentFilter, readout: Readout) -> None:
        super().__init__()
        dynamics = model.dynamics
        if not isinstance(dynamics, AffineDynamics):
            raise ValueError(f'a step of {type(dynamics).__name__} is not exported; fit with dynamics="linear" or "continuous"')
        if dynamics.latent_dim > MOST_LATENTS:
            raise ValueError(f"latent_dim is {dynamics.latent_dim}, at most {MOST_LATENTS} are exported; lower it, or export part='encoder'")
        self.encoder, self.readout, self.channelwise = EncoderGraph(model.encoder), readout, model.encoder.channelwise
        ssm = dynamics.state_space()  # rounded as the model itself has it, so that both filter with the same matrices
        matrices = dict(zip(("A", "a", "Q", "C", "c", "start_mean", "start_cov"), (*ssm[:-1], *ssm.initial), strict=True))
        self.has_inputs, self.event_shape = bool(dynamics.input_dim), model.encoder.event_shape
        if self.has_inputs:
            matrices |= {"B": dynamics.steps(None).held @ dynamics.input_matrix.double(), "D": dynamics.feedthrough.double()}
            matrices |= {"input_mean": dynamics.input_mean.double(), "input_scale": dynamics.input_scale.double()}
        matrices["log_turn"] = torch.tensor(math.log(2.0 * math.pi), dtype=torch.float64)  # a plain number would be rounded to float32 on the way
        for name, value in matrices.items():
            self.register_buffer(name, value.detach().double().clone().to(model.encoder.center.device))

    def forward(
        self, values: Tensor, state_mean: Tensor, state_cov: Tensor, first: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        push, level, u = self.a, self.c, None
        if inputs is not None:
            u = (inputs - self.input_mean) / self.input_scale
            push, level = push + u @ self.B.mT, level + u @ self.D.mT
        started = first[:, None]
        mean = torch.where(started, self.start_mean, state_mean @ self.A.mT + push)
        P = torch.where(started[..., None], self.start_cov, self.A @ state_cov @ self.A.mT + self.Q)
        z, R = (part.double() for part in self.encoder(values))
        observed = ~torch.isnan(values).flatten(1)
        seen = observed if self.channelwise else observed.any(-1, keepdim=True).expand(-1, z.shape[-1])
        kept = seen.double()
        C = kept[..., None] * self.C
        R = kept[..., None] * R * kept[:, None] + torch.diag_embed(1.0 - kept)
        e = kept * (z - (mean @ self.C.mT + level))
        root, diagonal = inverse_factor(C @ P @ C.mT + R)
        whitened, gain = (root @ e[..., None])[..., 0], P @ C.mT @ root.mT @ root
        rest = torch.eye(len(self.a), dtype=P.dtype, device=P.device) - gain @ C
        cov = rest @ P @ rest.mT + gain @ R @ gain.mT
        count, square = kept.sum(-1), whitened.square().sum(-1)
        log_likelihood = -0.5 * (square + 2.0 * diagonal.log().sum(-1) + count * self.log_turn)
        mean = mean + (gain @ e[..., None])[..., 0]
        return mean, 0.5 * (cov + cov.mT), log_likelihood, square / count, self._observation(mean, u)

    def _observation(self, mean: Tensor, u: Tensor | None) -> Tensor:
        encoder, readout = self.encoder.encoder, self.readout
        states = mean if u is None else torch.cat([mean, u], -1)
        flat = readout.mean(states.to(readout.weight.dtype))
        return (flat.reshape(-1, *self.event_shape) * encoder.scale + encoder.center).double()


def inverse_factor(cov: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 ``(N, m, m)`` and the diagonal of L ``(N, m)`` of cov = L L', written out column by column and row by row."""
    size = cov.shape[-1]
    columns: list[Tensor] = []
    for j in range(size):
        column = cov[:, :, j]
        for done in columns:
            column = column - done * done[:, j : j + 1]
        below = (torch.arange(size, device=cov.device) >= j).to(cov.dtype)
        columns.append(below * column / column[:, j : j + 1].sqrt())
    lower = torch.stack(columns, -1)
    diagonal = torch.stack([columns[j][:, j] for j in range(size)], -1)
    rows: list[Tensor] = []
    eye = torch.eye(size, dtype=cov.dtype, device=cov.device)
    for i in range(size):
        row = eye[i].expand(cov.shape[0], -1)
        for k, done in enumerate(rows):
            row = row - lower[:, i, k : k + 1] * done
        rows.append(row / diagonal[:, i : i + 1])
    return torch.stack(rows, 1), diagonal
