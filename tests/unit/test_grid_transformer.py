"""The grid tokenizers' transformer."""

from __future__ import annotations

import torch

from tokenizer.encoders.hybrid_2d import GridTransformer, GridTransformerConfig


def test_the_memory_of_a_qformer_layer_is_its_own_input() -> None:
    config = GridTransformerConfig(width=32, layers=3, heads=2, qformer=True)
    grid = GridTransformer(config, 4, 16, "encoder_embed")
    seen: list[tuple[torch.Tensor, ...]] = []
    for layer in grid.transformer:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given))
    grid.tokens(torch.randn(2, 16, 4, 4))
    assert all(torch.equal(queries, memory) for queries, memory, *_ in seen)
    assert not torch.equal(seen[0][0], seen[2][0])
