"""Class conditions of generators: given by name or number, or dropped."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError
from imtok.generators.base import drop_conditions


class ClassEmbedding(nn.Embedding):
    """A learned vector for each class, and a last one for the unconditional case.

    Args:
        num_classes: number of classes.
        names: class names, as in the dataset's labels; empty before training.
        dim: dimension of the vectors.
        dropout: share of classes that are dropped in training, for classifier-free guidance.
    """

    def __init__(self, num_classes: int, names: Sequence[str], dim: int, dropout: float) -> None:
        super().__init__(num_classes + 1, dim)
        self.num_classes, self.names, self.dropout = num_classes, tuple(names), dropout
        nn.init.normal_(self.weight, std=0.02)

    def read(self, classes: Sequence[str | None]) -> Float[Tensor, "batch dim"]:
        """Embed each class; in training some are dropped.

        Raises:
            ConfigError: a class is unknown.
        """
        if self.training:
            classes = drop_conditions(classes, self.dropout)
        rows = torch.tensor([self.index(name) for name in classes])
        return self(rows.to(self.weight.device))

    def index(self, name: str | None) -> int:
        """Return the index of a class given by name, or by number if no class name is a number; None: no class.

        Raises:
            ConfigError: the class is unknown.
        """
        if name is None:
            return self.num_classes
        if name in self.names:
            return self.names.index(name)
        if name in map(str, range(self.num_classes)) and not any(label.isdecimal() for label in self.names):
            return int(name)
        known = f": {', '.join(self.names[:20])}" if self.names else ""
        raise ConfigError(f"no class is called {name!r}; there are {self.num_classes}{known}")

    def name(self, given: str | None) -> str | None:
        """Return a class's name in the dataset; None, and the number of an unnamed class, are returned unchanged.

        Raises:
            ConfigError: the class is unknown.
        """
        index = self.index(given)
        return self.names[index] if given is not None and self.names else given
