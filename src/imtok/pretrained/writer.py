"""New captions of a class by a causal language model: a folder in transformers' layout and a prompt."""

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
"""Ours; TexTok (section 4.1) says that such captions were written with a sampled list as reference, not how."""


class CaptionWriter:
    """Invents captions.

    Args:
        model: of transformers' `AutoModelForCausalLM`.
        tokenizer: of the same model.
        max_words: longer captions are cut; the prompt asks for no more.
    """

    def __init__(self, model: Any, tokenizer: Any, max_words: int = 75) -> None:
        self.model, self.tokenizer, self.max_words = model.eval(), tokenizer, max_words

    @torch.no_grad()
    def write(self, label: str, references: Sequence[str], seed: int) -> str:
        """One caption, the same for the same arguments; empty if the model has not come to it.

        Args:
            label: the class.
            references: captions of pictures of the class.
            seed: another seed, another caption.
        """
        asked = self.prompt(label, references)
        if getattr(self.tokenizer, "chat_template", None):
            given = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": asked}],
                add_generation_prompt=True,
                enable_thinking=False,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            given = self.tokenizer(f"{asked}\n\n", return_tensors="pt")
        given = given.to(self.model.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            new = self.model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                max_new_tokens=TOKENS_PER_WORD * self.max_words,
                do_sample=True,
                top_p=0.95,
            )
        said = self.tokenizer.decode(new[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(without_thoughts(said).split()[: self.max_words])

    def prompt(self, label: str, references: Sequence[str]) -> str:
        """What the model is asked."""
        listed = "\n".join(f"- {reference}" for reference in references)
        return PROMPT.format(label=label.replace("_", " "), references=listed, word_count=self.max_words)


def load_writer(folder: Path, max_words: int = 75) -> CaptionWriter:
    """A writer from a folder with config.json, the tokenizer's files and *.safetensors; nothing in it is executed.

    Raises:
        ConfigError: the folder holds something else; one line.
    """
    model, tokenizer = open_model(folder, "AutoModelForCausalLM", "AutoTokenizer", "model that writes text")
    return CaptionWriter(model.to(best_device()), tokenizer, max_words)
