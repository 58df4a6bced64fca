"""The seven models of tires by name. Belongs here: choosing one, and loading weights into it. Each architecture has a file of its own, so
that changing one makes only its own variants stale.

All take float32 [batch, 3, height, width], normalised, of any size from 32 pixels on, and give logits [batch, classes].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.settings import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Variant -> the file beside this one that builds it.
FILES: Final = {
    "efficientnet_b0": "efficientnet",
    "efficientnet_b1": "efficientnet",
    "efficientnet_b2": "efficientnet",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "tinyvgg": "tinyvgg",
    "cnn": "cnn",
}


def module_of(variant: str) -> str:
    return f"{__name__}.{FILES[variant]}"


def build(variant: str, classes: int, pretrained: str | None = None) -> nn.Module:
    """A new network, from torch's random state; with `pretrained`, all but its last layer from there.

    Raises:
        SettingsError: the weights are unknown, cannot be had, or belong to another architecture.
    """
    from importlib import import_module

    net: nn.Module = import_module(module_of(variant)).build(variant, classes)
    if pretrained is not None:
        _fill(net, _weights(variant, pretrained), variant, pretrained)
    return net


def _weights(variant: str, pretrained: str) -> dict[str, Tensor]:
    """The weights in a local file (safetensors, or torch's), else torchvision's of that name."""
    if Path(pretrained).is_file():
        return _read(Path(pretrained))
    from torchvision import models

    try:
        known: Any = models.get_model_weights(variant)
    except ValueError:
        known = {}
    names = [str(weights.name) for weights in known]
    if pretrained not in names:
        choices = f"choose one of {', '.join(names)}, or a local file" if names else "torchvision has none for it: give a local file"
        raise SettingsError(f"pretrained {pretrained!r} is neither a file nor weights of {variant}; {choices}.")
    try:
        return dict(known[pretrained].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # RuntimeError: the download's hash is wrong
        raise SettingsError(
            f"the weights {pretrained} of {variant} could not be had ({error}). Without a network, download "
            f"{known[pretrained].url} elsewhere and set `pretrained` to that file, or to null to train from scratch."
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise SettingsError(f"pretrained {str(path)!r} could not be read: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # weights_only raises pickle's own error, whose module is not ours to import
        raise SettingsError(f"pretrained {str(path)!r} holds more than weights, which is not read ({type(error).__name__})") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise SettingsError(f"pretrained {str(path)!r} holds no weights by name (a state_dict)")
    return found


def _fill(net: nn.Module, weights: dict[str, Tensor], variant: str, pretrained: str) -> None:
    """All of `weights` into `net`, except a last layer of another number of classes."""
    ours = net.state_dict()
    head = set(list(ours)[-2:])  # weight and bias of the last layer, in all seven
    fitting = {name: tensor for name, tensor in weights.items() if name in ours and tensor.shape == ours[name].shape}
    if missing := sorted(set(ours) - set(fitting) - head):
        raise SettingsError(
            f"pretrained {pretrained!r} is not of {variant}: {len(missing)} of {len(ours)} tensors are missing or of another shape, "
            f"{', '.join(missing[:3])} among them."
        )
    net.load_state_dict(ours | fitting)
