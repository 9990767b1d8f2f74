"""Attention for processors: sequence by sequence, so that the scores stay in the cache, and no padding is attended to.

torch's own kernel (`scaled_dot_product_attention`) is made for heads of 64 numbers and more; with the 32 of small
encoders it reaches a quarter of what matrix products do. Where this one does not apply, that one is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

if TYPE_CHECKING:
    from torch import Tensor

NAME = "nightshift"

SMALL_HEAD = 32
"""Numbers; with more in a head torch's own kernel is the faster one."""

MAX_TOKENS = 1024
"""The scores of one sequence are tokens x tokens for each head; beyond this they leave the cache."""


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **more: Any,
) -> Tensor | None:
    """The mask of transformers' interface, bool [n, 1, tokens, tokens]; None where nothing is masked.

    Where nothing but padding is masked, it is one row of n that is seen as many: by that `attend` knows it.
    """
    plain = mask_function is bidirectional_mask_function and allow_is_bidirectional_skip and q_length == kv_length
    if plain and attention_mask is not None and attention_mask.shape == (batch_size, kv_length):
        theirs = attention_mask.to(torch.bool)
        return None if bool(theirs.all()) else theirs[:, None, None, :].expand(batch_size, 1, q_length, kv_length)
    made: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **more,
    )
    return made


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The attention of transformers' interface: query, key, value [n, heads, tokens, size] to [n, tokens, heads, size].

    attention_mask: as `make_mask` made it. Padding is at the end of each sequence, as the engine's batches have it.
    """
    count, heads, tokens, size = query.shape
    alike = query.shape == key.shape == value.shape
    plain = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.stride(2) == 0)
    if size > SMALL_HEAD or tokens > MAX_TOKENS or not alike or not plain or getattr(module, "is_causal", False):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return found
    lengths = [tokens] * count if attention_mask is None else attention_mask[:, 0, 0].sum(-1).tolist()
    query = query * (size**-0.5 if scaling is None else scaling)
    result = torch.empty((count, tokens, heads, size), dtype=query.dtype)
    for row, length in enumerate(lengths):
        scores = torch.bmm(query[row, :, :length], key[row, :, :length].transpose(1, 2))
        torch.softmax(scores, -1, out=scores)
        result[row, :length] = torch.bmm(scores, value[row, :, :length]).transpose(0, 1)
        result[row, length:] = 0.0
    return result, None
