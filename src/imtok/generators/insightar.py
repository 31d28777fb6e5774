"""InsightAR: a language model reads the prompt and goes on in the codes of a picture (InsightTok, section 3.3)."""

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

    The defaults' language model has DeepSeek-LLM's shape, 6.9B, as Janus-Pro's; the codes are InsightTok's at 512 px.
    """

    kind: Literal["insightar"] = "insightar"
    codebook_sizes: tuple[int, ...] = (16_384,)
    codebook_dims: tuple[int, ...] = (256,)
    """Channels of each codebook's vectors, which the adapter reads."""
    token_shape: tuple[int, ...] = (32, 32)
    language_model: str = ""
    """Whose weights and tokenizer a run begins with: a folder, an id in the hub's local cache, or a name behind the
    registry (language_model/smollm2); its architecture is then taken too. Empty: untrained weights."""
    architecture: dict[str, Any]
    """The language model as its config.json describes it in the transformers library; `model_type` says which."""
    prompt_format: PromptFormat = "chat"
    max_prompt_tokens: int = 512
    condition_dropout: float = 0.1
    """Share of prompts that are left empty in training, for guidance. The paper does not say; Janus-Pro's value is not
    verified either."""
    head: HeadKind = "mlp"
    """Janus-Pro's is `mlp`: two linear layers with GELU between."""
    head_depth: int = 1
    """Blocks of a factorized head."""
    code_similarity: bool = False
    """Whether a code's logit also has a part that is linear in its codebook vector, so that what is learned of a code
    serves those that are like it. Deviation: the paper's head has weights of its own for each code, which a small model
    from scratch learns slowly."""
    grid_embedding: bool = False
    """Whether every token of the picture also carries learned vectors of the row and the column of the place that comes
    next. Deviation: the paper has none; the positions of a language model are a single line, in which one from scratch
    has to find the columns."""

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
    """[prompt, start of image, adapter(code 1), …]: the language model's state at each of them tells the next code.

    The adapter reads the tokenizer's own codebook vectors (`adopt`); they do not train.

    Deviation: Janus-Pro's unconditional prompt keeps its first and last token and pads between; here it is the empty
    prompt in the same format.

    Args:
        config: of the whole.
        prompt_tokenizer: of the prompts.
    """

    conditioned_on = "prompts"

    def __init__(self, config: InsightARConfig, prompt_tokenizer: PromptTokenizer) -> None:
        super().__init__()
        self.config, self.prompt_tokenizer = config, prompt_tokenizer
        self.codebook_sizes, self.tokens = config.codebook_sizes, math.prod(config.token_shape)
        self.language_model = _language_model(config.architecture, config.max_prompt_tokens + 1 + self.tokens)
        known, dim = self.language_model.get_input_embeddings().weight.shape
        if prompt_tokenizer.vocabulary > known:
            raise ConfigError(
                f"insightar: prompts have {prompt_tokenizer.vocabulary} ids, the language model knows {known}"
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
        similar = config.codebook_dims if config.code_similarity else ()
        self.similarity = nn.ModuleList(nn.Linear(dim, channels, bias=False) for channels in similar)
        sides = config.token_shape if config.grid_embedding else ()
        self.grid = nn.ParameterList(torch.randn(side, dim) * _GRID_STD for side in sides)

    @torch.no_grad()
    def init_from_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take over the tokenizer's codebook vectors."""
        for index, size in enumerate(self.codebook_sizes):
            codes = torch.zeros(1, size, len(self.codebook_sizes), dtype=torch.long)
            codes[0, :, index] = torch.arange(size)
            vectors = tokenizer.split(tokenizer.lookup(codes.to(tokenizer.device)))[index][0]
            self.get_buffer(f"codebook_{index}").copy_(vectors)

    def forward(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        prompts, there = self.prompt(conditions)
        told = torch.cat([prompts, self.start(len(codes)), self.adapt(codes[:, :-1], first=1)], dim=1)
        seen = torch.cat([there, there.new_ones(len(codes), codes.shape[1])], dim=1)
        states = self.language_model(
            inputs_embeds=told, attention_mask=seen, position_ids=places(seen), use_cache=False
        ).last_hidden_state
        embedded = self.embedding(codes) if self.embedding.tables else None
        hidden = states[:, prompts.shape[1] :]
        logits = self.head(hidden, embedded)
        return tuple(one + self.shared_logits(hidden, index) for index, one in enumerate(logits))

    def shared_logits(self, hidden: Float[Tensor, "*places dim"], codebook: int) -> Float[Tensor, "*places _"] | float:
        if not self.similarity:
            return 0.0
        vectors, found = self.get_buffer(f"codebook_{codebook}"), self.similarity[codebook](hidden)
        return found @ (vectors.T * vectors.shape[1] ** 0.5).to(found.dtype)  # of unit length: entries of 1

    def prompt(self, conditions: Conditions) -> tuple[Float[Tensor, "batch length dim"], Bool[Tensor, "batch length"]]:
        """Embedded prompts and which places are there; long ones are cut, and in training some are left empty."""
        if self.training:
            conditions = drop_conditions(conditions, self.config.condition_dropout)
        ids, there = self.prompt_tokenizer.encode(conditions)
        embed = self.language_model.get_input_embeddings()
        return embed(ids.to(self.device)), there.to(self.device)

    def resolve(self, condition: str | None) -> str | None:
        self.prompt_tokenizer.check(condition or "")
        return condition

    def start(self, rows: int) -> Float[Tensor, "rows 1 dim"]:
        """The start-of-image token."""
        return (self.start_of_image + self.next_places(0, 1)).expand(rows, 1, -1)

    def adapt(self, codes: Int[Tensor, "batch places codebooks"], first: int) -> Float[Tensor, "batch places dim"]:
        """Codes as the language model sees them; after the first of them comes place number `first`."""
        vectors = [self.get_buffer(f"codebook_{i}")[code] for i, code in enumerate(codes.unbind(2))]
        return self.adapter(torch.cat(vectors, dim=2).to(self.dtype)) + self.next_places(first, first + codes.shape[1])

    def next_places(self, first: int, stop: int) -> Float[Tensor, "places dim"]:
        """What tokens carry of the places that come next, counted row by row from 0; zeros without `grid_embedding`."""
        numbers = torch.arange(first, stop, device=self.device)
        found = torch.zeros(len(numbers), len(self.start_of_image), device=numbers.device, dtype=self.dtype)
        for axis, vectors in enumerate(self.grid):
            below = math.prod(self.config.token_shape[axis + 1 :])
            found = found + vectors[numbers // below % len(vectors)]
        return found

    def begin(self, conditions: Conditions) -> Session:
        return _InsightARSession(self, conditions)

    def stages(self) -> list[nn.Module]:
        """The language model's layers, as the transformers library cuts it up, and a factorized head's blocks."""
        layers = set(self.language_model._no_split_modules or ())
        return [part for part in self.modules() if isinstance(part, Block) or type(part).__name__ in layers]

    def compile_parts(self) -> None:
        """torch.compile for each of the language model's layers, and a factorized head's blocks."""
        for stage in self.stages():
            stage.compile()

    def set_grad_checkpointing(self, on: bool) -> None:
        super().set_grad_checkpointing(on)  # the head's
        model, what = self.language_model, "enable" if on else "disable"
        renamed = getattr(model, f"activation_checkpointing_{what}", None)  # in transformers 5
        try:
            (renamed or getattr(model, f"gradient_checkpointing_{what}"))()
        except ValueError as error:
            raise ConfigError(f"training: gradient_checkpointing: {first_line(error)}") from None


class _InsightARSession(Session):
    def __init__(self, model: InsightAR, conditions: Conditions) -> None:
        from transformers import StaticCache

        self._model = model
        prompts, there = model.prompt(conditions)
        rows, length = there.shape
        cache = StaticCache(config=model.language_model.config, max_cache_len=length + model.tokens)
        known = inspect.signature(model.language_model.forward).parameters
        self._cache = {"cache" if "cache" in known else "past_key_values": cache}  # renamed in transformers 5
        self._there = torch.cat([there, there.new_ones(rows, model.tokens)], dim=1)
        self._places = places(self._there)
        self._done = self._drawn = 0
        self._see(torch.cat([prompts, model.start(rows)], dim=1))

    def advance(self, codes: Int[Tensor, "rows codebooks"]) -> None:
        self._drawn += 1
        self._see(self._model.adapt(codes[:, None], self._drawn))

    def _see(self, told: Float[Tensor, "rows new dim"]) -> None:
        start, stop = self._done, self._done + told.shape[1]
        mask = self._there[:, :stop]  # a model with recurrent layers looks for padding here
        if start > 0:  # the library would make a mask of its own for every token
            mask = nn.functional.pad(mask, (0, self._there.shape[1] - stop))[:, None, None]  # rows, 1, new, all
            unseen = torch.finfo(told.dtype).min
            mask = torch.zeros(mask.shape, dtype=told.dtype, device=mask.device).masked_fill(~mask, unseen)
        states = self._model.language_model(
            inputs_embeds=told,
            attention_mask=mask,
            position_ids=self._places[:, start:stop],
            use_cache=True,
            **self._cache,
        ).last_hidden_state
        self._done = stop
        self.hidden = states[:, -1]


def places(there: Bool[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Each token's number among those that are there, from 0; what is not there has 0."""
    return (there.long().cumsum(1) - 1).clamp_min(0)


def _language_model(architecture: dict[str, Any], tokens: int) -> Any:
    """An untrained language model without its head, for so many tokens.

    Raises:
        ConfigError: the library knows no such model, or it is not causal, too short, or lacks an input that is needed.
    """
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    except ImportError:
        raise ConfigError("insightar: language models need `pip install 'imtok[networks]'`") from None
    settings = dict(architecture)
    kind = settings.pop("model_type")
    try:
        shape = AutoConfig.for_model(kind, **settings)
        model = AutoModel.from_config(shape, trust_remote_code=False, dtype=torch.float32)
        embeddings = model.get_input_embeddings()
    except Exception as error:  # the library may stumble over wrong settings in any way
        raise ConfigError(f"insightar: no language model can be made of this ({first_line(error)})") from None
    if not isinstance(embeddings, nn.Embedding):
        raise ConfigError(f"insightar: a {kind} has no embeddings of text tokens to read prompts with")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(shape, "is_decoder", False):
        raise ConfigError(f"insightar: a {kind} looks at what comes later; a causal language model is wanted")
    missing = {"inputs_embeds", "position_ids"} - inspect.signature(model.forward).parameters.keys()
    if missing:
        raise ConfigError(f"insightar: a {kind} takes no {min(missing)}, which prompts and pictures come in by")
    longest = min(length for length in _spans(shape) if length)
    if longest < tokens:
        raise ConfigError(f"insightar: prompt and picture have {tokens} tokens, this {kind} sees {longest} of them")
    return model


def _spans(shape: Any) -> list[int]:
    """How far a model of this shape can look, as far as it says."""
    names = ("max_position_embeddings", "n_positions", "sliding_window")
    return [getattr(shape, name, None) or 1 << 40 for name in names]
