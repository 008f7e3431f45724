"""Checks, defaults and serialisation of LDMFilter's arguments."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky_psd
from ldm_filter.data.labels import describe, from_description
from ldm_filter.estimator.fitting import build
from ldm_filter.estimator.forecasting import Calibration
from ldm_filter.estimator.options import check_jumps, check_rates
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.head import TargetHead
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.objectives.objective import Objective
from ldm_filter.objectives.presets import LATENT_MODELS, Composition, compose
from ldm_filter.training import History
from ldm_filter.types import Context, Gaussian, Sequences

if TYPE_CHECKING:
    from ldm_filter.estimator.parameters import Parameters

Estimator = TypeVar("Estimator", bound="Parameters")

__all__ = [
    "check",
    "check_choice",
    "check_counts",
    "check_device",
    "check_learnable",
    "check_seed",
    "check_share",
    "comparisons",
    "composition",
    "from_checkpoint",
    "latents",
    "observation_draws",
    "target_fields",
    "to_checkpoint",
    "to_json",
]

CHOICES = {
    "dynamics": ("linear", "continuous", "locally-linear", "ekf", "ukf", "polynomial", "recurrent"),
    "latent_model": ("auto", *LATENT_MODELS),
    "space": ("plane", "sphere"),
    "noise": ("constant", "input", "state", "adaptive", "jump"),
    "readout": ("auto", "linear", "mlp"),
    "transition_cov": ("full", "diagonal"),
    "observation": ("learned", "selector"),
}
READOUT_COVARIANCES = ("auto", "constant", "state-dependent")
CALIBRATED_COVARIANCES = ("scaled", "state-dependent")
# Parts of a model that the first files did not hold.
LATER = ("turn_base", "turn_direction", "turn_centre", "turn_scale", "turn_power", "turn_level", "unrest")


def check(params: dict[str, Any]) -> None:
    """Refuse arguments of LDMFilter that no model can be built from.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what is expected.
    """
    if params["dynamics"] == "matrices":
        raise ValueError("this LDMFilter was made from known matrices, and there is nothing to fit; make a new one with LDMFilter(state_dim)")
    for name, allowed in CHOICES.items():
        if name == "dynamics" and isinstance(params[name], nn.Module):
            _check_module(params[name], params)
        else:
            check_choice(name, params[name], allowed)
    composition(params, square=True)  # whether it is square shows with the data
    if isinstance(params["state_dim"], str) and params["state_dim"] != "auto":
        raise ValueError(f"state_dim is {params['state_dim']!r}, expected a whole number of at least 1, or 'auto'")
    check_counts(
        state_dim=None if params["state_dim"] == "auto" else params["state_dim"],
        latent_dim=params["latent_dim"],
        window=params["window"],
        devices=params["devices"],
        settle_within=params["settle_within"],
    )
    check_jumps(params)
    if params["latent_dim"] is not None and params["state_dim"] != "auto" and params["latent_dim"] > params["state_dim"]:
        raise ValueError(f"latent_dim is {params['latent_dim']}, expected at most state_dim = {params['state_dim']}; raise state_dim")
    if params["window"] == 1:
        raise ValueError("window is 1, expected at least 2 steps: one step alone shows no motion")
    check_seed(params["seed"])
    check_device(params["device"])
    if params["dtype"] not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {params['dtype']}, expected torch.float32 or torch.float64")
    check_rates(params)


def _check_module(dynamics: nn.Module, params: dict[str, Any]) -> None:
    """Refuse a user's own dynamics that do not go with the other arguments."""
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"dynamics is a {type(dynamics).__name__}, expected a name or an ldm_filter.models.base.Dynamics: derive your module from it")
    for name in ("state_dim", "latent_dim"):
        given, own = params[name], getattr(dynamics, name)
        if given != own and not (name == "latent_dim" and given is None):
            raise ValueError(f"{name} is {given!r}, and the module given as dynamics has {own}; use one {name} for both")
    if params["noise"] not in ("constant", "input"):
        raise ValueError(
            f"noise is {params['noise']!r}, which is for dynamics by name; let your own module scale its noise, or use 'constant' or 'input'"
        )


def latents(params: dict[str, Any], event_shape: tuple[int, ...]) -> int:
    """m: as it was given, that of a user's own dynamics, or as many as states, at most the entries of an observation."""
    own = params["dynamics"].latent_dim if isinstance(params["dynamics"], Dynamics) else None
    return int(params["latent_dim"] or own or min(params["state_dim"], math.prod(event_shape)))


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is not among the choices of an argument."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def composition(params: dict[str, Any], square: bool) -> Composition:
    """Latent model and objective that the arguments of LDMFilter mean, or a ValueError with the reason why they mean nothing."""
    names = ("objective", "latent_model", "space", "mutual_information", "noise")
    return compose(**{name: params[name] for name in names}, square=square)


def comparisons(params: dict[str, Any], square: bool, names: Iterable[str]) -> dict[str, Objective]:
    """Other estimators for the latent model and space that the arguments of LDMFilter mean, by name."""
    own = composition(params, square)
    choices = {"latent_model": own.latent_model, "space": own.objective.space, "mutual_information": params["mutual_information"]}
    return {name: compose(name, **choices, noise=params["noise"], square=square).objective for name in names}


def check_counts(**counts: int | None) -> None:
    """Refuse anything but positive whole numbers (None means: choose)."""
    for name, value in counts.items():
        if value is None:
            continue
        if not _whole(value):
            raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a whole number of at least 1")
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")


def check_seed(seed: Any) -> None:
    """Refuse what no generator starts from."""
    if not _whole(seed):
        raise TypeError(f"seed is {seed!r} ({type(seed).__name__}), expected a whole number such as 0")


def check_device(device: Any) -> None:
    """Refuse a device that is unknown or not on this machine."""
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in there:
        raise ValueError(f"device is {device!r}, expected one of {', '.join(map(repr, there))}")
    if not there[device]:
        raise ValueError(f"device is {device!r}, and this machine (or this build of torch) has none; use 'auto' or 'cpu'")


def check_share(name: str, value: Any) -> None:
    """Refuse a number that is no share of the data."""
    if isinstance(value, numbers.Real) and not 0.0 < float(value) < 1.0:
        raise ValueError(f"{name} is {value}, expected a share between 0 and 1, held-out data, or None")


def check_learnable(sequences: Sequences, latent_dim: int) -> None:
    """Refuse data too short, or too constant, to learn from.

    Raises:
        ValueError: fewer steps than latents need, or no entry that ever changes.
    """
    steps = int(sequences.observed.flatten(2).any(-1).sum())
    if steps < latent_dim + 2:
        raise ValueError(f"data has {steps} steps in all, expected at least {latent_dim + 2} to learn {latent_dim} latents; pass more")
    ends = torch.finfo(sequences.values.dtype)
    low = torch.full_like(sequences.values[0, 0], ends.max)
    high = torch.full_like(low, ends.min)
    for values, observed in zip(sequences.values, sequences.observed, strict=True):  # one by one: a copy of long videos is large
        low = torch.minimum(low, values.masked_fill(~observed, ends.max).amin(0))
        high = torch.maximum(high, values.masked_fill(~observed, ends.min).amax(0))
        if bool((high > low).any()):
            return
    kind = str(sequences.values.dtype).removeprefix("torch.")
    raise ValueError(
        f"data never changes: in {kind} every channel has one value at all steps, and there is nothing to learn from; "
        "where the changes are small beside the values, subtract each channel's mean first"
    )


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def target_fields(readout: Readout | TargetHead, belief: Gaussian) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Variables of the supervised read-out: mean and covariance, or variances where there are many targets."""
    dims: tuple[str, ...] = ("series", "time", "target")
    with torch.no_grad():
        if readout.full:
            mean, cov = readout(belief)
            return {"target_mean": (dims, mean), "target_cov": ((*dims, "target_aux"), cov)}
        mean, var = readout.moments(belief)
        return {"target_mean": (dims, mean), "target_var": (dims, var.expand_as(mean))}


def observation_draws(model: LatentFilter, readout: Readout, paths: Tensor, generator: torch.Generator, context: Context = NO_CONTEXT) -> Tensor:
    """Observations ``(path, B, T, *event)`` in the data's units along state paths: the read-out's mean and its residual noise."""
    inputs = model.dynamics.standardise(context.inputs)
    if inputs is not None:
        paths = torch.cat([paths, inputs.to(paths).expand(*paths.shape[:-1], -1)], dim=-1)
    mean = readout.mean(paths)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    residual = readout.residual
    noise = noise @ cholesky_psd(residual).mT.to(mean.dtype) if readout.full else noise * residual.sqrt()
    event = model.encoder.event_shape
    return (mean + noise).unflatten(-1, event) * model.encoder.scale + model.encoder.center


def to_json(params: dict[str, Any]) -> str:
    """The constructor's arguments as JSON text; a user's module by the word ``custom``."""
    plain = {name: "custom" if isinstance(value, nn.Module) else int(value) if _whole(value) else value for name, value in params.items()}
    return json.dumps(plain | {"dtype": str(params["dtype"]).removeprefix("torch.")})


def to_checkpoint(estimator: Parameters) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors under the names of their owners, and what is needed to build the modules again."""
    model = estimator._model()
    owners: dict[str, nn.Module] = {"model": model, "readout": estimator.readout_}
    if estimator.target_readout_ is not None:
        owners["target_readout"] = estimator.target_readout_
    tensors = {f"{owner}.{name}": tensor for owner, module in owners.items() for name, tensor in module.state_dict().items()}
    if estimator.calibration_ is not None:
        tensors["calibration.widths"] = estimator.calibration_.widths
    config = {
        "params": json.loads(to_json(estimator.get_params())),
        "labels": describe(estimator.labels_),
        "inputs": None if estimator.input_labels_ is None else describe(estimator.input_labels_),
        "latent_dim": model.encoder.latent_dim,
        "readout": {name: [module.kind, len(module.bias)] for name, module in owners.items() if isinstance(module, Readout)},
        "head": [head.kind, head.target_dim] if isinstance(head := estimator.target_readout_, TargetHead) else None,
        "targets": estimator.target_names_,
        "history": {"epochs": estimator.history_.epochs, "events": estimator.history_.events, "best_epoch": estimator.history_.best_epoch},
    }
    return tensors, config


def from_checkpoint(
    cls: type[Estimator], tensors: dict[str, Tensor], config: dict[str, Any], own: dict[str, nn.Module | None], device: str
) -> Estimator:
    """Build the estimator again; the weights come from ``tensors``, and ``own`` are the user's modules by argument."""
    params = dict(config["params"]) | {"dtype": getattr(torch, config["params"]["dtype"])}
    for name, module in own.items():
        if params[name] == "custom":
            if module is None:
                raise ValueError(f"the file holds a model with {name} of your own; pass the module: LDMFilter.load(path, {name}=module)")
            params[name] = module
    estimator = cls(**params)
    check_device(device if device == "auto" else str(device).partition(":")[0])
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    labels = from_description(config["labels"])
    inputs = None if config.get("inputs") is None else from_description(config["inputs"])
    input_dim = 0 if inputs is None else len(inputs.channels)
    model = build(tuple(labels.attrs["event_shape"]), estimator.get_params(), params["encoder"], config["latent_dim"], params["dtype"], input_dim)
    model.predictor = None  # it served in training
    _load(model, "model", tensors)
    estimator.model_, estimator.labels_, estimator.input_labels_ = model.to(where).eval(), labels, inputs
    readouts = {name: Readout(params["state_dim"] + input_dim, size, kind).to(params["dtype"]) for name, (kind, size) in config["readout"].items()}
    for name, readout in readouts.items():
        _load(readout, name, tensors)
        readout.to(where).requires_grad_(False)
    estimator.readout_, estimator.target_readout_ = readouts["readout"], readouts.get("target_readout")
    if config.get("head") is not None:
        kind, size = config["head"]
        head = TargetHead(params["state_dim"] + input_dim, size, kind).to(params["dtype"])
        _load(head, "target_readout", tensors)
        estimator.target_readout_ = head.to(where).requires_grad_(False)
    estimator.target_names_ = list(config["targets"])
    if "calibration.widths" in tensors:
        estimator.calibration_ = Calibration(tensors["calibration.widths"])
    estimator.history_ = History(**config["history"])
    return estimator


def _load(module: nn.Module, owner: str, tensors: dict[str, Tensor]) -> None:
    """Give a module its weights; what files of before lack stays as it starts, which is how those models were."""
    later = {name: start for name, start in module.state_dict().items() if name.rpartition(".")[2] in LATER}
    module.load_state_dict(later | _of(owner, tensors))


def _of(owner: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{owner}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
