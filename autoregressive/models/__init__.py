"""Generators by name. Adding one: a file here and a line in this table."""

from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR

__all__ = ["GENERATORS"]

GENERATORS = {"gpt": GPT, "rar": RAR}
