"""The coarse-to-fine order of 1D tokens: which grid cells each token starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError

PYRAMIDS = ("multi_level", "haar")


def pooling(kind: str, num_tokens: int, grid: int) -> Tensor:
    """Weights (N, G*G) of the cells in each token's initial query.

    multi_level: token 0 is the mean of the whole image; then level l = 0..log2(N)-1 splits it into 2^(l//2) rows by
    2^((l+1)//2) columns of blocks, row-major, a token being the mean of its block, so the counts are
    1, 1, 2, 4, ..., N/2. Source: GigaTok's multi-level query initialisation; spec tokenizer 1.6.
    haar: the same blocks, but a token is the difference of its block's halves: with N = G*G the orthonormal Haar
    wavelet basis, which every prefix of reads as the image at a lower resolution and loses nothing at the end.

    Always made on the CPU: no checkpoint holds it, and a model that is built on the meta device must not lose it.

    Raises: UserError for another kind, when N is no power of two, or when the grid does not divide.
    """
    if kind not in PYRAMIDS:
        raise UserError(f"query_init got {kind!r}; expected one of {', '.join(PYRAMIDS)}")
    levels = num_tokens.bit_length() - 1
    if num_tokens != 2**levels:
        raise UserError(
            f"layout.num_tokens={num_tokens} is no power of two; multi-level queries need one (256, 128, 64, ...)"
        )
    with torch.device("cpu"):
        rows = [torch.ones(1, grid, grid)]
        for level in range(levels):
            blocks = _blocks(num_tokens, grid, 2 ** (level // 2), 2 ** ((level + 1) // 2))
            rows.append(blocks * _halves(num_tokens, grid, level) if kind == "haar" else blocks)
        cells = torch.cat(rows).flatten(1)
        return cells / (cells.norm(dim=1, keepdim=True) if kind == "haar" else cells.sum(dim=1, keepdim=True))


def _blocks(num_tokens: int, grid: int, down: int, across: int) -> Tensor:
    """Membership (down*across, G, G) in {0,1} of the cells in a division into blocks, row-major."""
    if grid % down or grid % across:
        raise UserError(
            f"layout.num_tokens={num_tokens} needs a grid that divides into {down} x {across} blocks, "
            f"the image gives {grid} x {grid}; use fewer tokens or a larger image"
        )
    cell = torch.arange(grid)
    block = (cell // (grid // down))[:, None] * across + (cell // (grid // across))[None, :]
    return (block[None] == torch.arange(down * across)[:, None, None]).float()


def _halves(num_tokens: int, grid: int, level: int) -> Tensor:
    """+1 in the first and -1 in the second half of every block of the level: its columns, then its rows."""
    parts = 2 ** (level // 2 + 1)
    if grid % parts:
        raise UserError(
            f"query_init=haar with layout.num_tokens={num_tokens} needs a grid that divides by {parts}, the image "
            f"gives {grid} x {grid}; use fewer tokens, a larger image, or query_init=multi_level"
        )
    sign = 1.0 - 2.0 * (torch.arange(grid) // (grid // parts) % 2)
    return sign[:, None].expand(grid, grid) if level % 2 else sign[None, :].expand(grid, grid)
