"""`--help`: a job's options, the names of a part, the options of one."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from common.config import parse
from common.errors import UserError
from common.help import render
from common.schema import lookup, nested_schema, table_names
from tests.launchers.test_jobs import JOBS
from tokenizer.config import TrainConfig
from tokenizer.quantizers import QUANTIZERS

ROOT = Path(__file__).parents[2]


def test_a_jobs_options_are_listed() -> None:
    text = render(TrainConfig, {"lr": "optim.lr"}, "Train.")
    assert text.startswith("Train.\n\nusage:")
    assert "  optim.lr  --lr  (float)\n      peak learning rate [default 0.0001" in text
    flat = " ".join(text.split())
    assert f"names: {', '.join(sorted(QUANTIZERS))}" in flat and "one of released, fan_in" in flat


def test_a_parts_names_and_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(TrainConfig, ["--help", "quantizer=vq"])
    assert stopped.value.code == 0
    assert "model.quantizer.codebook_size  (int)\n      number of codes K [default 16384" in capsys.readouterr().out
    names = render(TrainConfig, {}, "", "regularizers")
    assert all(name in names for name in table_names("tokenizer.regularizers:REGULARIZERS"))


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(UserError, match=r"no part 'quantiser' \(did you mean"):
        render(TrainConfig, {}, "", "quantiser")


def schemas() -> dict[str, type]:
    """Every options class of every job, and of every part that one can use."""
    found: dict[str, type] = {}

    def add(schema: type) -> None:
        name = f"{schema.__module__}.{schema.__qualname__}"
        if name in found:
            return
        found[name] = schema
        for field in dataclasses.fields(schema):
            nested = nested_schema(schema, field.name)
            table = field.metadata.get("part") or field.metadata.get("parts")
            for inner in [nested] if nested else []:
                add(inner)
            for part in table_names(table) if table else []:
                add(lookup(table, part).Config)

    for job in JOBS:
        for value in vars(importlib.import_module(job)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__name__.endswith("Config"):
                add(value)
    return found


def test_every_option_is_described() -> None:
    known = schemas()
    assert len(known) > 40
    missing = [
        f"{name}.{field.name}"
        for name, schema in known.items()
        for field in dataclasses.fields(schema)
        if not field.metadata.get("help") and not nested_schema(schema, field.name)
    ]
    assert missing == []


def test_groups_and_parts_inside_parts_are_shown() -> None:
    group = render(TrainConfig, {}, "", "lecam")
    assert "adversary.lecam.decay  (float)" in group and "optim.lr" not in group
    assert "dinov2_vitb14" in render(TrainConfig, {}, "", "regularizers.teacher")


def test_every_option_is_set_by_something_shipped_or_explained() -> None:
    """An option that no config, script, study or benchmark sets is on a page that says what it is for."""
    folders = ("configs", "scripts", "studies", "benchmarks", "notebooks", ".ci")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    shipped = "\n".join(path.read_text() for path in files if path.suffix in (".yaml", ".sh", ".py", ".ipynb", ""))
    shipped = re.sub(r"^.*= opt\(.*$", "", shipped, flags=re.MULTILINE)
    pages = (ROOT / "README.md").read_text() + (ROOT / "Detailed_instructions.md").read_text()
    lacking = []
    for schema, fields in schemas().items():
        for name in (field.name for field in dataclasses.fields(fields)):
            flag = name.replace("_", "-")
            spellings = (rf"--{flag}\b", rf"(?<!\w){name}\s*[:=]", rf'"{name}"')
            explained = any(re.search(each, pages) for each in (*spellings, rf"`[^`\n]*\b{name}\b[^`\n]*`"))
            if not explained and not any(re.search(each, shipped) for each in spellings):
                lacking.append(f"{schema}.{name}")
    assert lacking == []
