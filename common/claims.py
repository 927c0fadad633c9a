"""Locks by which any number of processes, also on several machines, divide work in a shared folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claim"]


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock file `path` while the context lasts; False when another one holds it.

    The lock ends with its process, however that ends. Between machines it needs a file system that supports flock,
    such as NFS and Lustre.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
