"""Generation of new captions of a class with a prompted causal language model of the transformers library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imtok.layers.collective import best_device
from imtok.pretrained.captioner import TOKENS_PER_WORD, without_thoughts
from imtok.pretrained.transformers_folder import open_model

PROMPT = (
    "These are captions of different images of {label}:\n\n{references}\n\n"
    "Write the caption of one more image of {label}, in the same style, using no more than {word_count} words. "
    "It must differ from all of the above. Output only the caption."
)
"""Our prompt; TexTok (section 4.1) states that a sampled list of captions served as reference, but gives no prompt."""


class CaptionWriter:
    """A language model that writes new captions of a class.

    Args:
        model: model loaded by transformers' `AutoModelForCausalLM`.
        tokenizer: tokenizer of that model.
        max_words: word limit that the prompt states; longer captions are truncated to it.
    """

    def __init__(self, model: Any, tokenizer: Any, max_words: int = 75) -> None:
        self.model, self.tokenizer, self.max_words = model.eval(), tokenizer, max_words

    @torch.no_grad()
    def write(self, label: str, references: Sequence[str], seed: int) -> str:
        """Return one caption, the same for the same arguments; empty if the model does not finish its reasoning.

        Args:
            label: name of the class.
            references: captions of pictures of the class.
            seed: random seed of the sampling.
        """
        prompt = self.prompt(label, references)
        if getattr(self.tokenizer, "chat_template", None):
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                enable_thinking=False,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self.tokenizer(f"{prompt}\n\n", return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            new = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=TOKENS_PER_WORD * self.max_words,
                do_sample=True,
                top_p=0.95,
            )
        text = self.tokenizer.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(without_thoughts(text).split()[: self.max_words])

    def prompt(self, label: str, references: Sequence[str]) -> str:
        """Return the prompt for a new caption of class `label`."""
        listed = "\n".join(f"- {reference}" for reference in references)
        return PROMPT.format(label=label.replace("_", " "), references=listed, word_count=self.max_words)


def load_writer(folder: Path, max_words: int = 75) -> CaptionWriter:
    """Load a writer from a folder with config.json, the tokenizer's files and *.safetensors; no code in it is executed.

    Raises:
        ConfigError: the folder does not hold such a model (one-line message).
    """
    model, tokenizer = open_model(folder, "AutoModelForCausalLM", "AutoTokenizer", "model that writes text")
    return CaptionWriter(model.to(best_device()), tokenizer, max_words)
