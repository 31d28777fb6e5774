"""Checks of a run before its first step, so that errors are not found only after days of training."""

import logging
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.sample import Dataset
from imtok.evaluation.sets import MIN_SIDE
from imtok.layers.model import Model
from imtok.losses.discriminators import PatchDiscriminatorConfig, StyleDiscriminatorConfig
from imtok.losses.representation import RepresentationTarget
from imtok.pretrained import FeatureNetwork, FrozenNetwork
from imtok.training.run import LossConfig, Phase, RunConfig

_logger = logging.getLogger(__name__)

_WHY_ABSENT = {
    "entropy": "only a codebook that the gradient trains has an entropy loss",
    "kl": "only a continuous bottleneck with `kl` has that loss",
    "disentangle": "only a factorized quantizer of two codebooks or more can be disentangled",
    "representation": "losses.representation.targets is empty",
}
"""Losses on the codes that not every tokenizer has, each with the reason why it may be absent."""
OF_CODES = tuple(_WHY_ABSENT)
_RECONSTRUCTION_LOSSES = frozenset({"l1", "l2", "perceptual", "text", "face", "ocr", "adversarial"})
"""Losses on the reconstruction, which train every part."""
_REGION_LOSSES = {"words": "text", "faces": "face"}
"""Losses on regions of a picture, by the kind of region."""


def is_weighted(term: str, settings: LossConfig, phases: Sequence[Phase]) -> bool:
    """Return whether a loss term has a positive weight in any phase."""
    return any(weights_of(settings, phase)[term] for phase in phases)


def weights_of(settings: LossConfig, phase: Phase) -> dict[str, float]:
    """Return the weight of each loss term in a phase."""
    return {**settings.weights(), **phase.weights}


def parts_of(model: Model) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield the parts of a model that a phase can name: its child modules, and parameters outside of these."""
    yield from model.named_children()
    yield from model.named_parameters(recurse=False)


def check_parts(model: Model, phases: Sequence[Phase]) -> None:
    """Check that the parts trained by each phase exist in the model and have parameters.

    Raises:
        ConfigError: a part does not exist, or a phase has no parameters to train.
    """
    names = [name for name, _ in parts_of(model)]
    for phase in phases:
        if unknown := [name for name in phase.trains if name not in (*names, "all")]:
            raise ConfigError(
                f"phase {phase.name}: trains {unknown[0]!r}, which is no part of this model; there are "
                f"{', '.join(names)}, all"
            )
        parts = (part for name, part in parts_of(model) if phase.trains_part(name))
        if not any(isinstance(part, nn.Parameter) or any(True for _ in part.parameters()) for part in parts):
            trains = ", ".join(phase.trains) or "no part"
            raise ConfigError(f"phase {phase.name}: trains {trains}, in which the optimizer finds nothing to train")


def check_losses(config: RunConfig, phases: Sequence[Phase], of_codes: frozenset[str], factor: int) -> None:
    """Check that every loss with a weight can be computed, and that every phase has a loss that trains its parts.

    Args:
        config: config of the run.
        phases: phases of the run.
        of_codes: names of the losses on the tokenizer's codes.
        factor: downsampling factor of the tokenizer.

    Raises:
        ConfigError: a loss cannot be computed, a phase has no loss that trains its parts, `kl` has no weight although
            the bottleneck samples, or the size of the pictures does not fit the tokenizer or the discriminator.
    """
    settings, side = config.losses, config.data.crop.resolution
    if side % factor:
        raise ConfigError(f"data.crop.resolution: {side} px is no multiple of the tokenizer's {factor}")
    adversarial, discriminator = is_weighted("adversarial", settings, phases), config.discriminator
    if adversarial and isinstance(discriminator, StyleDiscriminatorConfig) and discriminator.resolution != side:
        raise ConfigError(
            f"discriminator: made for {discriminator.resolution} px, the pictures have {side}; set its resolution"
        )
    if adversarial and isinstance(discriminator, PatchDiscriminatorConfig) and side < discriminator.smallest:
        raise ConfigError(f"discriminator: judges pictures of {discriminator.smallest} px or more, these have {side}")
    for term, why in _WHY_ABSENT.items():
        if is_weighted(term, settings, phases) and term not in of_codes:
            raise ConfigError(f"losses: {term}_weight is set, but {why}")
    if "kl" in of_codes and any(phase.trains_codes for phase in phases) and not is_weighted("kl", settings, phases):
        raise ConfigError(
            "losses: the bottleneck samples from Gaussians (kl), and nothing keeps these wide; set losses.kl_weight, "
            "1e-6 for example"
        )
    start = 0
    for phase in phases:
        terms = {term for term, weight in weights_of(settings, phase).items() if weight}
        if start < max(settings.adversarial_start, settings.discriminator_start):
            terms -= {"adversarial"}  # not active at the start of this phase
        if not terms & (_RECONSTRUCTION_LOSSES | of_codes if phase.trains_codes else _RECONSTRUCTION_LOSSES):
            raise ConfigError(f"phase {phase.name}: no loss that it weighs trains {', '.join(phase.trains)}")
        start += phase.steps


def load_networks(settings: LossConfig, phases: Sequence[Phase], side: int) -> dict[str, FeatureNetwork]:
    """Load the feature networks of the losses that have a weight, by loss term.

    Args:
        settings: settings of the losses.
        phases: phases of the run.
        side: side of the training pictures in pixels.

    Raises:
        ConfigError: a network is not suitable for its loss, or the pictures are too small.
        MissingWeights: the weights of a network are not available.
    """
    names = {
        "perceptual": settings.perceptual_network,
        "text": settings.text.network,
        "face": settings.face.network,
        "ocr": settings.ocr_network,
    }
    networks: dict[str, FeatureNetwork] = {}
    for term, name in names.items():
        if not is_weighted(term, settings, phases):
            continue
        network, crops = pretrained.load(name), term in _REGION_LOSSES.values()
        if not isinstance(network, FeatureNetwork):
            raise ConfigError(f"losses: {term} compares feature maps, and {name} has none")
        if crops and network.input_size is None:
            raise ConfigError(f"losses: {term} is computed on crops of one size, and {name} has none of its own")
        if not crops and network.input_size is not None:
            raise ConfigError(f"losses: {term} is computed on whole pictures, and {name} on crops of one size")
        if term == "face" and not isinstance(getattr(network, "template", None), Tensor):
            raise ConfigError(f"losses: face aligns faces by their landmarks, and {name} does not say where these lie")
        if not crops and side < MIN_SIDE:
            raise ConfigError(f"losses: {term} needs pictures of {MIN_SIDE} px or more, these have {side}")
        networks[term] = network
    return networks


def load_target(target: RepresentationTarget) -> FrozenNetwork:
    """Load the network whose embeddings a branch predicts.

    Raises:
        ConfigError: the network embeds neither pictures nor captions, or with another number of channels.
    """
    network = pretrained.load(target.network)
    dim = getattr(network, "embed_dim", None)
    if dim is None:
        raise ConfigError(f"representation: {target.network} has no embedding of pictures or captions to predict")
    if dim != target.dim:
        raise ConfigError(f"representation: {target.network} embeds in {dim} channels, not {target.dim}")
    return network


def check_pictures(config: RunConfig, pictures: Dataset) -> None:
    """Check that some picture has the annotations that losses with a weight need.

    Missing words or faces only cause a warning, as the loss on them is then 0.

    Raises:
        ConfigError: a branch is to predict captions, and no picture has one.
    """
    settings, phases = config.losses, config.training.phases
    missing = {regions: term for regions, term in _REGION_LOSSES.items() if is_weighted(term, settings, phases)}
    targets = settings.representation.targets if is_weighted("representation", settings, phases) else ()
    if texts := [target.network for target in targets if target.network.startswith("text_encoder/")]:
        missing["captions"] = texts[0]
    samples = pictures.annotations() if missing else iter(())
    # Regions that the data settings exclude from the losses are treated as absent.
    excluded = {kind for kind, most in (("words", config.data.max_words), ("faces", config.data.max_faces)) if not most}
    excluded |= set(_REGION_LOSSES) if config.data.drop_regions == 1 else set()
    while missing.keys() - excluded and (sample := next(samples, None)) is not None:
        missing = {kind: what for kind, what in missing.items() if kind in excluded or not getattr(sample, kind)}
    if "captions" in missing:
        raise ConfigError(
            f"representation: {missing['captions']} reads captions, and no picture has one; imtok annotate --captions "
            "gives them some, --losses.representation-weight 0 does without"
        )
    for regions, term in missing.items():
        left_out = f"data.max_{regions} or data.drop_regions leaves out all {regions}"
        why = left_out if regions in excluded else f"no picture has {regions}"
        _logger.warning("losses: %s has a weight, but %s: it stays 0", term, why)


def check_scales(config: RunConfig) -> None:
    """Warn of region losses on unscaled features of a network that the paper's weights were not chosen for."""
    settings = config.losses
    for term, loss in (("text", settings.text), ("face", settings.face)):
        weight_fits = loss.network == "face_features/arcface" or loss.layer_scale == "energy"
        if is_weighted(term, settings, config.training.phases) and not weight_fits:
            _logger.warning(
                "losses: the paper's weight of %s is for another network than %s, whose features differ by hundreds of "
                "times as much; --losses.%s.layer-scale energy makes up for that",
                term,
                loss.network,
                term,
            )
