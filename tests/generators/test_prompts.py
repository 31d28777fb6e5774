"""Prompts to token ids: bytes, a language model's own tokenizer, and its chat format."""

import pytest
from transformers import PreTrainedTokenizerFast

from imtok.config import ConfigError
from imtok.generators.prompts import ByteTokenizer, PretrainedPromptTokenizer
from tokenizers import Tokenizer as Fast
from tokenizers import models


class Tokenizer:
    chat_template = "there is one"
    bos_token_id: int | None = 7

    def __len__(self) -> int:
        return 256

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
        return f"[{messages[0]['content']}]:"

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_truncated_prompt_keeps_the_end_of_the_chat_format() -> None:
    prompts = PretrainedPromptTokenizer(Tokenizer(), chat=True, max_tokens=8)
    ids, mask = prompts.encode(["a red sign", "sea"])
    assert ["".join(map(chr, row[kept].tolist())) for row, kept in zip(ids, mask, strict=True)] == [
        "[a red]:",
        "[sea]:",
    ]
    with pytest.raises(ConfigError, match="13 tokens, the model reads 8"):
        prompts.check("a red sign")
    with pytest.raises(ConfigError, match="the chat format alone has 3 tokens, max_prompt_tokens is 3"):
        PretrainedPromptTokenizer(Tokenizer(), chat=True, max_tokens=3)


def test_plain_prompts_use_the_tokenizers_ids_and_are_never_empty() -> None:
    plain = Tokenizer()
    ids, mask = PretrainedPromptTokenizer(plain, chat=False, max_tokens=8).encode(["", "sea", None])
    assert ids.tolist() == [[0, 0, 7], [*map(ord, "sea")], [0, 0, 7]]
    assert mask.tolist() == [[False, False, True], [True] * 3, [False, False, True]]
    plain.bos_token_id = None
    assert PretrainedPromptTokenizer(plain, chat=False, max_tokens=8).ids("") == [0]


def test_byte_prompts_begin_with_a_start_id() -> None:
    assert ByteTokenizer(8).ids("é") == [256, 0xC3, 0xA9]


def test_chat_format_with_the_current_date_uses_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = {word: index for index, word in enumerate(["<unk>", "a", "sign"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Fast(models.WordLevel(vocabulary, unk_token="<unk>")))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    rendered: list[str] = []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda *a, **k: rendered.append(render(*a, **k)) or rendered[-1]
    )
    PretrainedPromptTokenizer(tokenizer, chat=True, max_tokens=16).ids("a sign")
    assert set(rendered) == {"01 Jan 2025 ", "01 Jan 2025 a sign"}
