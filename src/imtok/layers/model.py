"""What every trainable network is, whatever it computes: weights that can be saved, loaded and refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imtok.checkpoints import check_fit


class Model(nn.Module):
    """A network that a run folder holds."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Round its weights, in place; buffers, such as the speeds of rotary positions, stay exact."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that inference needs: the state without running statistics (`*.statistics.*`)."""
        return {name: tensor for name, tensor in self.state_dict().items() if ".statistics." not in name}

    def load_weights(self, tensors: Mapping[str, Tensor], where: str = "weights") -> None:
        """Load what `weights` gave; running statistics start anew.

        Args:
            tensors: any floating dtype; cast to the module's own.
            where: named in the error.

        Raises:
            ConfigError: missing or unexpected tensors, or other shapes; one line.
        """
        check_fit(tensors, self.weights(), f"{where}: these weights do not fit")
        self.load_state_dict(dict(tensors))

    def stages(self) -> list[nn.Module]:
        """Its large parts that compute one after the other: a transformer's blocks."""
        return []

    def muon_parameters(self) -> list[Tensor]:
        """The matrices inside its stages: the weights of linear layers, whatever class a library has for them."""
        return [weights for stage in self.stages() for weights in stage.parameters() if weights.ndim == 2]

    def compile_parts(self) -> None:
        """Compile what is worth compiling (torch.compile), in place; by default nothing."""

    def set_grad_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        for part in self.modules():
            if isinstance(part, CheckpointedSequential):
                part.checkpointing = on


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A model looks at pictures as it will after training, and then goes on as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class CheckpointedSequential(nn.Sequential):
    """Parts one after the other, whose activations can be recomputed in the backward pass; all hear `others` too."""

    checkpointing = False

    def forward(self, input: Tensor, *others: Any) -> Tensor:
        recompute = self.checkpointing and torch.is_grad_enabled()
        for part in self:
            input = checkpoint(part, input, *others, use_reentrant=False) if recompute else part(input, *others)
        return input
