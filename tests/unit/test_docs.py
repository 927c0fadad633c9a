"""The documents keep their word: every command runs (as a dry run), every path and link exists, every flag is known."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from common.download import read_table
from tests import toys

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "Detailed_instructions.md", "CONTRIBUTING.md")
WITHOUT_A_DRY_RUN = (
    "bash env_install.sh", "bash scripts/test.sh", ".venv/bin/ruff", ". set_env_vars.sh", "git clone", "cd ", "export ",
)  # fmt: skip


def text(document):
    return (ROOT / document).read_text()


def commands(document):
    """The command lines of the document's bash blocks, continued lines joined, comments dropped."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text(document), re.MULTILINE | re.DOTALL):
        found += [re.sub(r"(^|\s)#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in found if line]


def header_commands(config):
    """The command lines of a shipped config's header."""
    comments = [line[1:].strip() for line in (ROOT / config).read_text().splitlines() if line.startswith("#")]
    return [line for line in comments if line.startswith(("bash scripts/", "python -m "))]


SCRIPTS = ("", "scripts", "scripts/composite_cmd")
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
COMMANDS = [(document, line) for document in DOCUMENTS for line in commands(document)]
COMMANDS += [(path, line) for path in CONFIGS for line in header_commands(path)]
JOBS = [(document, line) for document, line in COMMANDS if not line.startswith(WITHOUT_A_DRY_RUN)]


def jobs_of(line):
    """The modules and arguments that a documented command ends in: one, or several for a chain."""
    environment = {**os.environ, "DRY_RUN": "1", "GPUS": "1", "NNODES": "1"}
    if "scripts/" in line:
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
        lines = done.stdout.decode().splitlines()
    else:
        lines = [line]
    found = [shlex.split(line) for line in lines]
    assert found
    assert all(words[1] == "-m" for words in found)
    return [(words[2], words[3:]) for words in found]


def test_the_documents_show_commands():
    assert len(JOBS) > 10


@pytest.mark.parametrize(("document", "line"), JOBS, ids=lambda word: word.partition("--")[0].strip())
def test_a_documented_command_is_understood(document, line, monkeypatch, capsys):
    """Its flags, keys and config files: everything up to the point where the work would begin."""
    monkeypatch.chdir(ROOT)
    for module, arguments in jobs_of(line):
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--dry-run"])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(module).main()
        assert stopped.value.code == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shipped_config_says_how_it_is_run(config):
    assert header_commands(config)


@pytest.mark.parametrize(("document", "line"), sorted(set(COMMANDS) - set(JOBS)))
def test_the_other_commands_name_scripts_that_exist(document, line):
    scripts = re.findall(r"[\w./]+\.sh\b", line)
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text(document))]
    local = [link for link in links if link and not link.startswith("https://")]
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_the_text_exists(document):
    """Words in backticks that look like files of ours: with a folder of ours in front, or ending in .sh or .toml."""
    quoted = re.findall(r"`([\w./-]+)`", re.sub(r"^```.*?^```", "", text(document), flags=re.MULTILINE | re.DOTALL))
    folders = "common|tokenizer|autoregressive|evaluations|studies|configs|scripts|tests|requirements"
    ours = re.compile(rf"({folders})/.*|\w+\.(sh|toml)")
    named = [word for word in quoted if ours.fullmatch(word)]
    assert named
    assert [word for word in named if not any((ROOT / folder / word).exists() for folder in SCRIPTS)] == []


def test_the_annotated_tree_is_the_tree():
    """In the README's tree, a line's first word is a path below the folder whose line is less indented."""
    tree = re.search(r"^```text\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)[1]
    folder, paths = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.append(name)
        else:
            paths.append(folder + name)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    top = {path.name + "/" for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert top <= set(paths)


def test_the_photographs_are_credited():
    from studies.photos import credits

    assert credits() in text("Detailed_instructions.md")


def test_the_readmes_psnr_is_its_evidences():
    shown = re.search(r"^\| PSNR, dB \|(.*)\|$", text("README.md"), re.MULTILINE)[1].split(" | ")
    measured = json.loads(text("evidence/quickstart/metrics.json"))
    values = [measured["reconstruction"][count]["psnr"] for count in ("8", "16", "32", "64")]
    values += [measured["baselines"][name] for name in ("bilinear_8x8_psnr", "kmeans_patch_vq_psnr")]
    assert [float(each) for each in shown] == [round(value, 1) for value in values]


def test_the_readmes_model_zoo_is_taken_from_the_table_that_downloads_use():
    table = {name: entry for name, entry in read_table(ROOT / "configs/zoo.yaml").items() if entry.what != "network"}
    section = text("README.md").split("## Model zoo")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "M |" in line]
    wanted = [[n, e.what, f"{e.parameters / 1e6:,.0f}M", e.numbers or "-"] for n, e in table.items()]
    assert len(rows) >= 9
    assert [row for row in rows if row not in wanted] == []


def test_the_readmes_python_runs_after_a_quickstart(tmp_path, monkeypatch):
    toys.save_tokenizer(tmp_path / "results/quickstart/tokenizer")
    toys.save_generator(tmp_path / "results/quickstart/gpt")
    toys.write_images(tmp_path / "data/emoji/val")
    (tmp_path / "data/emoji/val/apple").rename(tmp_path / "data/emoji/val/animal")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    exec(compile("".join(blocks), "README.md", "exec"), {})  # noqa: S102
    assert Image.open("first_16_tokens.png").size == (4 * 32, 32) and Image.open("samples.png").size == (2 * 32, 32)
    assert "library_name" in Path("my-tokenizer/README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_at_most_120_characters(document):
    tables = "|" if document == "Detailed_instructions.md" else "\0"  # a row cannot be wrapped
    long = [line for line in text(document).splitlines() if len(line) > 120 and not line.startswith(tables)]
    assert long == []


def test_the_readmes_contents_name_every_section():
    contents = set(re.findall(r"\]\(#([\w-]+)\)", text("README.md")))
    headings = re.findall(r"^## (.*)$", text("README.md"), re.MULTILINE)
    titles = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert titles == contents
