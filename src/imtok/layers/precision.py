"""Mixed precision: networks may output bf16, but losses are computed in at least fp32."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["bf16", "fp32"]


def upcast(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the values in fp32, or in their own dtype if that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
