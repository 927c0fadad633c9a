"""Sampling as the original projects do it, on our weights: the baseline of the sampling benchmark.

Both halves of guidance run at every code, every batch allocates a new cache of full length, attention reads all of it
through a mask, and codes are drawn by softmax and multinomial. Eager, in the dtype of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.guidance import Guidance, guide
from autoregressive.models.gpt import GPT

__all__ = ["plain_codes"]


@torch.no_grad()
def plain_codes(model: GPT, labels: Tensor, num_tokens: int, guidance: Guidance) -> Tensor:
    """labels (B,) -> codes int64 (B, num_tokens), drawn with torch's global generator."""
    rows = torch.cat((labels, model.null(labels)))
    length = -(-(num_tokens + 1) // 8) * 8
    shape = (len(rows), model.heads, length, model.width // model.heads)
    like = {"device": labels.device, "dtype": model.output.weight.dtype}
    caches = [(torch.zeros(shape, **like), torch.zeros(shape, **like)) for _ in model.layers]
    causal = torch.tril(torch.ones(length, length, dtype=torch.bool, device=labels.device))
    codes: list[Tensor] = []
    for place, scale in enumerate(guidance.scales(num_tokens)):
        embedded = model.tok_embeddings(codes[-1].repeat(2)).unsqueeze(1) if codes else model.cls_embedding(rows)
        x = embedded + model.positional_embedding[place]
        for block, cache in zip(model.layers, caches, strict=True):
            x = x + _attention(block.attention, block.attention_norm(x), cache, place, causal[place])
            x = x + block.feed_forward(block.ffn_norm(x))
        logits = guide(model.output(model.norm(x))[:, -1].float(), scale)
        codes.append(torch.multinomial(F.softmax(logits, dim=-1), num_samples=1).squeeze(1))
    return torch.stack(codes, dim=1)


def _attention(layer: torch.nn.Module, x: Tensor, cache: tuple[Tensor, Tensor], place: int, shown: Tensor) -> Tensor:
    query, key, value = layer.wqkv(x).view(len(x), 1, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    keys, values = cache
    keys[:, :, place : place + 1], values[:, :, place : place + 1] = key, value
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=shown[None, None, None])
    return layer.wo(mixed.transpose(1, 2).reshape(x.shape))
