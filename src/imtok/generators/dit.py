"""DiT: a transformer that denoises a picture's latents, conditioned on its class or a text (TexTok, section 4.1)."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.generators.base import Conditions, Generator, drop_conditions
from imtok.generators.classes import ClassEmbedding
from imtok.generators.diffusion import Diffusion, DiffusionConfig, DiffusionSamplingConfig, gaussian_noise
from imtok.generators.sampling import classifier_free_guidance
from imtok.layers.adaln import Block, FinalLayer, TimeEmbedding
from imtok.layers.model import CheckpointedSequential
from imtok.layers.positions import INIT_STD, sincos_positions
from imtok.layers.transformer import Context
from imtok.tokenizers.text import TextConditioner, TextConfig

_SCORED_TIMES = (125, 375, 625, 875)
"""Times at which held-out latents are scored."""

ConditionEmbedding = Float[Tensor, "batch dim"] | Context
"""Conditions as the blocks receive them: a vector for each class, or the text's states and their mask."""


@config
class DiTConfig:
    """A generator of latents; the defaults are DiT-XL over TexTok-256, 675M (TexTok, Table 2 and appendix C)."""

    kind: Literal["dit"] = "dit"
    channels: int = 8
    """Channels of the latents."""
    token_shape: tuple[int, ...] = (256,)
    """Rows and columns of the tokens, or their number if they do not lie on a grid."""
    latent_mean: tuple[float, ...] = ()
    """Mean of each channel over the training pictures; the network's input is normalized to mean 0 and standard
    deviation 1. This and `latent_std` are read from the shards when training begins; empty before."""
    latent_std: tuple[float, ...] = ()
    num_classes: int = 1000
    classes: tuple[str, ...] = ()
    """Class names, as in the dataset's labels; empty before training."""
    text: TextConfig | None = None
    """DiT-T2I: text encoder of the prompts, which replace classes; its `where` and `how` are ignored."""
    dim: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    positions: Literal["sine", "learned"] = "sine"
    condition_dropout: float = 0.1
    """Share of pictures whose class or text is dropped in training, for classifier-free guidance."""
    diffusion: DiffusionConfig = DiffusionConfig()

    def __post_init__(self) -> None:
        if min(self.channels, self.num_classes, self.dim, self.depth, self.num_heads, *self.token_shape, 1) < 1:
            raise ConfigError("dit: all sizes must be positive")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"dit: mlp_ratio = {self.mlp_ratio} must be positive")
        if not self.token_shape or self.dim % self.num_heads or self.dim % (2 * len(self.token_shape)):
            raise ConfigError(
                f"dit: {self.dim} channels cannot be shared by {self.num_heads} heads and by the sines and cosines of "
                f"{len(self.token_shape)} axes"
            )
        if not {len(self.latent_mean), len(self.latent_std)} <= {0, self.channels}:
            raise ConfigError(f"dit: latent_mean and latent_std are not of {self.channels} channels")
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(f"dit: {len(self.classes)} classes are named, num_classes is {self.num_classes}")
        if self.text is not None and self.text.conditioned_on == "labels":
            raise ConfigError("dit: text wants an encoder that reads prompts; leave it out for classes")
        if not 0 <= self.condition_dropout < 1:
            raise ConfigError("dit: condition_dropout must be in [0, 1)")


class DiT(Generator):
    """Transformer blocks with adaLN-Zero over noisy latents, one token per latent (Peebles and Xie, section 3).

    Embeddings of time and class shift, scale and gate each block. With text, a cross-attention layer follows each
    block's self-attention (TexTok's DiT-T2I, after PixArt-alpha); it adds nothing for a picture without text. A newly
    initialized model outputs zero, and its blocks are identities.

    Deviation: variances are not learned, since a deterministic sampler does not use them.

    Args:
        config: config of the generator.
        text_conditioner: encoder of the prompts, for a generator conditioned on text; None creates one from the config,
            which loads the text encoder on first use.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DiTConfig, text_conditioner: TextConditioner | None = None) -> None:
        super().__init__()
        self.config = config
        self.conditioned_on = "labels" if config.text is None else "prompts"
        self.text_conditioner = (
            TextConditioner(config.text) if text_conditioner is None and config.text is not None else text_conditioner
        )
        self.tokens = math.prod(config.token_shape)
        self.diffusion = Diffusion(config.diffusion)
        dim, text = config.dim, config.text
        self.register_buffer("mean", torch.tensor(config.latent_mean or (0.0,) * config.channels), persistent=False)
        self.register_buffer("std", torch.tensor(config.latent_std or (1.0,) * config.channels), persistent=False)
        self.latents_in = nn.Linear(config.channels, dim)
        self.time = TimeEmbedding(dim)
        self.class_embedding = (
            ClassEmbedding(config.num_classes, config.classes, dim, config.condition_dropout) if text is None else None
        )
        self.text_in = None if text is None else nn.Linear(text.dim, dim)
        self.layers = CheckpointedSequential(
            *(Block(dim, config.num_heads, config.mlp_ratio, text is not None) for _ in range(config.depth))
        )
        self.last = FinalLayer(dim, config.channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                module.zero_init()
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(self.tokens, dim) * INIT_STD)
        else:
            self.register_buffer("positions", sincos_positions(config.token_shape, dim), persistent=False)

    def forward(
        self, noisy: Float[Tensor, "batch tokens channels"], times: Float[Tensor, " batch"], conditions: Conditions
    ) -> Float[Tensor, "batch tokens channels"]:
        """Predict the config's target from normalized noisy latents at their times (0 to 1,000), in their dtype.

        Raises:
            ConfigError: a class is unknown.
            MissingWeights: a text has no stored features, and the text encoder's weights are not installed.
        """
        return self.denoise(noisy, times, self.embed_conditions(conditions))

    def denoise(
        self,
        noisy: Float[Tensor, "batch tokens channels"],
        times: Float[Tensor, " batch"],
        condition: ConditionEmbedding,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Do the same as `forward`, with conditions that are already embedded."""
        vector, context = self.time(times), None
        if isinstance(condition, tuple):
            context = condition
        else:
            vector = vector + condition
        x = self.latents_in(noisy.to(self.dtype)) + self.positions.to(self.dtype)
        x = self.layers(x, vector, context)
        return self.last(x, vector).to(noisy.dtype)

    def embed_conditions(self, conditions: Conditions) -> ConditionEmbedding:
        """Embed conditions for the blocks; in training some are dropped."""
        if self.class_embedding is not None:
            return self.class_embedding.read(conditions)
        assert self.text_conditioner is not None
        assert self.text_in is not None
        if self.training:
            conditions = drop_conditions(conditions, self.config.condition_dropout)
        states, mask = self.text_conditioner.encode(conditions)
        return self.text_in(states.to(self.device, self.dtype)), mask.to(self.device)

    def resolve(self, condition: str | None) -> str | None:
        if self.class_embedding is not None:
            return self.class_embedding.name(condition)
        assert self.text_conditioner is not None
        self.text_conditioner.check(condition)
        return condition

    def normalize(self, latents: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        """Normalize latents with the config's `latent_mean` and `latent_std`, as the network expects."""
        return (latents - self.mean) / self.std

    @property
    def loss_names(self) -> tuple[str, ...]:
        return ("diffusion",)

    def losses(
        self, tokens: Float[Tensor, "batch tokens channels"], conditions: Conditions
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the mean squared error of the prediction, at a random time for each picture."""
        clean = self.normalize(tokens)
        times = self.diffusion.sample_timesteps(len(clean)).to(clean.device)
        noisy, target = self.diffusion.add_noise(clean, torch.randn_like(clean), times)
        return {"diffusion": F.mse_loss(self(noisy, times, conditions), target)}

    @torch.no_grad()
    def scores(
        self, tokens: Float[Tensor, "batch tokens channels"], conditions: Conditions, seeds: Sequence[int]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Return each picture's mean squared error at four times, and the mean over these times."""
        clean = self.normalize(tokens)
        noise = gaussian_noise(seeds, self.tokens, self.config.channels).to(clean.device)
        each: dict[str, Tensor] = {}
        for time in _SCORED_TIMES:
            times = clean.new_full((len(clean),), time)
            noisy, target = self.diffusion.add_noise(clean, noise, times)
            each[f"diffusion_{time}"] = (self(noisy, times, conditions) - target).square().mean((1, 2))
        return {"diffusion": torch.stack(list(each.values())).mean(0)} | each

    def check_sampling(self, settings: DiffusionSamplingConfig) -> None:
        if (self.config.diffusion.path, settings.spacing) == ("straight", "leading"):
            raise ConfigError("sampling: a straight path begins at noise; spacing leading would leave that out")

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        settings: DiffusionSamplingConfig | None = None,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Float[Tensor, "batch tokens channels"]:
        settings = settings or DiffusionSamplingConfig()
        self.check_sampling(settings)
        guided = settings.guidance_scale != 1
        condition = self.embed_conditions([*conditions, *([None] * len(conditions) if guided else [])])

        def predict(noisy: Tensor, time: float) -> Tensor:
            if not guided:
                return self.denoise(noisy, noisy.new_full((len(noisy),), time), condition)
            both = torch.cat([noisy, noisy])
            return classifier_free_guidance(
                self.denoise(both, both.new_full((len(both),), time), condition), settings.scale(time)
            )

        noise = gaussian_noise(seeds, self.tokens, self.config.channels).to(self.device)
        latents = self.diffusion.sample(predict, noise, settings.num_inference_steps, settings.spacing, progress)
        return latents * self.std + self.mean

    def stages(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.layers)

    def compile_parts(self) -> None:
        """Compile each block (torch.compile), without fixing its shapes, since texts differ in length."""
        for layer in self.layers:
            layer.compile()
