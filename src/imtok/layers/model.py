"""Base class of trainable networks: weights that can be saved, checked and loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imtok.checkpoints import check_fit


class Model(nn.Module):
    """A network whose weights are stored in a run folder."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the weights in place; buffers, such as the cosines and sines of rotary positions, keep their dtype."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors that inference needs: the state dict without running statistics (`*.statistics.*`)."""
        return {name: tensor for name, tensor in self.state_dict().items() if ".statistics." not in name}

    def load_weights(self, tensors: Mapping[str, Tensor], where: str = "weights") -> None:
        """Load tensors that `weights` returned; running statistics are reset.

        Args:
            tensors: tensors of any floating dtype, which are cast to the module's.
            where: prefix of the error message.

        Raises:
            ConfigError: tensors are missing or unexpected, or their shapes differ; the message is one line.
        """
        check_fit(tensors, self.weights(), f"{where}: these weights do not fit")
        self.load_state_dict(dict(tensors))

    def stages(self) -> list[nn.Module]:
        """Return the large submodules that run in sequence, such as a transformer's blocks."""
        return []

    def muon_parameters(self) -> list[Tensor]:
        """Return the matrices in the stages: weights of linear layers, whichever class implements them."""
        return [weights for stage in self.stages() for weights in stage.parameters() if weights.ndim == 2]

    def compile_parts(self) -> None:
        """Compile the submodules that benefit from it (torch.compile), in place; by default none."""

    def set_grad_checkpointing(self, on: bool) -> None:
        """Set whether activations are recomputed in the backward pass: less memory, about a third more time."""
        for part in self.modules():
            if isinstance(part, CheckpointedSequential):
                part.checkpointing = on


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and restore its previous mode on exit."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class CheckpointedSequential(nn.Sequential):
    """Modules in sequence, whose activations can be recomputed in the backward pass; each also receives `others`."""

    checkpointing = False

    def forward(self, input: Tensor, *others: Any) -> Tensor:
        recompute = self.checkpointing and torch.is_grad_enabled()
        for part in self:
            input = checkpoint(part, input, *others, use_reentrant=False) if recompute else part(input, *others)
        return input
