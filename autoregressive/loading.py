"""The former name of `autoregressive.released`."""

from autoregressive.released import load_generator, write_released

__all__ = ["load_generator", "write_released"]
