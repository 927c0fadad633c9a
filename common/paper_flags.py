"""Functions that turn flags of the papers' scripts into our options (`common.config.Alias`)."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import UserError

__all__ = ["estimate", "half", "joined", "only", "optional", "sharded", "switch"]

Expand = Callable[[str], list[str]]

_PARTS = ("--save-path=", "--sub-exp-dir=")


def only(flag: str, *values: str) -> Expand:
    """A flag without an option of ours: only `values` are accepted, and they change nothing."""

    def check(value: str) -> list[str]:
        if value not in values:
            raise UserError(f"--{flag} got {value!r}; expected {' or '.join(values)}")
        return []

    return check


def switch(*entries: str) -> Expand:
    """A flag without a value that stands for fixed entries."""

    def expand(value: str) -> list[str]:
        return list(entries) if value.lower() == "true" else []

    expand.switch = True
    return expand


def half(key: str) -> Expand:
    """fp16 of the papers means "half precision": bf16 has its speed and needs no loss scaling."""
    return lambda value: [f"{key}={'bf16' if value == 'fp16' else value}"]


def optional(key: str) -> Expand:
    """The papers' scripts write None for a value that is not set."""
    return lambda value: [f"{key}={'null' if value == 'None' else value}"]


def sharded(value: str) -> list[str]:
    """The papers' sdp shards gradients and optimizer, their fsdp the weights, too: both are our fsdp."""
    if value not in ("sdp", "fsdp"):
        raise UserError(f"--data-parallel got {value!r}; expected fsdp (or sdp, which is the same here)")
    return ["run.parallel=fsdp"]


def estimate(*more: str) -> Expand:
    """`--estimate` and `--estimate RANKS`; `more` are entries that an estimate can do without."""
    return lambda value: [f"estimate.ranks={1 if value == 'true' else value}", *more]


def joined(argv: list[str], root: str) -> list[str]:
    """`--save-path A --sub-exp-dir B` of the papers is our `--out A/B`; without a save path, A is `root`."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(_PARTS) else [word])]
    if "--sub-exp-dir" not in words:
        return argv
    found = {"--save-path": root, "--sub-exp-dir": ""}
    rest = []
    while words:
        word = words.pop(0)
        if word in found and words:
            found[word] = words.pop(0)
        else:
            rest.append(word)
    return [*rest, "--out", f"{found['--save-path'].rstrip('/')}/{found['--sub-exp-dir']}"]
