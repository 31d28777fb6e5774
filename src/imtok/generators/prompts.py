"""Prompts to token ids: bytes for small models, or the language model's own tokenizer in plain or chat format."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from imtok.config import ConfigError
from imtok.pretrained.transformers_folder import open_part

PromptFormat = Literal["bytes", "plain", "chat"]

Prompts = tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]
"""Token ids, padded on the left, and their mask (False for padding)."""

_FIXED_DATE = "{%- macro strftime_now(format) -%}01 Jan 2025{%- endmacro -%}"
"""Fixes the date for chat templates that contain the current one, so that a prompt has the same ids on every day."""
BYTES = 256
"""Id of the token that begins every prompt of bytes; the bytes themselves have the ids below it."""


class PromptTokenizer(ABC):
    """Turns prompts into token ids.

    Args:
        max_tokens: maximum number of tokens in a prompt.

    Attributes:
        vocabulary: number of ids.
    """

    vocabulary: int

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    @abstractmethod
    def ids(self, prompt: str) -> list[int]:
        """Return the prompt's ids in the model's format; at least one."""

    def check(self, prompt: str) -> None:
        """Check that a prompt would not be truncated.

        Raises:
            ConfigError: it is too long.
        """
        if (length := len(self.ids(prompt))) > self.max_tokens:
            raise ConfigError(
                f"prompt {prompt[:40]!r}…: {length} tokens, the model reads {self.max_tokens}; shorten it"
            )

    def truncated_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, truncated to at most `max_tokens`."""
        return self.ids(prompt)[: self.max_tokens]

    def encode(self, prompts: Sequence[str | None]) -> Prompts:
        """Return the ids of each prompt, truncated if it is too long; None is the empty prompt."""
        sequences = [self.truncated_ids(prompt or "") for prompt in prompts]
        length = max(map(len, sequences))
        padded = torch.tensor([[0] * (length - len(ids)) + ids for ids in sequences])
        mask = torch.tensor([[False] * (length - len(ids)) + [True] * len(ids) for ids in sequences])
        return padded, mask


class ByteTokenizer(PromptTokenizer):
    """Bytes of the UTF-8 encoding: 257 ids, and no out-of-vocabulary words."""

    vocabulary = BYTES + 1

    def ids(self, prompt: str) -> list[int]:
        return [BYTES, *prompt.encode()]


class PretrainedPromptTokenizer(PromptTokenizer):
    """A language model's own tokenizer.

    Args:
        tokenizer: tokenizer of the transformers library.
        chat: whether the prompt becomes a user's message in the model's chat format.
        max_tokens: maximum number of tokens in a prompt, including those that the format adds.

    Raises:
        ConfigError: `chat` is set, but the tokenizer has no chat format, or one that leaves no room for a prompt.
    """

    def __init__(self, tokenizer: Any, chat: bool, max_tokens: int) -> None:
        super().__init__(max_tokens)
        self._tokenizer, self._chat, self.vocabulary = tokenizer, chat, len(tokenizer)
        template = getattr(tokenizer, "chat_template", None)
        self._fixed_date_template = (
            _FIXED_DATE + template if isinstance(template, str) and "strftime_now" in template else None
        )
        if chat and not template:
            raise ConfigError("prompts: the language model has no chat format; take prompt_format plain")
        if chat and (frame := len(self.ids(""))) >= max_tokens:
            raise ConfigError(f"prompts: the chat format alone has {frame} tokens, max_prompt_tokens is {max_tokens}")

    def ids(self, prompt: str) -> list[int]:
        if not self._chat:
            ids = list(self._tokenizer(prompt)["input_ids"])
            first = self._tokenizer.bos_token_id
            return ids or [0 if first is None else first]
        messages = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(
            messages, chat_template=self._fixed_date_template, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # the template adds them

    def truncated_ids(self, prompt: str) -> list[int]:
        ids = self.ids(prompt)
        if self._chat and (excess := len(ids) - self.max_tokens) > 0:  # the tokens that end the format must stay
            prompt_ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = self.ids(self._tokenizer.decode(prompt_ids[:-excess]))
        return ids[: self.max_tokens]


def open_prompt_tokenizer(prompt_format: PromptFormat, max_tokens: int, home: Path | None) -> PromptTokenizer:
    """Create the tokenizer for a prompt format.

    Args:
        prompt_format: format of the prompts.
        max_tokens: maximum number of tokens in a prompt.
        home: folder with the language model's tokenizer, if the format needs it.

    Raises:
        ConfigError: the format needs a tokenizer, and the folder has none.
    """
    if prompt_format == "bytes":
        return ByteTokenizer(max_tokens)
    if home is None:
        raise ConfigError(f"prompts: the format {prompt_format} needs a language model's tokenizer")
    what = "tokenizer of a language model; --generator.language-model names one to begin with"
    tokenizer = open_part("AutoTokenizer", home, what)
    return PretrainedPromptTokenizer(tokenizer, prompt_format == "chat", max_tokens)
