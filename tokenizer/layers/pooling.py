"""The coarse-to-fine order of 1D tokens: which grid cells each token starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError


def multi_level_cells(num_tokens: int, height: int, width: int) -> Tensor:
    """Membership (N, H*W) in {0,1}: token i averages the cells of row i.

    Token 0 is the whole image; then level l = 0..log2(N)-1 splits it into 2^(l//2) rows by 2^((l+1)//2)
    columns, row-major, so the counts are 1, 1, 2, 4, ..., N/2. Source: GigaTok's multi-level query
    initialisation; spec tokenizer 1.6. Always made on the CPU: no checkpoint holds it, and a model that is built
    on the meta device must not lose it.

    Raises: UserError when N is no power of two or the grid does not divide.
    """
    with torch.device("cpu"):
        return _cells(num_tokens, height, width)


def _cells(num_tokens: int, height: int, width: int) -> Tensor:
    levels = num_tokens.bit_length() - 1
    if num_tokens != 2**levels:
        raise UserError(
            f"layout.num_tokens={num_tokens} is no power of two; multi-level queries need one (256, 128, 64, ...)"
        )
    rows = [torch.ones(1, height, width)]
    for level in range(levels):
        down, across = 2 ** (level // 2), 2 ** ((level + 1) // 2)
        if height % down or width % across:
            raise UserError(
                f"layout.num_tokens={num_tokens} needs a grid that divides into {down} x {across} blocks, "
                f"the image gives {height} x {width}; use fewer tokens or a larger image"
            )
        y = torch.arange(height) // (height // down)
        x = torch.arange(width) // (width // across)
        block = y[:, None] * across + x[None, :]
        rows.append((block[None] == torch.arange(down * across)[:, None, None]).float())
    return torch.cat(rows).flatten(1)
