"""Base classes of frozen third-party networks, and helpers for loading them."""

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
    """A third-party network that stays in eval mode, even if `train` is called on it or on a parent module.

    After `freeze` its weights have no gradients; gradients still flow through it to its input. The registry sets `name`
    and `sha256`.

    Attributes:
        name: role/name in the registry, such as `text_features/ppocrv6`.
        sha256: digest of the weight file, or of the list of digests of several files; reported with every result.
        input_size: required height and width of the input; None: any size.
    """

    name: str = ""
    sha256: str = ""
    input_size: tuple[int, int] | None = None

    def train(self, mode: bool = True) -> "FrozenNetwork":
        return super().train(False)

    def freeze(self) -> "FrozenNetwork":
        return self.requires_grad_(False).eval()


class FeatureNetwork(FrozenNetwork, ABC):
    """A frozen network that returns feature maps, for perceptual losses."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return feature maps from shallow to deep.

        Args:
            images: RGB images in [-1, 1], of size `input_size` if that is set.

        Returns:
            One map (batch, channels, rows, columns) per layer; a sequence is a map with one row.
        """

    def channel_weights(self) -> Sequence[Float[Tensor, " channels"]] | None:
        """Return the weight of each channel of each map in a perceptual distance; None: equal weights."""
        return None


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of a batch of pictures for metrics of whole sets, such as the Fréchet distance.

    Attributes:
        pooled: one pooled feature vector per picture.
        spatial: a few channels of an intermediate feature map, flattened to one vector per picture.
        logits: class logits.
    """

    pooled: Float[Tensor, "batch dim"]
    spatial: Float[Tensor, "batch spatial_dim"]
    logits: Float[Tensor, "batch classes"]


class FeatureExtractor(FrozenNetwork, ABC):
    """A frozen classifier whose features are used to compare sets of pictures."""

    @abstractmethod
    def extract_features(self, images: Float[Tensor, "batch 3 height width"]) -> ExtractedFeatures:
        """Return features and logits of RGB pictures in [-1, 1] of at least 16 pixels a side."""


Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norms(network: Network) -> Network:
    """Fold batch norms that follow a convolution in an `nn.Sequential` into the convolution; for eval mode only."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (before, after) in enumerate(pairwise(sequence)):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                sequence[index] = fuse_conv_bn_eval(before.eval(), after.eval())
                sequence[index + 1] = nn.Identity()
    return network


def load_named(network: nn.Module, path: Path, ignored: tuple[str, ...] = (), prefix: str = "") -> None:
    """Load a user-supplied state dict into a network by tensor names.

    Args:
        network: network whose weights are set.
        path: file with the state dict; a `module.` prefix of its names is removed.
        ignored: prefixes of the names of tensors to leave out.
        prefix: prefix of all names in the file that the network's own names lack.

    Raises:
        ConfigError: the state dict belongs to another network; the one-line message names the first mismatch.
    """
    tensors = {name.removeprefix("module."): value for name, value in load_tensors(path).items()}
    tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if not name.startswith(ignored)}
    check_fit(tensors, network.state_dict(), f"{path}: not the weights of {type(network).__name__}")
    network.load_state_dict(tensors)
