"""Models of torchvision and timm without their last layer, from random weights or from those in a file; nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.config.schema import near
from metarun.errors import UserError

AUXILIARY = ("googlenet", "inception_v3")  # have further outputs in training


def torchvision_model(name: str, weights: str | None = None) -> nn.Module:
    """torchvision's classifier `name`, whose features are what its last linear layer would get.

    weights: a file of torch (.pt, .pth) or safetensors with a state dict, with or without the last layer. Raises UserError for an
    unknown name, and for a file that cannot be read or does not fit.
    """
    import torchvision

    names = [known for known in torchvision.models.list_models(module=torchvision.models) if known not in AUXILIARY]
    refuse(name not in names, name, names, "a classifier of torchvision")
    model = torchvision.models.get_model(name, weights=None)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"backbone.module.name: {name} is not allowed; it does not end in a linear layer")
    model.set_submodule(linear[-1], nn.Identity())
    if weights is not None:
        load_weights(model, linear[-1:], Path(weights))
    return model


def timm_model(name: str, weights: str | None = None) -> nn.Module:
    """timm's model `name` without its classifier. `weights` and the refusals are those of `torchvision_model`, or timm is missing."""
    try:
        import timm
    except ImportError as error:
        raise UserError("backbone.module: timm is not installed; pip install 'metarun[timm]' adds it") from error
    refuse(not timm.is_model(name), name, timm.list_models(), "a model of timm")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is not None:
        facts: Any = model.pretrained_cfg
        heads = facts.get("classifier") or ()
        load_weights(model, [heads] if isinstance(heads, str) else heads, Path(weights))
    return model


def refuse(unknown: bool, name: str, names: Iterable[str], what: str) -> None:
    """Raises UserError if `name` is unknown, with the nearest one of the names."""
    if unknown:
        raise UserError(f"backbone.module.name: {name} is not allowed; {near(name, names)}expected {what}")


def load_weights(model: nn.Module, heads: Iterable[str], path: Path) -> None:
    """Puts a file's tensors in place, those of `heads`, the layers left out, aside. Raises UserError as `torchvision_model` does."""
    left_out = tuple(f"{head}." for head in heads)
    given = {key: value for key, value in read_state(path).items() if not key.startswith(left_out)}
    own = model.state_dict()
    lacks = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]  # the oldest files have none
    for problem, keys in (
        ("has no", lacks),
        ("has an unknown", [key for key in given if key not in own]),
        ("has another shape of", [key for key in own if key in given and own[key].shape != given[key].shape]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"backbone.module.weights: {path} does not fit the model; it {problem} {keys[0]}{more}")
    model.load_state_dict(given, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names; those of a whole training (`state_dict`) or of `DataParallel` (`module.`) too."""
    if not path.is_file():
        raise UserError(f"backbone.module.weights: {path} is no file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"backbone.module.weights: {path} needs safetensors; pip install safetensors adds it") from error
    except Exception as error:  # bytes that are no state dict raise nearly anything
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise UserError(f"backbone.module.weights: {path} cannot be read as a state dict ({reason})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"backbone.module.weights: {path} is no state dict; expected tensors by their names")
    return {str(key).removeprefix("module."): value for key, value in state.items()}
