"""Other projects' tokenizer checkpoints, read into our classes: names are mapped, sizes are read off the shapes.

Every reader is pure: tensors in, a config and renamed tensors out; whatever does not fit is refused by one line.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from imtok.config import ConfigError
from imtok.tokenizers.ema_vq import EMAVQConfig
from imtok.tokenizers.vqgan import VQGANConfig

Tensors = Mapping[str, Tensor]


def convert(tensors: Tensors, where: str) -> tuple[VQGANConfig, dict[str, Tensor]]:
    """Recognize a VQGAN-family checkpoint and bring it into our form.

    Known: InsightTok's release and LlamaGen (checked against outputs of the original classes), taming-transformers'
    VQGAN (unverified: tested on a synthetic state dict only).

    Args:
        tensors: the state dict as it lies in the file.
        where: the file, for the error.

    Returns:
        The config and the weights for `VQGAN.load_weights`.

    Raises:
        ConfigError: not a checkpoint of a known kind.
    """
    # The loss networks of a Lightning checkpoint, and counters of code usage, are no part of the tokenizer.
    dropped = ("loss.", "quantize.codebook_used", "quantize.cluster_size", "quantize.embed_avg")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    if "quantize.embedding.weight" not in kept:
        raise ConfigError(
            f"{where}: not a tokenizer checkpoint that imtok knows (no quantize.embedding.weight); "
            "it reads imtok run folders, InsightTok, LlamaGen and taming VQGAN"
        )
    try:
        if "encoder.conv_blocks.0.res.0.conv1.weight" in kept:
            return _read(kept, _llamagen_name, normalize=True, where=where)
        if "encoder.down.0.block.0.conv1.weight" in kept:
            # taming's VQGAN has the same names, but neither EMA statistics nor normalized codes
            return _read(kept, _taming_name, normalize="quantize.embed_avg" in tensors, where=where)
    except KeyError as error:
        raise ConfigError(f"{where}: incomplete, it lacks {error.args[0]} (by imtok's name)") from None
    raise ConfigError(f"{where}: an encoder of unknown layout (neither encoder.down.* nor encoder.conv_blocks.*)")


def _read(
    tensors: Tensors, rename: Callable[[str, int], str | None], normalize: bool, where: str
) -> tuple[VQGANConfig, dict[str, Tensor]]:
    levels = 1 + max(
        int(match[1]) for name in tensors if (match := re.match(r"encoder\.(?:down|conv_blocks)\.(\d+)\.", name))
    )
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = rename(name, levels)
        if ours is None:
            raise ConfigError(f"{where}: {name} has no place in imtok's VQGAN")
        weights[ours] = tensor.float()
    weights = _join_attention(weights)
    if normalize:
        weights["quantizer.codebook"] = torch.nn.functional.normalize(weights["quantizer.codebook"], dim=-1)
    return _config_of(weights, levels, normalize, where), weights


def _config_of(weights: Tensors, levels: int, normalize: bool, where: str) -> VQGANConfig:
    """Read the sizes off the shapes."""
    channels = weights["encoder.conv_in.weight"].shape[0]
    widths = [weights[f"encoder.level_{i}.blocks.0.conv1.weight"].shape[0] for i in range(levels)]
    if any(width % channels for width in widths):
        raise ConfigError(f"{where}: level widths {widths} are not multiples of the base width {channels}")
    blocks = {int(m[1]) for name in weights if (m := re.match(r"encoder\.level_0\.blocks\.(\d+)\.", name))}
    codebook = weights["quantizer.codebook"]
    return VQGANConfig(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        residual_blocks=len(blocks),
        attention="encoder.middle.1.qkv.weight" in weights,
        latent_channels=weights["encoder.conv_out.weight"].shape[0],
        quantizer=EMAVQConfig(codebook_size=codebook.shape[0], codebook_dim=codebook.shape[1], normalize=normalize),
    )


_ENDS = {
    "quant_conv": "encoder.to_latents",
    "post_quant_conv": "decoder.from_latents",
    "encoder.conv_in": "encoder.conv_in",
    "encoder.norm_out": "encoder.norm_out.norm",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.norm_out": "decoder.norm_out.norm",
    "decoder.conv_out": "decoder.conv_out",
}


def _end_name(name: str) -> str | None:
    stem, _, kind = name.rpartition(".")
    if stem == "quantize.embedding":
        return "quantizer.codebook"
    return f"{_ENDS[stem]}.{kind}" if stem in _ENDS else None


def _taming_name(name: str, levels: int) -> str | None:
    """taming-transformers and InsightTok: down.i.block.j, up.i.block.j, mid.block_1."""
    if match := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)", name):
        side, level, kind, index, rest = match.groups()
        return f"{side}.level_{level}.{_list_of(kind)}.{index}.{_inner(rest)}"
    if match := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:down|up)sample\.(.+)", name):
        return f"{match[1]}.level_{match[2]}.resample.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.+)", name):
        place = ("block_1", "attn_1", "block_2").index(match[2])
        return f"{match[1]}.middle.{place}.{_inner(match[3])}"
    return _end_name(name)


def _llamagen_name(name: str, levels: int) -> str | None:
    """LlamaGen: conv_blocks.i.res.j, the decoder's levels counted from the lowest resolution up, mid.0 to mid.2."""
    if match := re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(.+)", name):
        side, level, rest = match[1], int(match[2]), match[3]
        level = level if side == "encoder" else levels - 1 - level
        if inner := re.fullmatch(r"(res|attn)\.(\d+)\.(.+)", rest):
            return f"{side}.level_{level}.{_list_of(inner[1])}.{inner[2]}.{_inner(inner[3])}"
        if inner := re.fullmatch(r"(?:down|up)sample\.(.+)", rest):
            return f"{side}.level_{level}.resample.{inner[1]}"
        return None
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(\d)\.(.+)", name):
        return f"{match[1]}.middle.{match[2]}.{_inner(match[3])}"
    return _end_name(name)


def _list_of(kind: str) -> str:
    return "attention" if kind == "attn" else "blocks"


def _inner(rest: str) -> str:
    return rest.replace("nin_shortcut", "shortcut").replace("proj_out", "out")


def _join_attention(weights: Tensors) -> dict[str, Tensor]:
    """Three 1x1 convolutions q, k, v become one."""
    joined = {name: tensor for name, tensor in weights.items() if not re.search(r"\.[qkv]\.(weight|bias)$", name)}
    for name in weights:
        if match := re.fullmatch(r"(.+)\.q\.(weight|bias)", name):
            parts = [weights[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            joined[f"{match[1]}.qkv.{match[2]}"] = torch.cat(parts)
    return joined
