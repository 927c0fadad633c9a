"""One schema, three spellings: YAML files with `base:`, a dotlist (`optim.lr=1e-4`) and flags (`--lr 1e-4`).

Precedence: schema defaults < YAML < command line, left to right. What a schema is, and how it is checked, is in
`common/schema.py`; its names can be imported from here as well.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import MISSING

from common.errors import UserError, nearest
from common.help import Alias, render
from common.schema import (
    build,
    dump,
    field_types,
    load_yaml,
    lookup,
    merge,
    nested_schema,
    opt,
    part,
    parts,
    plain,
    read_entry,
    read_yaml,
    resolve,
)

__all__ = [
    "MISSING", "Alias", "build", "dump", "lookup", "main", "merge", "nested_schema", "opt", "parse", "part", "parts",
    "plain", "read_yaml", "resolve", "sentence",
]  # fmt: skip


def parse(
    schema: type,
    argv: list[str] | None = None,
    *,
    aliases: Mapping[str, Alias] | None = None,
    about: str = "",
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Any:
    """Read a job's command line.

    Understood, freely mixed: `--config FILE` (repeatable), `key.sub=value`, `--key.sub value`,
    `--flag value`, `--flag=value`, `--flag` / `--no-flag` for booleans, `--dry-run` (print the resolved
    config and exit), `--help [PART]`. Every top-level field of `schema` is also a flag (`_` written as `-`);
    `aliases` adds the spellings of the papers' READMEs, `translate` turns their YAML files into ours.

    Raises: UserError for anything not understood. SystemExit(0) after --help and --dry-run.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    aliases = dict(aliases or {})
    asked = [at for at, word in enumerate(argv) if word in ("--help", "-h")]
    if asked:
        topic = argv[asked[0] + 1 : asked[0] + 2]
        print(render(schema, aliases, about, topic[0] if topic and not topic[0].startswith("-") else None))
        raise SystemExit(0)
    raw: dict[str, Any] = {}
    command_line: dict[str, Any] = {}
    known = {*aliases, *field_types(schema), *(name.replace("_", "-") for name in field_types(schema))}
    words = [word for word in argv if word != "--dry-run"]
    while words:
        flag, equals, value = words.pop(0).partition("=")
        dashes = flag.startswith("--")
        flag = flag.removeprefix("--")
        if not equals:
            if not dashes:
                raise UserError(f"got {flag!r}; expected --flag VALUE or key=value (see --help)")
            value = _value(words, _is_switch(schema, flag, aliases))
        if flag == "config" or (flag == "model-config" and dashes and flag not in known):
            raw = merge(raw, respell(translate(load_yaml(value)), aliases))
            continue
        is_flag = dashes or flag in aliases
        for entry in _flag_entries(known, flag, value, aliases) if is_flag else [f"{flag}={value}"]:
            command_line = merge(command_line, read_entry(entry))
    config = resolve(schema, merge(raw, command_line))
    if "--dry-run" in argv:
        print(dump(config), end="")
        raise SystemExit(0)
    return config


def _value(words: list[str], switch: bool) -> str:
    """The value of a flag without `=`: the next word, or `true` if none follows or the flag takes none."""
    takes = bool(words) and not words[0].startswith("--")
    return words.pop(0) if takes and (not switch or words[0].lower() in ("true", "false")) else "true"


def respell(raw: Mapping[str, Any], aliases: Mapping[str, Alias]) -> dict[str, Any]:
    """A YAML's mapping with our keys in the place of the papers': aliases with a dot are keys of their YAML files."""
    theirs: list[str] = []

    def ours(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in mapping.items():
            dotted = f"{prefix}{key}"
            if "." in dotted and dotted in aliases:
                target = aliases[dotted]
                theirs.extend(target(str(value)) if callable(target) else [f"{target}={value}"])
            elif isinstance(value, Mapping):
                deeper = ours(value, f"{dotted}.")
                if deeper or not value:
                    kept[key] = deeper
            else:
                kept[key] = value
        return kept

    rest = ours(raw, "")
    for entry in theirs:
        rest = merge(rest, read_entry(entry))
    return rest


def _is_switch(schema: type, flag: str, aliases: Mapping[str, Alias]) -> bool:
    if flag.startswith("no-") and flag not in aliases:
        return True
    target = aliases.get(flag, flag.replace("-", "_"))
    if callable(target):
        return getattr(target, "switch", False)
    for key in target.split(".")[:-1]:
        nested = nested_schema(schema, key)
        if nested is None:
            return False
        schema = nested
    return field_types(schema).get(target.split(".")[-1]) is bool


def _flag_entries(known: set[str], flag: str, value: str, aliases: Mapping[str, Alias]) -> list[str]:
    """What a flag means, as `key=value` entries."""
    if flag in aliases:
        target = aliases[flag]
        return target(value) if callable(target) else [f"{target}={value}"]
    if "." in flag or flag in known:
        return [f"{flag.replace('-', '_')}={value}"]
    if flag.startswith("no-"):
        return _flag_entries(known, flag[3:], "false", aliases)
    raise UserError(f"unknown flag '--{flag}'{nearest(flag, sorted(known))}; see --help")


def main(job: Callable[[], Any]) -> None:
    """Run a job's `main`. User errors, failed file operations and a missing compiler end in one sentence and code 2."""
    try:
        job()
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.unraisablehook = lambda _: None  # a file that could not be written fails again when it is closed
        raise SystemExit(2) from None


def sentence(error: BaseException) -> str | None:
    """The message of an error that the user can mend, or None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    # safetensors and torch.save raise errors of their own when a file cannot be written.
    if isinstance(error, OSError) or re.search("^Error while serializing: I/O|PytorchStreamWriter failed", str(error)):
        path = f"{filename!r}: " if (filename := getattr(error, "filename", None)) else ""
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        return (
            f"{path}{reason}; free space, mend the permissions or choose another path, then run the same command again"
        )
    if re.search(r"No working C\+\+ compiler|Failed to find C compiler|find a working triton", str(error)):
        return (
            "torch.compile finds no working compiler; install one (g++ for the CPU, gcc and triton for CUDA) or leave "
            "--compile (run.compile, compile) out"
        )
    return None
