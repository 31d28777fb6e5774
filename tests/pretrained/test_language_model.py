"""Language models in the registry: SmolLM2 out of its file, and what is refused."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from imtok.config import ConfigError
from imtok.pretrained.language_model import load_language_model


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(needs) -> None:
    """With its output layer put back, which shares the embeddings' weights, the model still answers."""
    found = needs("language_model/smollm2")
    assert found.architecture["model_type"] == "llama"
    assert (found.architecture["hidden_size"], found.architecture["num_hidden_layers"]) == (576, 30)
    model = LlamaForCausalLM(found.model.config).eval()
    model.model = found.model.float()
    model.lm_head.weight = found.model.embed_tokens.weight
    said = [{"role": "user", "content": "What is the capital of France?"}]
    asked = found.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    ids = found.tokenizer(asked, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    assert "Paris" in found.tokenizer.decode(answer[0, ids.shape[1] :])


def test_a_folder_without_a_model_and_an_adapter_are_refused(tmp_path: Path) -> None:
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
