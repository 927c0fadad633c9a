"""Families of released tokenizers, in the order in which a file is compared with them."""

from collections.abc import Mapping

from torch import Tensor

from common.errors import UserError
from tokenizer.families import hybrid, llamagen, magvit2, maskgit, robustok, taming, titok, var, xqgan
from tokenizer.families.base import Family

FAMILIES: tuple[Family, ...] = (
    *hybrid.FAMILIES, xqgan.FAMILY, robustok.FAMILY, *titok.FAMILIES, maskgit.FAMILY, magvit2.FAMILY, var.FAMILY,
    *taming.FAMILIES, llamagen.FAMILY,
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
        f"{source} holds no known tokenizer (its first keys: {', '.join(list(tensors)[:3])}{_nearest(tensors)}); "
        "a generator belongs to --gpt-ckpt, other tokenizers need a config of their own"
    )


def _nearest(tensors: Mapping[str, Tensor]) -> str:
    """The family of which most signs are there, and what it lacks; "" if no sign of any is."""
    lacking = {family: [key for key in family.signs if key not in tensors] for family in FAMILIES}
    family = min(FAMILIES, key=lambda each: len(lacking[each]) / len(each.signs))
    if len(lacking[family]) == len(family.signs):
        return ""
    return f"; nearest is {family.title}" + (f", without {lacking[family][0]}" if lacking[family] else "")
