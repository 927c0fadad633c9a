"""The former name of `tokenizer.released`."""

from tokenizer.released import load_tokenizer, write_released

__all__ = ["load_tokenizer", "write_released"]
