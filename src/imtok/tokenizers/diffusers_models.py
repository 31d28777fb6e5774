"""Image autoencoders of the diffusers library, from a local folder; no code in it is run, nothing is downloaded."""

import re
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from imtok.checkpoints import check_fit, load_tensors
from imtok.config import ConfigError, config, first_line, read_json
from imtok.tokenizers.base import Tokenizer, grid_from_tokens
from imtok.tokenizers.continuous import Continuous, ContinuousConfig
from imtok.tokenizers.text import Text
from imtok.tokenizers.vq import VectorQuantizer, VQConfig

CLASSES = ("VQModel", "AutoencoderKL", "AutoencoderDC")
WEIGHTS = "diffusion_pytorch_model.safetensors"
_PARTS = ("vae", "vqvae", "movq")
"""Subfolders of a pipeline that may hold its autoencoder."""
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Current names of attention layers, by their names in files saved by old versions of diffusers."""


@config
class DiffusersConfig:
    """The settings of such a model that imtok uses; the model itself is built from its own config.json."""

    kind: Literal["diffusers"] = "diffusers"
    model: str
    """Name of the diffusers class."""
    downsample_factor: int
    """Pixels per token side."""
    quantizer: VQConfig | ContinuousConfig
    """Config of the bottleneck; the codes of a VQModel are not normalized."""


class DiffusersTokenizer(Tokenizer):
    """A `VQModel`, `AutoencoderKL` or `AutoencoderDC` in fp32.

    Latents are the output of the model's own `encode`: for a VQModel with each vector replaced by its nearest code,
    for an AutoencoderKL the mean of the Gaussian, for an AutoencoderDC unchanged. They are not scaled: `scaling_factor`
    and `shift_factor` in config.json are meant for the diffusion models trained on the latents, whose input is
    (latents - shift_factor) * scaling_factor.
    """

    tokens_on_grid = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        name = type(model).__name__
        if name == "VQModel":
            size, dim = model.quantize.embedding.weight.shape
            bottleneck = VQConfig(codebook_size=size, codebook_dim=dim, normalize=False)
            self.quantizer = VectorQuantizer(bottleneck)
            self.quantizer.codebook = model.quantize.embedding.weight  # the same parameter under two names
        else:
            bottleneck = ContinuousConfig(codebook_dim=model.config.latent_channels)
            self.quantizer = Continuous(bottleneck)
        dc = name == "AutoencoderDC"
        levels = model.config.encoder_block_out_channels if dc else model.config.block_out_channels
        self.config = DiffusersConfig(model=name, downsample_factor=2 ** (len(levels) - 1), quantizer=bottleneck)

    def encode_unquantized(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        (encoded,) = self.model.encode(images, return_dict=False)
        grid = encoded.mode() if self.config.model == "AutoencoderKL" else encoded
        return grid.flatten(2).transpose(1, 2)

    def decode(
        self,
        latents: Float[Tensor, "batch tokens channels"],
        text: Text | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        grid = latents.transpose(1, 2).unflatten(2, grid_from_tokens(latents.shape[1], grid_size))
        if self.config.model != "VQModel":
            return self.model.decode(grid).sample
        # VQModel.decode would search for the nearest codes again
        codes = grid if self.model.config.norm_type == "spatial" else None
        return self.model.decoder(self.model.post_quant_conv(grid), codes)


def find_model(folder: Path) -> Path | None:
    """Return the folder of a diffusers model: the given folder, a pipeline's subfolder, or None."""
    for place in [folder, *(folder / part for part in _PARTS)]:
        if (place / "config.json").is_file():
            return place if "_class_name" in read_json(place / "config.json") else None
    return None


def load_model(folder: Path) -> DiffusersTokenizer:
    """Load the tokenizer in a model's folder.

    Args:
        folder: folder with config.json and diffusion_pytorch_model.safetensors, as written by `save_pretrained`.

    Raises:
        ConfigError: the class is not supported, the weights are missing, pickled or do not fit the config, input or
            output do not have 3 channels, or diffusers is not installed; one line.
    """
    settings = read_json(folder / "config.json")
    name = settings["_class_name"]
    if name not in CLASSES:
        raise ConfigError(f"{folder}: is a {name} of diffusers; imtok reads {', '.join(CLASSES)}")
    file = folder / WEIGHTS
    if not file.is_file():
        raise ConfigError(f"{folder}: {_describe_missing_weights(folder, name)}")
    model = build_untrained(folder, name, settings)
    channels = model.config.in_channels, model.config.get("out_channels", model.config.in_channels)
    if channels != (3, 3):
        raise ConfigError(f"{folder}: goes from {channels[0]} channels to {channels[1]}, and pictures have 3")
    tensors = {_new_name(key): tensor for key, tensor in load_tensors(file).items()}
    check_fit(tensors, model.state_dict(), f"{file}: these weights do not fit its config.json")
    model.load_state_dict(tensors)
    return DiffusersTokenizer(model)


def _describe_missing_weights(folder: Path, name: str) -> str:
    pickled = next(folder.glob("*.bin"), None)
    if pickled is None:
        return f"has no {WEIGHTS}; save_pretrained of diffusers writes one"
    return (
        f"its weights are pickled ({pickled.name}), and untrusted code is never run; if you trust them: "
        f"diffusers.{name}.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)"
    )


def build_untrained(folder: Path, name: str, settings: dict[str, Any]) -> Any:
    """Build a model of a diffusers class from its config, with untrained weights.

    Raises:
        ConfigError: diffusers is not installed or has no such class, or the settings are invalid; one line.
    """
    try:
        import diffusers

        model_class = getattr(diffusers, name)
    except (ImportError, AttributeError):
        raise ConfigError(f"{folder}: to open it, `pip install 'diffusers>=0.35'` (the extra imtok[peers])") from None
    try:
        return model_class.from_config(settings)
    except Exception as error:  # the class may raise anything on invalid settings
        reason = first_line(error)
        raise ConfigError(f"{folder / 'config.json'}: describes no {name} ({reason})") from None


def _new_name(name: str) -> str:
    old = re.fullmatch(r"(.+\.attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{old[1]}{_OLD_NAMES[old[2]]}{old[3]}" if old else name
