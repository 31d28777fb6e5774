"""Settings of a training run: `RunConfig`, `GeneratorRunConfig` and their sections."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from imtok.config import ConfigError, config
from imtok.data.loader import DataConfig
from imtok.generators.catalog import GeneratorConfig, TokenizerReference, sampling_of
from imtok.generators.diffusion import DiffusionSamplingConfig
from imtok.generators.far import FARConfig
from imtok.generators.sampling import SamplingConfig
from imtok.layers.precision import Precision
from imtok.losses.adversarial import AdversarialKind
from imtok.losses.discriminators import DiscriminatorConfig, PatchDiscriminatorConfig
from imtok.losses.regions import FaceLossConfig, TextLossConfig
from imtok.losses.representation import RepresentationConfig
from imtok.tokenizers.catalog import TokenizerConfig
from imtok.tokenizers.vqgan import VQGANConfig


@config
class LossConfig:
    """Weights of the loss terms (InsightTok eq. 15). A term of weight 0 is not computed and loads no network."""

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 0.5
    """gamma of eq. 1."""
    perceptual_network: str = "perceptual/vgg16"
    """Deviation: the paper's LPIPS is `perceptual/lpips_vgg`, whose files the user must provide; see
    `perceptual_distance`."""
    commitment_weight: float = 0.02
    """beta of eq. 1."""
    codebook_weight: float = 1.0
    """Pulls the codes of a gradient-trained codebook towards their vectors; EMA codebooks need no such loss."""
    entropy_weight: float = 0.0
    """Weight of the entropy loss on the soft assignments to a gradient-trained codebook; see `entropy_loss`."""
    kl_weight: float = 0.0
    """Weight of the KL divergence of a continuous bottleneck with `kl`; see `Continuous`."""
    disentangle_weight: float = 0.0
    """lambda_1 of FQGAN eq. 8, for factorized quantizers."""
    adversarial_weight: float = 0.5
    """eta of eq. 1."""
    adversarial_kind: AdversarialKind = "hinge"
    """Not specified by InsightTok; `non_saturating` in TexTok."""
    discriminator_start: int = 0
    """First step in which the discriminator is trained; before it, the discriminator does not run."""
    adversarial_start: int = 0
    """First step in which the tokenizer has the adversarial loss, at the earliest `discriminator_start`. An untrained
    discriminator harms a trained tokenizer: train the discriminator first."""
    lecam_weight: float = 0.05
    r1_weight: float = 0.0
    """Weight of the discriminator's gradient penalty at originals; see `r1_penalty`."""
    r1_every: int = 16
    """The R1 penalty is computed every `r1_every` steps and multiplied by this number. Not specified by TexTok; 16 is
    the value of StyleGAN2 and of a re-implementation."""
    text_weight: float = 0.0
    """alpha_1 of eq. 3."""
    text: TextLossConfig = TextLossConfig()
    face_weight: float = 0.0
    """alpha_2 of eq. 3."""
    face: FaceLossConfig = FaceLossConfig()
    ocr_weight: float = 0.0
    """OCR-VQGAN's text loss, InsightTok's control in Table 5: the formula of the perceptual loss on the features of a
    text detector, computed on the whole picture."""
    ocr_network: str = "text_features/craft"
    representation_weight: float = 0.0
    """lambda_2 of FQGAN eq. 8, for each of the targets."""
    representation: RepresentationConfig = RepresentationConfig()

    def __post_init__(self) -> None:
        if self.r1_every < 1:
            raise ConfigError(f"losses: r1_every = {self.r1_every} must be at least 1")
        if min(self.discriminator_start, self.adversarial_start) < 0:
            raise ConfigError("losses: discriminator_start and adversarial_start must not be negative")
        check_weights(self.weights(), "losses")

    def weights(self) -> dict[str, float]:
        """Return the weight of each term, by the term's name."""
        suffix = "_weight"
        return {
            field.name.removesuffix(suffix): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.endswith(suffix)
        }


def check_weights(weights: Mapping[str, float], where: str) -> None:
    """Check that the weights of losses are valid.

    Raises:
        ConfigError: a weight is negative, infinite or NaN.
    """
    if wrong := [term for term, weight in weights.items() if not 0 <= weight < math.inf]:
        raise ConfigError(f"{where}: the weight of {wrong[0]} is {weights[wrong[0]]}; it must be 0 or more")


@config
class Phase:
    """A phase of training: its length, the parts that are trained, and deviations from `LossConfig`."""

    name: str
    steps: int
    trains: tuple[str, ...] = ("encoder", "quantizer", "decoder")
    """Names of the parts of the model that are trained; "all" for all."""
    learning_rate: float | None = None
    """Replaces the learning rate of the optimizer."""
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights that replace those of `LossConfig`, by term: {"text": 1.0}."""
    region_share: float | None = None
    """Share of pictures with words or faces in a batch; other pictures fill the rest. None: all pictures alike."""
    quantize: bool = True
    """False: latents pass unquantized, for the first steps of a small model."""

    def __post_init__(self) -> None:
        unknown = self.weights.keys() - LossConfig().weights().keys()
        if unknown:
            raise ConfigError(f"phase {self.name}: no loss term is called {', '.join(sorted(unknown))}")
        check_weights(self.weights, f"phase {self.name}")
        if self.steps < 1 or not 0 <= (self.region_share or 0) <= 1:
            raise ConfigError(f"phase {self.name}: steps must be at least 1 and region_share in [0, 1]")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ConfigError(f"phase {self.name}: learning_rate = {self.learning_rate} must be positive")

    def trains_part(self, name: str) -> bool:
        """Return whether the phase trains a part of the model."""
        return name in self.trains or "all" in self.trains

    @property
    def trains_codes(self) -> bool:
        """Whether the phase trains the parts of a tokenizer before the decoder."""
        return self.trains_part("encoder") or self.trains_part("quantizer")


@config
class OptimizerConfig:
    """AdamW with warm-up and cosine decay, restarted in every phase (InsightTok, appendix E.1).

    Deviation: the paper uses Adam with weight decay 0.05; here it is decoupled (AdamW), since coupled weight decay of
    that size would dominate the gradient under Adam.
    """

    algorithm: Literal["adamw", "muon"] = "adamw"
    """`muon` trains the matrices in a transformer's blocks by orthogonalized momentum (Jordan et al. 2024), with steps
    scaled to the size of AdamW's (Liu et al. 2025), and all other parameters by AdamW. None of the implemented papers
    uses it; small models learn much faster with it. `betas` are those of AdamW."""
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    """Share of a phase's steps with linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    final_share: float = 0.0
    """The cosine schedule ends at this share of the learning rate."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError("optimizer: learning_rate must be positive and weight_decay must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer: betas = {self.betas} must be in [0, 1)")
        if not (0 <= self.warmup_share <= 1 and 0 <= self.final_share <= 1):
            raise ConfigError("optimizer: warmup_share and final_share must be in [0, 1]")


@config
class WatchdogConfig:
    """When a run counts as failed, and what to do then."""

    action: Literal["stop", "rollback"] = "stop"
    """`rollback` returns to the last saved state and continues with other pictures, at most `max_rollbacks` times."""
    max_rollbacks: int = 3
    patience: int = 200
    """Number of consecutive steps that a symptom other than NaN or infinity may last."""
    min_codebook_used: float = 0.01
    """Share of the codes used in a step, of those that could be used; below it, the codebook has collapsed."""
    min_discriminator_loss: float = 0.01
    """With a lower loss the discriminator has won: it recognizes all reconstructions and gives no useful gradient."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.max_rollbacks < 0:
            raise ConfigError("watchdog: patience must be at least 1, and max_rollbacks must not be negative")
        if not 0 <= self.min_codebook_used <= 1 or self.min_discriminator_loss < 0:
            raise ConfigError("watchdog: min_codebook_used must be in [0, 1], min_discriminator_loss not negative")


@config
class TrainingConfig:
    """The training loop: phases, batch size, precision, and intervals of logging, evaluation and saving."""

    phases: tuple[Phase, ...]
    steps: int | None = None
    """Total number of steps; the phases keep their proportions. None: the sum of the phases."""
    global_batch_size: int = 512
    micro_batch_size: int | None = None
    """Pictures in one pass on one device; None: all of the device's share. Gradients are accumulated over passes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    """Decay of the averaged weights that are saved and evaluated; None: no averaging."""
    precision: Precision = "bf16"
    channels_last: bool = False
    """Use the channels-last memory format for the convolutions' weights and feature maps; see docs/training.md."""
    gradient_checkpointing: bool = False
    shard_weights: bool = False
    """Shard weights, gradients and optimizer state across the processes, for generators too large for one device."""
    compile: bool = False
    seed: int = 0
    threads: int | None = None
    """Number of CPU threads; None: the default of torch."""
    log_every: int = 50
    """In steps, like `save_every`, `preview_every` and `evaluate_every`; 0 for these: only at the end of a phase."""
    save_every: int = 1000
    preview_every: int = 1000
    evaluate_every: int = 5000
    evaluation_pictures: int = 256
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Additional logger; metrics.jsonl is always written."""
    watchdog: WatchdogConfig = WatchdogConfig()

    def __post_init__(self) -> None:
        if not self.phases:
            raise ConfigError("training: at least one phase is needed")
        least: dict[str, int] = {
            "global_batch_size": 1,
            "micro_batch_size": 1,
            "seed": 0,
            "threads": 1,
            "log_every": 1,
            "save_every": 0,
            "preview_every": 0,
            "evaluate_every": 0,
            "evaluation_pictures": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"training: {name} = {value} must be at least {bound}")
        if self.seed >= 2**63:
            raise ConfigError(f"training: seed = {self.seed} must be below 2^63")
        if not self.max_grad_norm > 0 or not 0 <= (self.ema_decay or 0) < 1:
            raise ConfigError("training: max_grad_norm must be positive and ema_decay in [0, 1)")
        if self.shard_weights and self.optimizer.algorithm == "muon":
            raise ConfigError("training: muon needs whole matrices, which no rank has with shard_weights; take adamw")
        if self.steps is not None and self.steps < len(self.phases):
            raise ConfigError(f"training: steps = {self.steps} is less than one step for each of the phases")

    def scheduled_phases(self) -> tuple[Phase, ...]:
        """Return the phases with their lengths scaled to `steps`."""
        if self.steps is None:
            return self.phases
        total, done, scaled = sum(p.steps for p in self.phases), 0, []
        for index, phase in enumerate(self.phases):
            left = len(self.phases) - index - 1  # every later phase needs a step
            end = round(sum(p.steps for p in self.phases[: index + 1]) / total * self.steps)
            steps = min(max(1, end - done), self.steps - done - left)
            scaled.append(dataclasses.replace(phase, steps=steps))
            done += steps
        return tuple(scaled)


@config
class RunConfig:
    """Config of a tokenizer's run. It is stored resolved in the run folder, which can thus be opened without flags."""

    name: str
    tokenizer: TokenizerConfig = VQGANConfig()
    losses: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = PatchDiscriminatorConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig
    earlier_teachers: tuple[str, ...] = ()
    """Networks in the losses that trained the weights of `--init-from`; set by the run itself. Metrics that use one of
    these are not independent of the training."""


@config
class GeneratorRunConfig:
    """Config of a generator's run."""

    name: str
    generator: GeneratorConfig = FARConfig()
    sampling: SamplingConfig | DiffusionSamplingConfig = SamplingConfig()
    """Default settings for sampling pictures, as codes or as latents."""
    tokenizer: TokenizerReference | None = None
    """Tokenizer of the codes or latents; taken from the shards when the run starts."""
    training: TrainingConfig

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, wanted := sampling_of(self.generator)):
            raise ConfigError(f"{self.name}: sampling is no {wanted.__name__}, by which a {self.generator.kind} draws")
        for phase in self.training.phases:
            if phase.weights or phase.region_share is not None or not phase.quantize:
                raise ConfigError(
                    f"phase {phase.name}: weights, region_share and quantize are a tokenizer's; generators have none"
                )


AnyRunConfig = RunConfig | GeneratorRunConfig
