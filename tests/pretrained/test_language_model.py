"""Language models in the registry: SmolLM2 loaded from its file, and folders that are rejected."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from imtok.config import ConfigError
from imtok.pretrained.language_model import load_language_model


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(needs) -> None:
    """With its output layer restored (tied to the embeddings), the model still answers correctly."""
    found = needs("language_model/smollm2")
    assert found.architecture["model_type"] == "llama"
    assert (found.architecture["hidden_size"], found.architecture["num_hidden_layers"]) == (576, 30)
    model = LlamaForCausalLM(found.model.config).eval()
    model.model = found.model.float()
    model.lm_head.weight = found.model.embed_tokens.weight
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = found.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = found.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    assert "Paris" in found.tokenizer.decode(answer[0, ids.shape[1] :])


def test_rejects_adapters_and_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no language model in transformers' layout"):
        load_language_model(tmp_path)
    for config in ('{"model_type": "llama", "hidden_size": "x"}', '{"model_type": "llama", "hidden_size": 8}'):
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "tokenizer.json").write_text('{"model": {"type": "none that is known"}}')
        with pytest.raises(ConfigError, match="no language model in transformers' layout"):
            load_language_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        load_language_model(tmp_path)
