"""Sampling codes from a generator: cached decoding, guidance, temperature / top-k / top-p, per-image random streams.

The noise of image i depends on (seed, i, position, code) only, through a counter-based hash. So the sample does not
depend on the batch size, on the number of processes, or on how many images were drawn before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoregressive.config import Sampling
from autoregressive.guidance import Guidance, guide
from autoregressive.layers import KVCache
from autoregressive.models.gpt import GPT
from common import numerics
from common.errors import UserError

__all__ = ["check_num_tokens", "filter_logits", "generate", "gumbel_noise"]

@torch.inference_mode()
def generate(
    model: GPT,
    labels: Tensor,
    num_tokens: int | None = None,
    *,
    guidance: Guidance | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
    cache: KVCache | None = None,
    forced: Tensor | None = None,
    keep: Tensor | None = None,
    on_codes: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Draw codes for labels (B,): int64 (B, num_tokens).

    num_tokens: at most the model's (the default); guidance ratios refer to it. image_ids: int64 (B,) global image
    numbers, default 0..B-1. cache: from `model.new_cache(rows)` with rows >= B, 2B under guidance, to reuse one
    allocation over many batches. forced (B, num_tokens) with keep, bool of that shape: where keep is True the forced
    code is taken instead of the drawn one, and later codes are drawn in its presence. on_codes: called after each place
    with the codes so far, (B, 1) to (B, num_tokens).
    Raises: UserError if the model cannot make so many codes.
    """
    guidance, sampling = guidance or Guidance(), sampling or Sampling()
    num_tokens = check_num_tokens(model, num_tokens)
    device, batch = labels.device, len(labels)
    image_ids = torch.arange(batch, device=device) if image_ids is None else image_ids.to(device)
    scales = guidance.scales(num_tokens)
    null = model.null(labels)
    both = torch.cat((labels, null))
    guided = [scale != 1.0 for scale in scales]
    needed = 2 * batch if any(guided) else batch
    cache = cache or model.new_cache(needed, num_tokens)
    if cache.rows < needed or cache.length < num_tokens:
        raise ValueError(f"cache of {cache.rows} x {cache.length} is too small for {needed} x {num_tokens}")
    unconditional, filled = cache.part(batch, 2 * batch), 0
    codes = torch.empty(batch, num_tokens, dtype=torch.int64, device=device)
    for place, scale in enumerate(scales):
        together = guided[place] and filled == place
        rows = both if together else labels
        if place == 0:
            logits = model.prefill(rows, cache)
        else:
            logits = model.decode_one(codes[:, place - 1].repeat(len(rows) // batch), place, cache, rows)
        if guided[place]:
            if not together:  # The unguided places before were spared the unconditional half: one pass makes it up.
                logits = torch.cat((logits, model.prefill(null, unconditional, codes[:, :place])))
            filled = place + 1
            logits = guide(logits, scale)
        codes[:, place] = _draw(logits, sampling, seed, image_ids, place)
        if forced is not None:
            codes[:, place] = torch.where(keep[:, place], forced[:, place], codes[:, place])
        if on_codes:
            on_codes(codes[:, : place + 1])
    return codes


def check_num_tokens(model: GPT, num_tokens: int | None) -> int:
    """How many codes to make; None means all. Raises: UserError if the model cannot make so many."""
    if num_tokens is not None and not 1 <= num_tokens <= model.num_tokens:
        raise UserError(f"num_tokens is {num_tokens}; this generator makes at most {model.num_tokens} (--num-tokens)")
    return num_tokens or model.num_tokens


def _draw(logits: Tensor, sampling: Sampling, seed: int, image_ids: Tensor, place: int) -> Tensor:
    if sampling.greedy:
        return logits.argmax(-1)
    logits = filter_logits(logits, sampling)
    return (logits + gumbel_noise(logits.shape[-1], seed, image_ids, place)).argmax(-1)


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """logits (B, K) / temperature, removed codes at -inf. Top-k first, ties with the k-th survive; then top-p.

    Top-p removes a code when the more likely ones together already exceed p, so the best always stays.
    """
    logits = logits / max(sampling.temperature, 1e-5)
    if sampling.top_k > 0:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        removed = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before > sampling.top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    return logits


def gumbel_noise(codebook_size: int, seed: int, image_ids: Tensor, place: int) -> Tensor:
    """Standard Gumbel noise float32 (B, codebook_size), a pure function of (seed, image_ids (B,), place, code).

    logits + noise, arg-max, is a draw from softmax(logits).
    Source: Gumbel-max, Maddison et al. 2014.
    """
    key = numerics.mix(numerics.row_keys(seed, image_ids) + place)
    return numerics.uniform(numerics.bits_of(key, codebook_size)).log_().neg_().log_().neg_()
