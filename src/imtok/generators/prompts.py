"""Prompts to token ids: bytes for small models, or the language model's own tokenizer in its plain or chat format."""

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
"""Ids, padded on the left, and which of them are there."""

_ONE_DAY = "{%- macro strftime_now(format) -%}01 Jan 2025{%- endmacro -%}"
"""For chat formats that say what day it is: a prompt means the same on every day."""
BYTES = 256
"""The id with which every prompt of bytes begins; the bytes themselves have the ids below."""


class PromptTokenizer(ABC):
    """Turns prompts into token ids.

    Args:
        max_tokens: of a prompt.

    Attributes:
        vocabulary: how many ids there are.
    """

    vocabulary: int

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    @abstractmethod
    def ids(self, prompt: str) -> list[int]:
        """At least one id, in the model's format."""

    def check(self, prompt: str) -> None:
        """Whether a prompt is read to its end.

        Raises:
            ConfigError: it is too long.
        """
        if (length := len(self.ids(prompt))) > self.max_tokens:
            raise ConfigError(
                f"prompt {prompt[:40]!r}…: {length} tokens, the model reads {self.max_tokens}; shorten it"
            )

    def truncated_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt, or of as much of it as there is room for."""
        return self.ids(prompt)[: self.max_tokens]

    def encode(self, prompts: Sequence[str | None]) -> Prompts:
        """The ids of each prompt, long ones cut; None is the empty one."""
        found = [self.truncated_ids(prompt or "") for prompt in prompts]
        length = max(map(len, found))
        padded = torch.tensor([[0] * (length - len(ids)) + ids for ids in found])
        there = torch.tensor([[False] * (length - len(ids)) + [True] * len(ids) for ids in found])
        return padded, there


class ByteTokenizer(PromptTokenizer):
    """UTF-8: 257 ids, no words to be unknown."""

    vocabulary = BYTES + 1

    def ids(self, prompt: str) -> list[int]:
        return [BYTES, *prompt.encode()]


class PretrainedPromptTokenizer(PromptTokenizer):
    """A language model's own tokenizer.

    Args:
        tokenizer: of the transformers library.
        chat: whether the prompt is what a user says in the model's chat format.
        max_tokens: of a prompt, with all that the format adds.

    Raises:
        ConfigError: a chat format is wanted, and the tokenizer has none, or one that leaves no room for a prompt.
    """

    def __init__(self, tokenizer: Any, chat: bool, max_tokens: int) -> None:
        super().__init__(max_tokens)
        self._tokenizer, self._chat, self.vocabulary = tokenizer, chat, len(tokenizer)
        template = getattr(tokenizer, "chat_template", None)
        self._dateless = _ONE_DAY + template if isinstance(template, str) and "strftime_now" in template else None
        if chat and not template:
            raise ConfigError("prompts: the language model has no chat format; take prompt_format plain")
        if chat and (frame := len(self.ids(""))) >= max_tokens:
            raise ConfigError(f"prompts: the chat format alone has {frame} tokens, max_prompt_tokens is {max_tokens}")

    def ids(self, prompt: str) -> list[int]:
        if not self._chat:
            found = list(self._tokenizer(prompt)["input_ids"])
            first = self._tokenizer.bos_token_id
            return found or [0 if first is None else first]
        said = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(
            said, chat_template=self._dateless, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # the template writes them itself

    def truncated_ids(self, prompt: str) -> list[int]:
        found = self.ids(prompt)
        if self._chat and (excess := len(found) - self.max_tokens) > 0:  # what the format ends with must stay
            words = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            found = self.ids(self._tokenizer.decode(words[:-excess]))
        return found[: self.max_tokens]


def open_prompt_tokenizer(prompt_format: PromptFormat, max_tokens: int, home: Path | None) -> PromptTokenizer:
    """The tokenizer of a format.

    Args:
        prompt_format: of the prompts.
        max_tokens: of a prompt.
        home: folder with the language model's tokenizer, where the format needs it.

    Raises:
        ConfigError: no tokenizer there.
    """
    if prompt_format == "bytes":
        return ByteTokenizer(max_tokens)
    if home is None:
        raise ConfigError(f"prompts: the format {prompt_format} needs a language model's tokenizer")
    what = "tokenizer of a language model; --generator.language-model names one to begin with"
    tokenizer = open_part("AutoTokenizer", home, what)
    return PretrainedPromptTokenizer(tokenizer, prompt_format == "chat", max_tokens)
