"""Write CONFIGURATION.md, the reference of every job's options and every part's, from the schemas themselves.

    python -m evaluations.configuration
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.config import MISSING, nested_schema, opt, type_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "tokenizer", "autoregressive", "evaluations", "studies")

ABOUT = """# Configuration

Every option of every job, generated from the schemas by `python -m evaluations.configuration`; a test holds this file
to them. An option is written `key.sub=value` on the command line or in a YAML, or `--flag value` where
`bash scripts/NAME.sh --help` shows a flag. "required" means that it has no default. A *part* is a mapping with a `name`
from the named table; the parts and their own options follow the jobs.
"""


@dataclass
class ConfigurationConfig:
    out: str = opt("CONFIGURATION.md", "file to write")


def jobs() -> dict[str, str]:
    """Module -> the name of its schema: every file that ends in `config.main(main)` and calls `config.parse(Schema`."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        source = path.read_text()
        schema = re.search(r"config\.parse\((\w+),", source)
        if schema and re.search(r"^    config\.main\(main\)", source, re.MULTILINE):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = schema[1]
    return found


def reference() -> str:
    """The whole file."""
    tables: dict[str, None] = {}  # in the order in which they are first named
    body = [ABOUT, "## Jobs\n"]
    for job, name in jobs().items():
        module = importlib.import_module(job)
        body += [f"### `{job}`\n", f"{module.__doc__.strip().split('. ')[0].splitlines()[0]}\n"]
        body += _table(getattr(module, name), tables)
    body.append("## Parts\n")
    shown: set[str] = set()
    while pending := [table for table in tables if table not in shown]:
        for table in pending:
            shown.add(table)
            body.append(f"### `{table}`\n")
            module, _, attribute = table.partition(":")
            for name, part in getattr(importlib.import_module(module), attribute).items():
                summary = (part.__doc__ or "").strip().splitlines()
                body.append(f"**`{name}`** {summary[0] if summary else ''}\n")
                body += _table(part.Config, tables)
    return "\n".join(body).rstrip() + "\n"


def _table(schema: type, tables: dict[str, None]) -> list[str]:
    rows = list(_rows(schema, "", tables))
    if not rows:
        return ["No options.\n"]
    return ["| option | type | default | what for |", "|-|-|-|-|", *rows, ""]


def _rows(schema: type, prefix: str, tables: dict[str, None]) -> Iterator[str]:
    for field in dataclasses.fields(schema):
        nested = nested_schema(schema, field.name)
        dotted, about = f"{prefix}{field.name}", field.metadata.get("help", "")
        if nested:
            yield from _rows(nested, f"{dotted}.", tables)
            continue
        kind, default = type_name(schema, field.name), _default(field)
        for sort in ("part", "parts"):
            if table := field.metadata.get(sort):
                tables.setdefault(table)
                kind, about = sort, f"{about}; names: `{table}`"
        cells = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in (f"`{dotted}`", kind, default, about))
        yield f"| {' | '.join(cells)} |"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if value == MISSING:
        return "required"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    settings = config.parse(ConfigurationConfig, about=__doc__)
    Path(settings.out).write_text(reference())
    print(f"written: {settings.out}")


if __name__ == "__main__":
    config.main(main)
