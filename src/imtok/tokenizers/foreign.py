"""Tokenizer checkpoints of other projects, converted to imtok's classes.

Names are mapped, and sizes are inferred from the tensors' shapes. The readers are pure functions from tensors to a
config and renamed tensors; a checkpoint that does not fit is rejected with a one-line error.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from imtok.config import ConfigError
from imtok.tokenizers.ema_vq import EMAVQConfig
from imtok.tokenizers.factorized import FactorizedVQConfig
from imtok.tokenizers.vqgan import AdapterConfig, VQGANConfig

Tensors = Mapping[str, Tensor]

_TRAINING_ONLY = re.compile(
    r"loss\.|discriminator\."  # the loss networks of a Lightning checkpoint
    r"|model_ema\."  # a second, averaged copy of all weights
    r"|quantize\w*\.(embedding\.)?(codebook_used|cluster_size|embed_avg)$"  # statistics of a codebook
)
"""Names of tensors that are not part of the tokenizer."""
_WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")
"""Prefixes that DistributedDataParallel and torch.compile add to a name."""


def convert(tensors: Tensors, where: str) -> tuple[VQGANConfig, dict[str, Tensor]]:
    """Recognize a checkpoint of the VQGAN family and convert it.

    Supported: InsightTok's release and LlamaGen (checked against outputs of the original classes); FQGAN with any
    number of codebooks (checked against the full lists of its tensors; no outputs were available); taming-transformers'
    VQGAN (tested on a synthetic state dict only).

    Args:
        tensors: the state dict as stored in the file.
        where: name of the file, for error messages.

    Returns:
        The config and the weights for `VQGAN.load_weights`.

    Raises:
        ConfigError: not a complete checkpoint of a supported kind.
    """
    try:
        return _convert(tensors)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except KeyError as error:
        raise ConfigError(f"{where}: incomplete, it lacks {error.args[0]} (by imtok's name)") from None
    except (IndexError, RuntimeError, ZeroDivisionError):
        raise ConfigError(f"{where}: its tensors have shapes that are no tokenizer's") from None


def _convert(tensors: Tensors) -> tuple[VQGANConfig, dict[str, Tensor]]:
    tensors = {_WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in tensors.items() if not _TRAINING_ONLY.match(name)}
    branches = [match[1] for name in kept if (match := re.fullmatch(r"quantize_(\w+)\.embedding\.weight", name))]
    if branches:
        return _fqgan(kept, branches)
    if "quantize.embedding.weight" not in kept:
        raise ConfigError(
            "not a tokenizer checkpoint that imtok knows (no quantize.embedding.weight); "
            "it reads imtok run folders, InsightTok, LlamaGen, FQGAN, taming VQGAN and folders of diffusers"
        )
    if "encoder.conv_blocks.0.res.0.conv1.weight" in kept:
        return _one_codebook(kept, _llamagen_name, normalize=True)
    if "encoder.down.0.block.0.conv1.weight" in kept:
        # InsightTok and taming's VQGAN have the same names; only InsightTok has EMA statistics and normalized codes
        if "quantize.embed_avg" not in tensors and any(name.startswith("model_ema.") for name in tensors):
            raise ConfigError(
                "averaged weights (model_ema) beside taming's names: IBQ's checkpoints are like that, whose codes are "
                "those of the largest dot product, which imtok does not read"
            )
        return _one_codebook(kept, _taming_name, normalize="quantize.embed_avg" in tensors)
    raise ConfigError("an encoder of unknown layout (neither encoder.down.* nor encoder.conv_blocks.*)")


def _one_codebook(
    tensors: Tensors, rename: Callable[[str, int], str | None], normalize: bool
) -> tuple[VQGANConfig, dict[str, Tensor]]:
    weights = _renamed(tensors, rename)
    if normalize:
        weights["quantizer.codebook"] = torch.nn.functional.normalize(weights["quantizer.codebook"], dim=-1)
    shape = weights["quantizer.codebook"].shape
    quantizer = EMAVQConfig(codebook_size=shape[0], codebook_dim=shape[1], normalize=normalize)
    return _config_of(weights, quantizer), weights


def _fqgan(tensors: Tensors, branches: list[str]) -> tuple[VQGANConfig, dict[str, Tensor]]:
    """Convert FQGAN: LlamaGen's encoder and decoder, with an adapter, a head and a codebook for each branch in between.

    Settings that names and shapes do not determine are those of the authors' release: 8 heads, GELU, vectors on the
    unit sphere, visual branch first. Unverified, as no outputs of it were available: position embeddings are added
    before `ln_pre`, GELU is exact, and LayerNorm's epsilon is 1e-5.
    """
    order = sorted(branches, key=_branch_sort_key)
    weights = _renamed(tensors, lambda name, levels: _fqgan_name(name, levels, order))
    codebooks = [weights[f"quantizer.branches.{index}.codebook"].shape for index in range(len(order))]
    quantizer = FactorizedVQConfig(codebook_sizes=tuple(shape[0] for shape in codebooks), sub_dim=codebooks[0][1])
    first = "encoder.branches.0.adapter"
    mlp = weights[f"{first}.blocks.0.mlp.0.weight"].shape
    adapter = AdapterConfig(
        depth=_count(weights, rf"{first}\.blocks\.(\d+)\."),
        num_heads=_FQGAN_HEADS,
        mlp_ratio=mlp[0] / mlp[1],
        grid_size=math.isqrt(weights[f"{first}.positions.table"].shape[0]),
    )
    return _config_of(weights, quantizer, adapter), weights


def _branch_sort_key(branch: str) -> tuple[int, int]:
    """Sort key of an FQGAN branch by its channels; branches beyond those of the authors must be numbered (`sem_N`)."""
    if branch in _FQGAN_ORDER:
        return _FQGAN_ORDER.index(branch), 0
    if number := re.fullmatch(r"sem_(\d+)", branch):
        return len(_FQGAN_ORDER), int(number[1])
    raise ConfigError(f"imtok does not know where the channels of quantize_{branch} stand among the others")


def _renamed(tensors: Tensors, rename: Callable[[str, int], str | None]) -> dict[str, Tensor]:
    levels = _count(tensors, r"encoder\.(?:down|conv_blocks)\.(\d+)\.")
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = rename(name, levels)
        if ours is None:
            raise ConfigError(f"{name} has no place in imtok's VQGAN")
        weights[ours] = tensor.float()
    return _join_attention(weights)


def _config_of(
    weights: Tensors, quantizer: EMAVQConfig | FactorizedVQConfig, adapter: AdapterConfig | None = None
) -> VQGANConfig:
    """Infer the remaining sizes from the tensors' shapes."""
    channels = weights["encoder.conv_in.weight"].shape[0]
    levels = _count(weights, r"encoder\.level_(\d+)\.")
    widths = [weights[f"encoder.level_{i}.blocks.0.conv1.weight"].shape[0] for i in range(levels)]
    if any(width % channels for width in widths):
        raise ConfigError(f"level widths {widths} are not multiples of the base width {channels}")
    return VQGANConfig(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        residual_blocks=_count(weights, r"encoder\.level_0\.blocks\.(\d+)\."),
        attention="encoder.middle.1.qkv.weight" in weights,
        latent_channels=weights["decoder.conv_in.weight"].shape[1],
        quantizer=quantizer,
        adapter=adapter,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """Count the distinct values of the pattern's group among the names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


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
    if name == "quantize.embedding.weight":
        return "quantizer.codebook"
    return f"{_ENDS[stem]}.{kind}" if stem in _ENDS else None


def _taming_name(name: str, levels: int) -> str | None:
    """Map a name of taming-transformers and InsightTok: down.i.block.j, up.i.block.j, mid.block_1."""
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
    """Map a name of LlamaGen: conv_blocks.i.res.j, mid.0 to mid.2; decoder levels start at the lowest resolution."""
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


_FQGAN_ORDER = ("vis", "sem", "sem_mid", "sem_high")
_FQGAN_HEADS = 8
_ADAPTER = {
    "positional_embedding": "positions.table",
    "ln_pre.": "norm_in.",
    "ln_post.": "norm_out.",
    "transformer.": "blocks.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attention.qkv.",
    "attn.out_proj.": "attention.out.",
    "mlp.c_fc.": "mlp.0.",
    "mlp.c_proj.": "mlp.2.",
}
_BRANCH = {
    "encoder.norm_out": "norm_out.norm",
    "encoder.conv_out": "conv_out",
    "quant_conv": "to_latents",
}


def _fqgan_name(name: str, levels: int, order: list[str]) -> str | None:
    """Map a name of FQGAN: LlamaGen's; adapters visual_head, semantic_head_x; norm_out_x, quant_conv_x, quantize_x."""
    if match := re.fullmatch(r"encoder\.(visual|semantic)_head(\w*)\.0\.(.+)", name):
        branch, rest = match[1][:3] + match[2], match[3]
        for theirs, ours in _ADAPTER.items():
            rest = rest.replace(theirs, ours)
        return f"encoder.branches.{order.index(branch)}.adapter.{rest}" if branch in order else None
    if match := re.fullmatch(r"(encoder\.norm_out|encoder\.conv_out|quant_conv|quantize)_(\w+)\.(.+)", name):
        stem, branch, rest = match.groups()
        if branch not in order:
            return None
        if stem == "quantize":
            return f"quantizer.branches.{order.index(branch)}.codebook" if rest == "embedding.weight" else None
        return f"encoder.branches.{order.index(branch)}.{_BRANCH[stem]}.{rest}"
    return _llamagen_name(name, levels)


def _list_of(kind: str) -> str:
    return "attention" if kind == "attn" else "blocks"


def _inner(rest: str) -> str:
    return rest.replace("nin_shortcut", "shortcut").replace("proj_out", "out")


def _join_attention(weights: Tensors) -> dict[str, Tensor]:
    """Concatenate the 1x1 convolutions q, k and v into one."""
    joined = {name: tensor for name, tensor in weights.items() if not re.search(r"\.[qkv]\.(weight|bias)$", name)}
    for name in weights:
        if match := re.fullmatch(r"(.+)\.q\.(weight|bias)", name):
            parts = [weights[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            joined[f"{match[1]}.qkv.{match[2]}"] = torch.cat(parts)
    return joined
