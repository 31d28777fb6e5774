"""Prompts as ids: bytes, a model's own tokenizer, its chat format."""

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

    def apply_chat_template(self, said: list[dict[str, str]], **options: object) -> str:
        return f"[{said[0]['content']}]:"

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_prompt_that_is_cut_keeps_the_end_of_its_format() -> None:
    prompts = PretrainedPromptTokenizer(Tokenizer(), chat=True, max_tokens=8)
    ids, there = prompts.encode(["a red sign", "sea"])
    assert ["".join(map(chr, row[seen].tolist())) for row, seen in zip(ids, there, strict=True)] == [
        "[a red]:",
        "[sea]:",
    ]
    with pytest.raises(ConfigError, match="13 tokens, the model reads 8"):
        prompts.check("a red sign")
    with pytest.raises(ConfigError, match="the chat format alone has 3 tokens, max_prompt_tokens is 3"):
        PretrainedPromptTokenizer(Tokenizer(), chat=True, max_tokens=3)


def test_a_plain_prompt_is_the_tokenizer_s_and_an_empty_one_is_not_nothing() -> None:
    plain = Tokenizer()
    ids, there = PretrainedPromptTokenizer(plain, chat=False, max_tokens=8).encode(["", "sea", None])
    assert ids.tolist() == [[0, 0, 7], [*map(ord, "sea")], [0, 0, 7]]
    assert there.tolist() == [[False, False, True], [True] * 3, [False, False, True]]
    plain.bos_token_id = None
    assert PretrainedPromptTokenizer(plain, chat=False, max_tokens=8).ids("") == [0]


def test_bytes_begin_with_an_id_of_their_own() -> None:
    assert ByteTokenizer(8).ids("é") == [256, 0xC3, 0xA9]


def test_a_chat_format_that_says_the_date_says_the_same_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {word: index for index, word in enumerate(["<unk>", "a", "sign"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Fast(models.WordLevel(words, unk_token="<unk>")))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    said: list[str] = []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: said.append(render(*a, **k)) or said[-1])
    PretrainedPromptTokenizer(tokenizer, chat=True, max_tokens=16).ids("a sign")
    assert set(said) == {"01 Jan 2025 ", "01 Jan 2025 a sign"}
