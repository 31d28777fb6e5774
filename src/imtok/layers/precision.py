"""Where mixed precision ends: networks may answer in bf16, losses are summed in more."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["bf16", "fp32"]


def upcast(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values in fp32, or in their own type when that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
