"""The coarse-to-fine order of 1D tokens: which grid cells each token starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError


def multi_level_pooling(num_tokens: int, grid: int) -> Tensor:
    """Weights (N, G*G) of the grid cells in each token's initial query.

    Token 0 is the mean of the whole image. Then level l = 0..log2(N)-1 splits the image into 2^(l//2) rows by
    2^((l+1)//2) columns of blocks, row-major, and each token is the mean of its block: 1, 1, 2, 4, ..., N/2 tokens.
    The result is always on the CPU: no checkpoint contains it, so a model built on the meta device needs its values.
    Source: GigaTok (arXiv 2504.08736), multi-level query initialisation.

    Raises: UserError when N is not a power of two or the grid cannot be divided.
    """
    levels = num_tokens.bit_length() - 1
    if num_tokens != 2**levels:
        raise UserError(
            f"layout.num_tokens={num_tokens} is not a power of two; multi-level queries need one (256, 128, 64, ...)"
        )
    with torch.device("cpu"):
        rows = [torch.ones(1, grid, grid)]
        rows += [_blocks(num_tokens, grid, 2 ** (level // 2), 2 ** ((level + 1) // 2)) for level in range(levels)]
        cells = torch.cat(rows).flatten(1)
        return cells / cells.sum(dim=1, keepdim=True)


def haar_basis(num_tokens: int, grid: int) -> Tensor:
    """The orthonormal rows (N, G*G) of a 2D Haar wavelet transform, in the order of `multi_level_pooling`.

    Token 0 is the mean; every other token is the difference between the two halves of its block. With N = G*G the rows
    are a basis. On the CPU, as there.

    Raises: UserError when N is not a power of two or the halves are not whole cells.
    """
    rows = [torch.ones(1, grid * grid, device="cpu")]
    for level in range(num_tokens.bit_length() - 1):
        parts = 2 ** (level // 2 + 1)
        if grid % parts:
            raise UserError(
                f"layout.num_tokens={num_tokens} needs a grid that divides by {parts} for wavelet queries, the image "
                f"gives {grid} x {grid}; use fewer tokens or a larger image"
            )
        sign = 1.0 - 2.0 * (torch.arange(grid, device="cpu") // (grid // parts) % 2)
        signs = sign[:, None].expand(grid, grid) if level % 2 else sign.expand(grid, grid)
        rows.append(signs.flatten().expand(2**level, -1))
    basis = multi_level_pooling(num_tokens, grid) * torch.cat(rows)
    return basis / basis.norm(dim=1, keepdim=True)


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
