"""Text encoders: token-level states and pooled embeddings of captions."""

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
    """A frozen transformer text encoder.

    Args:
        model: an encoder of the transformers library.
        tokenizer: tokenizer of the tokenizers library, configured with the model's padding and special tokens.
        dim: dimension of the model's states.
        longest: maximum text length in tokens for which the model has positions; None: no limit.
    """

    def __init__(self, model: Any, tokenizer: Any, dim: int, longest: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.embed_dim = dim
        self.longest = longest

    def check_length(self, max_tokens: int) -> None:
        """Check that the model can encode texts truncated to `max_tokens`.

        Raises:
            ConfigError: `max_tokens` leaves no room for text besides the special tokens, or exceeds the model's limit.
        """
        least = self.tokenizer.num_special_tokens_to_add(False) + 1
        if max_tokens < least or (self.longest is not None and max_tokens > self.longest):
            most = "" if self.longest is None else f" and at most {self.longest}"
            raise ConfigError(f"{self.name}: reads at least {least}{most} tokens of a text, not {max_tokens}")

    def length(self, text: str) -> int:
        """Return the number of tokens of a text, including special tokens."""
        self.tokenizer.no_truncation()
        return len(self.tokenizer.encode(text).ids)

    def encode(
        self, texts: Sequence[str], max_tokens: int = 128
    ) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        """Return the states of the last layer in fp32, and a mask that is False for padding.

        Args:
            texts: texts of any lengths; the outputs are padded to the longest.
            max_tokens: length to which longer texts are truncated.

        Raises:
            ConfigError: see `check_length`.
        """
        self.check_length(max_tokens)
        device = next(self.model.parameters()).device
        self.tokenizer.enable_truncation(max_tokens)
        encodings = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings], device=device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=device)
        with torch.autocast(device.type, enabled=False):  # identical states in training and inference
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float(), mask.bool()

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return one L2-normalized vector per text: the mean of its tokens' states, as in sentence-transformers."""
        states, mask = self.encode(texts, max_tokens=256)
        shares = mask / mask.sum(1, keepdim=True)
        return F.normalize((states * shares[:, :, None]).sum(1), dim=1)


def load_minilm(weights: Path, tokenizer: Path) -> TextEncoder:
    """Load all-MiniLM-L6-v2 (384 channels, 6 layers)."""
    from transformers import BertConfig, BertModel

    size: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536}
    config = BertConfig(num_hidden_layers=6, num_attention_heads=12, **size)
    model = BertModel(config, add_pooling_layer=False)
    load_named(model, weights, ignored=("pooler.", "embeddings.position_ids"))
    return TextEncoder(model, _read_tokenizer(tokenizer), config.hidden_size, config.max_position_embeddings)


def load_t5(folder: Path) -> TextEncoder:
    """Load the encoder of a T5 from a folder in the transformers library's layout (TexTok, section 4.1).

    Weights stored in bf16 stay in bf16; all others run in fp32, because T5 overflows in fp16.

    Args:
        folder: folder with config.json, the tokenizer (tokenizer.json or spiece.model), and the weights in one or
            several .safetensors or .bin files; from .bin files only tensors are read.

    Raises:
        ConfigError: the folder holds another model, or a part is missing (one-line message).
    """
    what = "T5 in transformers' layout"
    config = open_part("AutoConfig", folder, what)
    if config.model_type not in ("t5", "mt5"):  # UMT5 would load, but without its position biases
        raise ConfigError(f"{folder}: no {what}, but of the type {config.model_type}")
    weights = {"dtype": "auto", "weights_only": True, "output_loading_info": True}
    model, loading_info = open_part("T5EncoderModel", folder, what, **weights)
    if loading_info["missing_keys"]:
        raise ConfigError(f"{folder}: not a whole T5 encoder; {sorted(loading_info['missing_keys'])[0]} is missing")
    if model.dtype == torch.float16:
        model = model.float()
    return TextEncoder(model, _t5_tokenizer(folder, what), config.d_model)


def _t5_tokenizer(folder: Path, what: str) -> Any:
    """Load the tokenizer from tokenizer.json, or convert spiece.model, the only tokenizer file of Google's own folders.

    Raises:
        ConfigError: neither file can be read.
    """
    file = folder / "tokenizer.json"
    if file.exists() or not (folder / "spiece.model").exists():
        return _read_tokenizer(file)
    return _with_padding(open_part("AutoTokenizer", folder, what).backend_tokenizer)


def _read_tokenizer(file: Path) -> Any:
    """Load a tokenizer from a tokenizer.json file.

    Raises:
        ConfigError: the file is missing, or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file}: not a tokenizer ({first_line(error)})") from None
    return _with_padding(tokenizer)


def _with_padding(tokenizer: Any) -> Any:
    """Let a tokenizer pad to the longest text of a batch, and return it."""
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>") or 0)
    return tokenizer
