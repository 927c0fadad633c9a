"""The former name of `tokenizer.released`."""

from tokenizer.released import load_tokenizer, read_tokenizer, write_released

__all__ = ["load_tokenizer", "read_tokenizer", "write_released"]
