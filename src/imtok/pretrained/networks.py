"""What every frozen network has in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imtok.checkpoints import check_fit, load_tensors


class FrozenNetwork(nn.Module):
    """A third-party network: eval mode and without weight gradients, whatever the module around it does.

    Gradients still flow through it to its input. The registry fills in `name` and `sha256`.

    Attributes:
        name: role/name in the registry, such as `text_features/ppocrv6`.
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


class FeatureNetwork(FrozenNetwork, ABC):
    """A frozen network that answers with feature maps: what a perceptual loss is made of."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Feature maps from shallow to deep.

        Args:
            images: RGB in [-1, 1], of `input_size` if that is set.

        Returns:
            One map (batch, channels, rows, columns) per layer; a sequence comes as one row.
        """

    def channel_weights(self) -> Sequence[Float[Tensor, " channels"]] | None:
        """How much each channel of each map counts in a perceptual distance; None where all count alike."""
        return None


@dataclass(frozen=True)
class ExtractedFeatures:
    """What metrics of whole sets want to know of pictures.

    Attributes:
        pooled: one vector a picture.
        spatial: a few channels of a map half way, row by row in one vector.
        logits: of the classes.
    """

    pooled: Float[Tensor, "batch dim"]
    spatial: Float[Tensor, "batch spatial_dim"]
    logits: Float[Tensor, "batch classes"]


class FeatureExtractor(FrozenNetwork, ABC):
    """A frozen classifier through whose eyes sets of pictures are compared."""

    @abstractmethod
    def extract_features(self, images: Float[Tensor, "batch 3 height width"]) -> ExtractedFeatures:
        """Features and logits of RGB pictures in [-1, 1], of any size from 16 pixels up."""


Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norms(network: Network) -> Network:
    """Fold every batch norm that follows a convolution in an `nn.Sequential` into it; for eval mode only."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (before, after) in enumerate(pairwise(sequence)):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                sequence[index] = fuse_conv_bn_eval(before.eval(), after.eval())
                sequence[index + 1] = nn.Identity()
    return network


def load_named(network: nn.Module, path: Path, ignored: tuple[str, ...] = (), prefix: str = "") -> None:
    """Load a user's state dict by its tensors' names, those that begin with `ignored` left out.

    Args:
        network: takes them.
        path: the file.
        ignored: what the network does not need.
        prefix: that all names have in the file and none in the network.

    Raises:
        ConfigError: it belongs to another network; one line with the first name or shape that does not fit.
    """
    tensors = {name.removeprefix("module."): value for name, value in load_tensors(path).items()}
    tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if not name.startswith(ignored)}
    check_fit(tensors, network.state_dict(), f"{path}: not the weights of {type(network).__name__}")
    network.load_state_dict(tensors)
