"""What every trainable network is, whatever it computes: weights that can be saved, loaded and refused."""

from collections.abc import Mapping

from torch import Tensor, nn

from imtok.config import ConfigError


class Model(nn.Module):
    """A network that a run folder holds."""

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
        own = self.weights()
        missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or unexpected:
            raise ConfigError(
                f"{where}: these weights do not fit: {len(missing)} tensors are missing"
                f"{f' (first: {missing[0]})' if missing else ''}, {len(unexpected)} are unexpected"
                f"{f' (first: {unexpected[0]})' if unexpected else ''}"
            )
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise ConfigError(f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
        self.load_state_dict(dict(tensors))

    def compile_parts(self) -> None:
        """Compile what is worth compiling (torch.compile), in place; by default nothing."""

    def checkpoint_activations(self, on: bool) -> None:
        """Recompute activations in the backward pass, to save memory; by default there is nothing to recompute."""
