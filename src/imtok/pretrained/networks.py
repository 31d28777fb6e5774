"""What every frozen network has in common, and safe reading of weight files."""

from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imtok.config import ConfigError


class FrozenNetwork(nn.Module):
    """A third-party network: eval mode and without weight gradients, whatever the module around it does.

    Gradients still flow through it to its input. The door fills in `name` and `sha256`.

    Attributes:
        name: role/name by which the door knows it, such as `text_features/ppocrv6`.
        sha256: of the file (or of the list of files) that the weights were read from; reported beside every number.
        input_size: height and width that it wants, or None when it takes any.
    """

    name: str = ""
    sha256: str = ""
    input_size: tuple[int, int] | None = None

    def train(self, mode: bool = True) -> "FrozenNetwork":
        return super().train(False)

    def freeze(self) -> "FrozenNetwork":
        return self.requires_grad_(False).eval()


class FeatureNetwork(FrozenNetwork):
    """A frozen network that answers with feature maps: what a perceptual loss is made of."""

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Feature maps from shallow to deep.

        Args:
            images: RGB in [-1, 1], of `input_size` if that is set.

        Returns:
            One map (batch, channels, rows, columns) per layer; a sequence comes as one row.
        """
        raise NotImplementedError


Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norms(network: Network) -> Network:
    """Fold every batch norm that follows a convolution in an `nn.Sequential` into it; for eval mode only."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (before, after) in enumerate(pairwise(sequence)):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                sequence[index] = fuse_conv_bn_eval(before.eval(), after.eval())
                sequence[index + 1] = nn.Identity()
    return network


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file; nothing in it is executed.

    Raises:
        ConfigError: the file is neither, or holds something other than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch, zipfile, pickle and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: not a file of tensors ({reason})") from None
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ConfigError(f"{path}: holds no state dict")
    return tensors


def load_named(network: nn.Module, path: Path, ignored: tuple[str, ...] = ()) -> None:
    """Load a user's state dict by its tensors' names, those that begin with `ignored` left out.

    Raises:
        ConfigError: it belongs to another network; one line with the first name or shape that does not fit.
    """
    tensors = {name.removeprefix("module."): value for name, value in read_tensors(path).items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(ignored)}
    wanted = network.state_dict()
    misfits = [f"{name} is missing" for name in wanted if name not in tensors]
    misfits += [f"{name} is not part of it" for name in tensors if name not in wanted]
    misfits += [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if misfits:
        raise ConfigError(f"{path}: not the weights of {type(network).__name__}: {misfits[0]}")
    network.load_state_dict(tensors)
