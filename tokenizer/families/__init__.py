"""Families of released tokenizers, in the order in which a file is compared with them."""

from collections.abc import Mapping

from torch import Tensor

from common.errors import UserError
from tokenizer.families import hybrid, llamagen, maskgit, robustok, titok
from tokenizer.families.base import Family

FAMILIES: tuple[Family, ...] = (
    *hybrid.FAMILIES, robustok.FAMILY, *titok.FAMILIES, maskgit.FAMILY, llamagen.FAMILY,
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


def recognised(tensors: Mapping[str, Tensor]) -> Family | None:
    """The family of a file's tensors, or None."""
    return next((family for family in FAMILIES if family.matches(tensors)), None)


def family_of(tensors: Mapping[str, Tensor], source: str) -> Family:
    """The family of a file's tensors. Raises: UserError for a state dict of anything but a tokenizer."""
    if family := recognised(tensors):
        return family
    raise UserError(
        f"{source} holds no known tokenizer (its first keys: {', '.join(list(tensors)[:3])}); "
        "a generator belongs to --gpt-ckpt, other tokenizers need a config of their own"
    )
