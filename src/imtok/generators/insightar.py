"""InsightAR: a language model continues the prompt with the codes of a picture (InsightTok, section 3.3)."""

import inspect
import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imtok.config import ConfigError, config, first_line
from imtok.generators.autoregressive import AutoregressiveGenerator, Session
from imtok.generators.base import Conditions, drop_conditions
from imtok.generators.heads import CodeEmbedding, HeadKind, build_head
from imtok.generators.prompts import PromptFormat, PromptTokenizer
from imtok.layers.decoder import Block
from imtok.layers.positions import INIT_STD
from imtok.tokenizers.base import Tokenizer

_GRID_STD = 0.1


@config
class InsightARConfig:
    """A text-to-image generator over any tokenizer's codes.

    The defaults are for a language model of DeepSeek-LLM's architecture, 6.9B, as in Janus-Pro, and for InsightTok's
    codes at 512 px.
    """

    kind: Literal["insightar"] = "insightar"
    codebook_sizes: tuple[int, ...] = (16_384,)
    codebook_dims: tuple[int, ...] = (256,)
    """Channels of each codebook's vectors, which are the adapter's input."""
    token_shape: tuple[int, ...] = (32, 32)
    language_model: str = ""
    """The language model whose weights, tokenizer and architecture training starts from: a folder, an id in the hub's
    local cache, or a name in the registry (language_model/smollm2). Empty: untrained weights."""
    architecture: dict[str, Any]
    """The language model's config.json, as in the transformers library; `model_type` selects the class."""
    prompt_format: PromptFormat = "chat"
    max_prompt_tokens: int = 512
    condition_dropout: float = 0.1
    """Share of prompts that are replaced by the empty one in training, for classifier-free guidance. The paper does not
    state it; Janus-Pro's value is not verified either."""
    head: HeadKind = "mlp"
    """Janus-Pro's is `mlp`: two linear layers with GELU in between."""
    head_depth: int = 1
    """Number of blocks in a factorized head."""
    code_similarity: bool = False
    """Whether a code's logit has an additional term that is linear in its codebook vector, so that similar codes share
    what is learned. Deviation: the paper's head has separate weights for each code, which a small model trained from
    scratch learns slowly."""
    grid_embedding: bool = False
    """Whether learned embeddings of the next position's row and column are added to every picture token. Deviation: the
    paper has none; a language model's positions are one-dimensional, so one trained from scratch has to learn the
    columns."""

    def __post_init__(self) -> None:
        if "model_type" not in self.architecture:
            raise ConfigError("insightar: architecture names no model_type; it is a language model's config.json")
        for name in ("codebook_sizes", "codebook_dims", "token_shape"):
            if min(getattr(self, name), default=0) < 1:
                raise ConfigError(f"insightar: {name} = {getattr(self, name)} must be one positive size or more")
        if len(self.codebook_dims) != len(self.codebook_sizes):
            raise ConfigError(
                f"insightar: {len(self.codebook_dims)} codebook_dims for {len(self.codebook_sizes)} codebooks"
            )
        if self.max_prompt_tokens < 1 or not 0 <= self.condition_dropout < 1 or self.head_depth < 1:
            raise ConfigError(
                "insightar: max_prompt_tokens and head_depth must be positive, condition_dropout at least 0 and below 1"
            )


class InsightAR(AutoregressiveGenerator):
    """A language model over [prompt, start of image, adapter(code 1), …]; its hidden states predict the next codes.

    The adapter's input is the tokenizer's own codebook vectors (`init_from_tokenizer`); they are not trained.

    Deviation: Janus-Pro's unconditional prompt keeps its first and last token and pads the others; here it is the empty
    prompt in the same format.

    Args:
        config: config of the generator.
        prompt_tokenizer: tokenizer of the prompts.
    """

    conditioned_on = "prompts"

    def __init__(self, config: InsightARConfig, prompt_tokenizer: PromptTokenizer) -> None:
        super().__init__()
        self.config, self.prompt_tokenizer = config, prompt_tokenizer
        self.codebook_sizes, self.tokens = config.codebook_sizes, math.prod(config.token_shape)
        self.language_model = _language_model(config.architecture, config.max_prompt_tokens + 1 + self.tokens)
        vocabulary, dim = self.language_model.get_input_embeddings().weight.shape
        if prompt_tokenizer.vocabulary > vocabulary:
            raise ConfigError(
                f"insightar: prompts have {prompt_tokenizer.vocabulary} ids, the language model knows {vocabulary}"
            )
        self.start_of_image = nn.Parameter(torch.randn(dim) * INIT_STD)
        for index, (size, channels) in enumerate(zip(config.codebook_sizes, config.codebook_dims, strict=True)):
            self.register_buffer(f"codebook_{index}", torch.zeros(size, channels))
        self.adapter = nn.Sequential(nn.Linear(sum(config.codebook_dims), dim), nn.GELU(), nn.Linear(dim, dim))
        heads = getattr(self.language_model.config, "num_attention_heads", 1)
        if config.head == "factorized" and dim % (2 * heads):
            raise ConfigError(
                f"insightar: a factorized head of {dim} channels cannot be cut into {heads} heads of an even number; "
                "take another head, or another language model"
            )
        self.embedding = CodeEmbedding(config.codebook_sizes if config.head == "factorized" else (), dim)
        self.head = build_head(config.head, config.codebook_sizes, dim, config.head_depth, heads)
        similarity_dims = config.codebook_dims if config.code_similarity else ()
        self.similarity = nn.ModuleList(nn.Linear(dim, channels, bias=False) for channels in similarity_dims)
        sides = config.token_shape if config.grid_embedding else ()
        self.grid = nn.ParameterList(torch.randn(side, dim) * _GRID_STD for side in sides)

    @torch.no_grad()
    def init_from_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copy the tokenizer's codebook vectors."""
        for index, size in enumerate(self.codebook_sizes):
            codes = torch.zeros(1, size, len(self.codebook_sizes), dtype=torch.long)
            codes[0, :, index] = torch.arange(size)
            vectors = tokenizer.split(tokenizer.lookup(codes.to(tokenizer.device)))[index][0]
            self.get_buffer(f"codebook_{index}").copy_(vectors)

    def forward(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        prompts, prompt_mask = self.prompt(conditions)
        inputs = torch.cat([prompts, self.start(len(codes)), self.adapt(codes[:, :-1], first=1)], dim=1)
        mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(codes), codes.shape[1])], dim=1)
        states = self.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=position_ids_of(mask), use_cache=False
        ).last_hidden_state
        embedded = self.embedding(codes) if self.embedding.tables else None
        hidden = states[:, prompts.shape[1] :]
        logits = self.head(hidden, embedded)
        return tuple(part + self.shared_logits(hidden, index) for index, part in enumerate(logits))

    def shared_logits(self, hidden: Float[Tensor, "*places dim"], codebook: int) -> Float[Tensor, "*places _"] | float:
        if not self.similarity:
            return 0.0
        vectors, query = self.get_buffer(f"codebook_{codebook}"), self.similarity[codebook](hidden)
        return query @ (vectors.T * vectors.shape[1] ** 0.5).to(query.dtype)  # unit vectors, scaled to an RMS of 1

    def prompt(self, conditions: Conditions) -> tuple[Float[Tensor, "batch length dim"], Bool[Tensor, "batch length"]]:
        """Return embedded prompts and their mask; long prompts are truncated, and in training some are dropped."""
        if self.training:
            conditions = drop_conditions(conditions, self.config.condition_dropout)
        ids, mask = self.prompt_tokenizer.encode(conditions)
        embed = self.language_model.get_input_embeddings()
        return embed(ids.to(self.device)), mask.to(self.device)

    def resolve(self, condition: str | None) -> str | None:
        self.prompt_tokenizer.check(condition or "")
        return condition

    def start(self, rows: int) -> Float[Tensor, "rows 1 dim"]:
        """Return the embedding of the start-of-image token for each row."""
        return (self.start_of_image + self.position_embeddings(0, 1)).expand(rows, 1, -1)

    def adapt(self, codes: Int[Tensor, "batch places codebooks"], first: int) -> Float[Tensor, "batch places dim"]:
        """Embed codes for the language model; `first` is the index of the position after the first of them."""
        vectors = [self.get_buffer(f"codebook_{i}")[code] for i, code in enumerate(codes.unbind(2))]
        return self.adapter(torch.cat(vectors, dim=2).to(self.dtype)) + self.position_embeddings(
            first, first + codes.shape[1]
        )

    def position_embeddings(self, first: int, stop: int) -> Float[Tensor, "places dim"]:
        """Embed the row and column of positions first <= i < stop, in raster order; zeros without `grid_embedding`."""
        numbers = torch.arange(first, stop, device=self.device)
        embedded = torch.zeros(len(numbers), len(self.start_of_image), device=numbers.device, dtype=self.dtype)
        for axis, vectors in enumerate(self.grid):
            stride = math.prod(self.config.token_shape[axis + 1 :])
            embedded = embedded + vectors[numbers // stride % len(vectors)]
        return embedded

    def begin(self, conditions: Conditions) -> Session:
        return _InsightARSession(self, conditions)

    def stages(self) -> list[nn.Module]:
        """The language model's layers (`_no_split_modules` of transformers), and a factorized head's blocks."""
        layers = set(self.language_model._no_split_modules or ())
        return [part for part in self.modules() if isinstance(part, Block) or type(part).__name__ in layers]

    def compile_parts(self) -> None:
        """Compile each of the language model's layers and a factorized head's blocks (torch.compile)."""
        for stage in self.stages():
            stage.compile()

    def set_grad_checkpointing(self, on: bool) -> None:
        super().set_grad_checkpointing(on)  # for the head
        model, what = self.language_model, "enable" if on else "disable"
        renamed = getattr(model, f"activation_checkpointing_{what}", None)  # the name in transformers 5
        try:
            (renamed or getattr(model, f"gradient_checkpointing_{what}"))()
        except ValueError as error:
            raise ConfigError(f"training: gradient_checkpointing: {first_line(error)}") from None


class _InsightARSession(Session):
    def __init__(self, model: InsightAR, conditions: Conditions) -> None:
        from transformers import StaticCache

        self._model = model
        prompts, mask = model.prompt(conditions)
        rows, length = mask.shape
        cache = StaticCache(config=model.language_model.config, max_cache_len=length + model.tokens)
        parameters = inspect.signature(model.language_model.forward).parameters
        self._cache = {"cache" if "cache" in parameters else "past_key_values": cache}  # renamed in transformers 5
        self._mask = torch.cat([mask, mask.new_ones(rows, model.tokens)], dim=1)
        self._positions = position_ids_of(self._mask)
        self._length = self._sampled = 0
        self._append(torch.cat([prompts, model.start(rows)], dim=1))

    def advance(self, codes: Int[Tensor, "rows codebooks"]) -> None:
        self._sampled += 1
        self._append(self._model.adapt(codes[:, None], self._sampled))

    def _append(self, inputs: Float[Tensor, "rows new dim"]) -> None:
        start, stop = self._length, self._length + inputs.shape[1]
        mask = self._mask[:, :stop]  # a model with recurrent layers reads the padding from this
        if start > 0:  # otherwise the library would build a mask for every token
            mask = nn.functional.pad(mask, (0, self._mask.shape[1] - stop))[:, None, None]  # rows, 1, new, all
            minimum = torch.finfo(inputs.dtype).min
            mask = torch.zeros(mask.shape, dtype=inputs.dtype, device=mask.device).masked_fill(~mask, minimum)
        states = self._model.language_model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=self._positions[:, start:stop],
            use_cache=True,
            **self._cache,
        ).last_hidden_state
        self._length = stop
        self.hidden = states[:, -1]


def position_ids_of(mask: Bool[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Return each token's position, counting only the tokens of the mask, from 0; padding has position 0."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def _language_model(architecture: dict[str, Any], tokens: int) -> Any:
    """Build an untrained language model without its output layer, for sequences of `tokens` tokens.

    Raises:
        ConfigError: the library cannot build the model, or the model is not causal, its context is too short, or its
            `forward` lacks a required input.
    """
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    except ImportError:
        raise ConfigError("insightar: language models need `pip install 'imtok[networks]'`") from None
    settings = dict(architecture)
    kind = settings.pop("model_type")
    try:
        model_config = AutoConfig.for_model(kind, **settings)
        model = AutoModel.from_config(model_config, trust_remote_code=False, dtype=torch.float32)
        embeddings = model.get_input_embeddings()
    except Exception as error:  # the library raises exceptions of any kind for invalid settings
        raise ConfigError(f"insightar: no language model can be made of this ({first_line(error)})") from None
    if not isinstance(embeddings, nn.Embedding):
        raise ConfigError(f"insightar: a {kind} has no embeddings of text tokens to read prompts with")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model_config, "is_decoder", False):
        raise ConfigError(f"insightar: a {kind} attends to later tokens; a causal language model is wanted")
    missing = {"inputs_embeds", "position_ids"} - inspect.signature(model.forward).parameters.keys()
    if missing:
        raise ConfigError(f"insightar: a {kind} takes no {min(missing)}, which prompts and pictures come in by")
    longest = min(length for length in _context_lengths(model_config) if length)
    if longest < tokens:
        raise ConfigError(f"insightar: prompt and picture have {tokens} tokens, this {kind} sees {longest} of them")
    return model


def _context_lengths(model_config: Any) -> list[int]:
    """Return the limits of context length in a model's config, in tokens; a very large number for each missing one."""
    names = ("max_position_embeddings", "n_positions", "sliding_window")
    return [getattr(model_config, name, None) or 1 << 40 for name in names]
