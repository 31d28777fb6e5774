"""Text encoders: a caption to one vector a token, and to one vector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imtok.config import ConfigError, first_line
from imtok.pretrained.networks import FrozenNetwork, load_named
from imtok.pretrained.transformers_folder import open_part


class TextEncoder(FrozenNetwork):
    """A frozen transformer that reads text.

    Args:
        model: an encoder of the transformers library.
        tokenizer: of the tokenizers library; it cuts, pads and frames texts as the model wants.
        dim: of the model's states.
        longest: text in tokens that the model has positions for; None: any.
    """

    def __init__(self, model: Any, tokenizer: Any, dim: int, longest: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.embed_dim = dim
        self.longest = longest

    def check_length(self, max_tokens: int) -> None:
        """Whether texts can be cut to this length.

        Raises:
            ConfigError: it leaves no room for a word between the tokens that frame each text, or is too long.
        """
        least = self.tokenizer.num_special_tokens_to_add(False) + 1
        if max_tokens < least or (self.longest is not None and max_tokens > self.longest):
            most = "" if self.longest is None else f" and at most {self.longest}"
            raise ConfigError(f"{self.name}: reads at least {least}{most} tokens of a text, not {max_tokens}")

    def length(self, text: str) -> int:
        """Tokens of a text, with those that frame it."""
        self.tokenizer.no_truncation()
        return len(self.tokenizer.encode(text).ids)

    def encode(
        self, texts: Sequence[str], max_tokens: int = 128
    ) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        """States of the last layer in fp32, and which of them are not padding.

        Args:
            texts: any; as many tokens come back as the longest has.
            max_tokens: what is longer is cut.

        Raises:
            ConfigError: see `check_length`.
        """
        self.check_length(max_tokens)
        device = next(self.model.parameters()).device
        self.tokenizer.enable_truncation(max_tokens)
        read = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([one.ids for one in read], device=device)
        mask = torch.tensor([one.attention_mask for one in read], device=device)
        with torch.autocast(device.type, enabled=False):  # the same states in training and afterwards
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float(), mask.bool()

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """One vector of length 1 a text: the mean of its tokens' states, as sentence-transformers takes it."""
        states, mask = self.encode(texts, max_tokens=256)
        shares = mask / mask.sum(1, keepdim=True)
        return F.normalize((states * shares[:, :, None]).sum(1), dim=1)


def load_minilm(weights: Path, tokenizer: Path) -> TextEncoder:
    """all-MiniLM-L6-v2: 384 channels, 6 layers."""
    from transformers import BertConfig, BertModel

    size: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536}
    config = BertConfig(num_hidden_layers=6, num_attention_heads=12, **size)
    model = BertModel(config, add_pooling_layer=False)
    load_named(model, weights, ignored=("pooler.", "embeddings.position_ids"))
    return TextEncoder(model, _read_tokenizer(tokenizer), config.hidden_size, config.max_position_embeddings)


def load_t5(folder: Path) -> TextEncoder:
    """The encoder half of a T5 from a folder in the transformers library's layout (TexTok, section 4.1).

    Weights that the folder holds in bf16 stay so; all others run in fp32, for T5 overflows in fp16.

    Args:
        folder: config.json, the tokenizer (tokenizer.json or spiece.model), and the weights in one or several
            .safetensors or .bin files; of the latter tensors alone are read.

    Raises:
        ConfigError: something else is in it, or something is missing; one line.
    """
    what = "T5 in transformers' layout"
    config = open_part("AutoConfig", folder, what)
    if config.model_type not in ("t5", "mt5"):  # UMT5's weights would fit, without its position biases
        raise ConfigError(f"{folder}: no {what}, but of the type {config.model_type}")
    weights = {"dtype": "auto", "weights_only": True, "output_loading_info": True}
    model, found = open_part("T5EncoderModel", folder, what, **weights)
    if found["missing_keys"]:
        raise ConfigError(f"{folder}: not a whole T5 encoder; {sorted(found['missing_keys'])[0]} is missing")
    if model.dtype == torch.float16:
        model = model.float()
    return TextEncoder(model, _t5_tokenizer(folder, what), config.d_model)


def _t5_tokenizer(folder: Path, what: str) -> Any:
    """From tokenizer.json, or made of spiece.model, which is all that Google's own folders have.

    Raises:
        ConfigError: neither can be read.
    """
    file = folder / "tokenizer.json"
    if file.exists() or not (folder / "spiece.model").exists():
        return _read_tokenizer(file)
    return _padding(open_part("AutoTokenizer", folder, what).backend_tokenizer)


def _read_tokenizer(file: Path) -> Any:
    """The tokenizer in a file.

    Raises:
        ConfigError: no such file, or another kind of file.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file}: not a tokenizer ({first_line(error)})") from None
    return _padding(tokenizer)


def _padding(tokenizer: Any) -> Any:
    """The same tokenizer, which pads to the longest text of a batch."""
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>") or 0)
    return tokenizer
