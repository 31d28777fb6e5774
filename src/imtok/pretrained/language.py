"""Text encoders: a caption to one vector a token, and to one vector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imtok.pretrained.networks import FrozenNetwork, load_named


class TextEncoder(FrozenNetwork):
    """A frozen transformer that reads text.

    Args:
        model: of the transformers library, without a pooling layer.
        tokenizer: of the tokenizers library; it cuts, pads and frames texts as the model wants.
        dim: of the model's states.
    """

    def __init__(self, model: Any, tokenizer: Any, dim: int) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.embed_dim = dim

    def encode(self, texts: Sequence[str]) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        """States of the last layer, and which of them are not padding; as many tokens as the longest text has."""
        device = next(self.model.parameters()).device
        read = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([one.ids for one in read], device=device)
        mask = torch.tensor([one.attention_mask for one in read], device=device)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """One vector of length 1 a text: the mean of its tokens' states, as sentence-transformers takes it."""
        states, mask = self.encode(texts)
        shares = mask / mask.sum(1, keepdim=True)
        return F.normalize((states * shares[:, :, None]).sum(1), dim=1)


def load_minilm(weights: Path, tokenizer: Path) -> TextEncoder:
    """all-MiniLM-L6-v2: 384 channels, 6 layers, up to 256 tokens (what is longer is cut)."""
    from transformers import BertConfig, BertModel

    from tokenizers import Tokenizer

    size: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536}
    config = BertConfig(num_hidden_layers=6, num_attention_heads=12, **size)
    model = BertModel(config, add_pooling_layer=False)
    load_named(model, weights, ignored=("pooler.", "embeddings.position_ids"))
    reader = Tokenizer.from_file(str(tokenizer))
    reader.enable_truncation(256)
    reader.enable_padding()
    return TextEncoder(model, reader, config.hidden_size)
