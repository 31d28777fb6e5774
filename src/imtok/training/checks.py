"""What a run is asked before its first step, so that nothing is found wrong or missing after days."""

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
"""Losses of the codes that not every tokenizer has, each with the reason why one lacks it."""
OF_CODES = tuple(_WHY_ABSENT)
_OF_PICTURES = frozenset({"l1", "l2", "perceptual", "text", "face", "ocr", "adversarial"})
"""Losses of what is drawn, which train every part."""
_OF_REGIONS = {"words": "text", "faces": "face"}
"""Losses by the regions that they look at."""


def is_weighted(term: str, settings: LossConfig, phases: Sequence[Phase]) -> bool:
    """Whether any phase gives a term weight."""
    return any(weights_of(settings, phase)[term] for phase in phases)


def weights_of(settings: LossConfig, phase: Phase) -> dict[str, float]:
    """Of each loss in a phase."""
    return {**settings.weights(), **phase.weights}


def parts_of(model: Model) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """What of a model a phase can name: its modules, and parameters that belong to none."""
    yield from model.named_children()
    yield from model.named_parameters(recurse=False)


def check_parts(model: Model, phases: Sequence[Phase]) -> None:
    """Whether the parts that phases train are parts of a model, and something in them trains.

    Raises:
        ConfigError: one is not, or nothing does.
    """
    there = [name for name, _ in parts_of(model)]
    for phase in phases:
        if unknown := [name for name in phase.trains if name not in (*there, "all")]:
            raise ConfigError(
                f"phase {phase.name}: trains {unknown[0]!r}, which is no part of this model; there are "
                f"{', '.join(there)}, all"
            )
        parts = (part for name, part in parts_of(model) if phase.trains_part(name))
        if not any(isinstance(part, nn.Parameter) or any(True for _ in part.parameters()) for part in parts):
            trains = ", ".join(phase.trains) or "no part"
            raise ConfigError(f"phase {phase.name}: trains {trains}, in which the optimizer finds nothing to train")


def check_losses(config: RunConfig, phases: Sequence[Phase], of_codes: frozenset[str], factor: int) -> None:
    """Whether every loss that a phase weighs can be computed, and every phase has a loss that trains its parts.

    Args:
        config: of the run.
        phases: of it.
        of_codes: the losses that the tokenizer's codes have.
        factor: by which it makes pictures smaller.

    Raises:
        ConfigError: they cannot, or one has none; or the pictures do not fit tokenizer or discriminator.
    """
    settings, side = config.losses, config.data.crop.resolution
    if side % factor:
        raise ConfigError(f"data.crop.resolution: {side} px is no multiple of the tokenizer's {factor}")
    plays, judge = is_weighted("adversarial", settings, phases), config.discriminator
    if plays and isinstance(judge, StyleDiscriminatorConfig) and judge.resolution != side:
        raise ConfigError(
            f"discriminator: made for {judge.resolution} px, the pictures have {side}; set its resolution"
        )
    if plays and isinstance(judge, PatchDiscriminatorConfig) and side < judge.smallest:
        raise ConfigError(f"discriminator: judges pictures of {judge.smallest} px or more, these have {side}")
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
            terms -= {"adversarial"}  # not yet
        if not terms & (_OF_PICTURES | of_codes if phase.trains_codes else _OF_PICTURES):
            raise ConfigError(f"phase {phase.name}: no loss that it weighs trains {', '.join(phase.trains)}")
        start += phase.steps


def load_networks(settings: LossConfig, phases: Sequence[Phase], side: int) -> dict[str, FeatureNetwork]:
    """The networks whose features the is_weighted losses compare, by loss.

    Args:
        settings: of the losses.
        phases: of the run.
        side: of the pictures, in pixels.

    Raises:
        ConfigError: one cannot do what its loss asks of it.
        MissingWeights: one is not here.
    """
    names = {
        "perceptual": settings.perceptual_network,
        "text": settings.text.network,
        "face": settings.face.network,
        "ocr": settings.ocr_network,
    }
    found: dict[str, FeatureNetwork] = {}
    for term, name in names.items():
        if not is_weighted(term, settings, phases):
            continue
        network, crops = pretrained.load(name), term in _OF_REGIONS.values()
        if not isinstance(network, FeatureNetwork):
            raise ConfigError(f"losses: {term} compares feature maps, and {name} has none")
        if crops and network.input_size is None:
            raise ConfigError(f"losses: {term} looks at crops of one size, and {name} has none of its own")
        if not crops and network.input_size is not None:
            raise ConfigError(f"losses: {term} looks at whole pictures, and {name} at crops of one size")
        if term == "face" and not isinstance(getattr(network, "template", None), Tensor):
            raise ConfigError(f"losses: face aligns faces by their landmarks, and {name} does not say where these lie")
        if not crops and side < MIN_SIDE:
            raise ConfigError(f"losses: {term} needs pictures of {MIN_SIDE} px or more, these have {side}")
        found[term] = network
    return found


def load_target(target: RepresentationTarget) -> FrozenNetwork:
    """The network that a branch predicts.

    Raises:
        ConfigError: it embeds neither pictures nor captions, or in another width.
    """
    network = pretrained.load(target.network)
    dim = getattr(network, "embed_dim", None)
    if dim is None:
        raise ConfigError(f"representation: {target.network} has no embedding of pictures or captions to predict")
    if dim != target.dim:
        raise ConfigError(f"representation: {target.network} embeds in {dim} channels, not {target.dim}")
    return network


def check_pictures(config: RunConfig, pictures: Dataset) -> None:
    """Whether some picture has what the is_weighted losses look at; what lacks words or faces is said, as their loss is 0.

    Raises:
        ConfigError: a branch shall predict captions, and there are none.
    """
    settings, phases = config.losses, config.training.phases
    missing = {regions: term for regions, term in _OF_REGIONS.items() if is_weighted(term, settings, phases)}
    targets = settings.representation.targets if is_weighted("representation", settings, phases) else ()
    if texts := [target.network for target in targets if target.network.startswith("text_encoder/")]:
        missing["captions"] = texts[0]
    samples = pictures.annotations() if missing else iter(())
    # Regions of which none enter the losses are as good as not there.
    unseen = {kind for kind, most in (("words", config.data.max_words), ("faces", config.data.max_faces)) if not most}
    unseen |= set(_OF_REGIONS) if config.data.drop_regions == 1 else set()
    while missing.keys() - unseen and (sample := next(samples, None)) is not None:
        missing = {kind: what for kind, what in missing.items() if kind in unseen or not getattr(sample, kind)}
    if "captions" in missing:
        raise ConfigError(
            f"representation: {missing['captions']} reads captions, and no picture has one; imtok annotate --captions "
            "gives them some, --losses.representation-weight 0 does without"
        )
    for regions, term in missing.items():
        left_out = f"data.max_{regions} or data.drop_regions leaves out all {regions}"
        why = left_out if regions in unseen else f"no picture has {regions}"
        _logger.warning("losses: %s has a weight, but %s: it stays 0", term, why)


def check_scales(config: RunConfig) -> None:
    """Say which region losses compare unscaled features of a network that the paper's weights were not chosen for."""
    settings = config.losses
    for term, of_term in (("text", settings.text), ("face", settings.face)):
        papers = of_term.network == "face_features/arcface" or of_term.layer_scale == "energy"
        if is_weighted(term, settings, config.training.phases) and not papers:
            _logger.warning(
                "losses: the paper's weight of %s is for another network than %s, whose features differ by hundreds of "
                "times as much; --losses.%s.layer-scale energy makes up for that",
                term,
                of_term.network,
                term,
            )
