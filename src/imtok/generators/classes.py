"""Classes as generators know them: by name, by number, or withheld."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError
from imtok.generators.base import drop_conditions


class ClassEmbedding(nn.Embedding):
    """A learned vector for each class, and a last one for no class.

    Args:
        num_classes: how many there are.
        names: as labels in the data; empty before training.
        dim: of the vectors.
        dropout: share of classes that are withheld in training, for guidance.
    """

    def __init__(self, num_classes: int, names: Sequence[str], dim: int, dropout: float) -> None:
        super().__init__(num_classes + 1, dim)
        self.num_classes, self.names, self.dropout = num_classes, tuple(names), dropout
        nn.init.normal_(self.weight, std=0.02)

    def read(self, classes: Sequence[str | None]) -> Float[Tensor, "batch dim"]:
        """A vector for each class; in training some are withheld.

        Raises:
            ConfigError: an unknown class.
        """
        if self.training:
            classes = drop_conditions(classes, self.dropout)
        rows = torch.tensor([self.index(name) for name in classes])
        return self(rows.to(self.weight.device))

    def index(self, name: str | None) -> int:
        """A class by its name, or by its place where no name is a number; None: no class.

        Raises:
            ConfigError: there is none of this name.
        """
        if name is None:
            return self.num_classes
        if name in self.names:
            return self.names.index(name)
        if name in map(str, range(self.num_classes)) and not any(one.isdecimal() for one in self.names):
            return int(name)
        known = f": {', '.join(self.names[:20])}" if self.names else ""
        raise ConfigError(f"no class is called {name!r}; there are {self.num_classes}{known}")

    def name(self, given: str | None) -> str | None:
        """A class by the name that it has in the data.

        Raises:
            ConfigError: there is none of this name.
        """
        index = self.index(given)
        return self.names[index] if given is not None and self.names else given
