"""The config system: one schema, three spellings, one clear sentence for every mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors import SafetensorError

from common import config
from common.config import MISSING, opt, part, parts
from common.errors import UserError

ROOT = Path(__file__).parents[2]


class Small:
    @dataclass
    class Config:
        width: int = opt(3, "width")
        rate: float = opt(1e-4, "rate")

    def __init__(self, settings: Config):
        self.settings = settings


class Deep:
    @dataclass
    class Config:
        depth: int = opt(2, "depth")


TABLE = {"small": Small, "deep": Deep}
HERE = f"{__name__}:TABLE"


@dataclass
class Optim:
    lr: float = opt(1e-4, "learning rate")
    betas: list[float] = opt([0.9, 0.95], "betas")


@dataclass
class Schema:
    root: str = opt(MISSING, "images")
    fast: bool = opt(False, "a switch")
    steps: int | None = opt(None, "steps")
    optim: Optim = field(default_factory=Optim)
    maybe: Optim | None = opt(None, "an optional group")
    encoder: dict = part(HERE, "encoder", {"name": "small", "width": 5})
    extras: dict = parts(HERE, "extras")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__("types").ModuleType(__name__))
    sys.modules[__name__].TABLE = TABLE


def parse(*words: str, **kwargs: object) -> Schema:
    return config.parse(Schema, list(words), **kwargs)


def test_defaults_yaml_and_command_line_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("root: base\noptim: {lr: 1e-3, betas: [0.5, 0.6]}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\noptim: {lr: 2e-3}\nencoder: {width: 9}\n")
    got = parse("--config", str(tmp_path / "top.yaml"), "encoder.rate=1e-2", "--steps", "7", "steps=8", "--fast")
    assert (got.root, got.optim.lr, got.optim.betas, got.steps, got.fast) == ("base", 2e-3, [0.5, 0.6], 8, True)
    assert got.encoder == {"name": "small", "width": 9, "rate": 1e-2}
    assert got.maybe is None and parse("root=x", "maybe.lr=1").maybe.lr == 1.0


def test_what_is_dumped_reads_back(tmp_path: Path) -> None:
    got = parse("root=x", "extras.deep.depth=5", "maybe.lr=3")
    (tmp_path / "dumped.yaml").write_text(config.dump(got))
    assert parse("--config", str(tmp_path / "dumped.yaml")) == got


def test_another_name_drops_the_old_part_and_null_removes_an_extra(tmp_path: Path) -> None:
    assert parse("root=x", "encoder.name=deep").encoder == {"name": "deep", "depth": 2}
    (tmp_path / "a.yaml").write_text("root: x\nextras: {small: {width: 1}, deep: {}}\n")
    got = parse("--config", str(tmp_path / "a.yaml"), "extras.small=null")
    assert list(got.extras) == ["deep"]


def test_build_gives_the_part_its_config() -> None:
    assert config.build(HERE, parse("root=x").encoder).settings.width == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rot", "x"], "unknown flag '--rot' (did you mean 'root'?)"),
        (["root=x", "optim.lrr=1"], "unknown key 'optim.lrr' (did you mean 'lr'?)"),
        (["root=x", "optim.lr=fast"], "'optim.lr'"),
        (["root=x", "encoder.widht=1"], "unknown key 'encoder.widht' (did you mean 'width'?)"),
        (["root=x", "encoder.name=smal"], "(did you mean 'small'?)"),
        (["root=x", "extras.depp={}"], "(did you mean 'deep'?)"),
        (["root=x", "optim=3"], "expected a mapping"),
        ([], "'root' is not set (images)"),
        (["root"], "expected --flag VALUE or key=value"),
        (["--config", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_end_in_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_base_that_goes_round_in_circles_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="its own base"):
        parse("--config", str(tmp_path / "a.yaml"))


def test_aliases_switches_and_negations() -> None:
    flags = {"data-path": "root", "slow": lambda value: ["fast=false"]}
    flags["slow"].switch = True
    assert parse("--data-path=x", "--fast", aliases=flags).fast
    assert not parse("--data-path", "x", "--fast", "--slow", aliases=flags).fast
    assert not parse("--data-path", "x", "--no-fast", aliases=flags).fast


def test_a_job_turns_a_mistake_into_exit_code_two(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        config.main(lambda: parse("--rot", "x"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown flag")


@dataclass
class Texts:
    out: str = opt("x", "a folder")
    maybe: str | None = opt(None, "text or nothing")
    several: list[str] = opt([], "texts")
    count: int = opt(1, "a number", low=1, high=9)
    rate: float = opt(1e-3, "a rate", low=0)
    kind: str = opt("one", "a choice", choices=("one", "two", "none"))


@pytest.mark.parametrize("text", ["0042", "83e1204", "2e5", "1_000", "20:15", "1e3", "007", "true", "2026-11-28"])
def test_text_options_keep_what_was_written(tmp_path, text):
    for words in (["--out", text], [f"out={text}"], [f"--out={text}"]):
        assert config.parse(Texts, words).out == text
    assert config.parse(Texts, [f"maybe={text}", f"several=[{text},b]"]).several == [text, "b"]
    (tmp_path / "c.yaml").write_text(f"out: {text}\nmaybe: {text}\nseveral: [{text}]\n")
    found = config.parse(Texts, ["--config", str(tmp_path / "c.yaml")])
    assert (found.out, found.maybe, found.several) == (text, text, [text])
    assert config.parse(Texts, ["maybe=null"]).maybe is None


def test_numbers_are_numbers_in_every_spelling(tmp_path):
    (tmp_path / "c.yaml").write_text("rate: 1e-4\ncount: 0x5\n")
    found = config.parse(Texts, ["--config", str(tmp_path / "c.yaml")])
    assert (found.rate, found.count) == (1e-4, 5)
    assert config.parse(Texts, ["rate=1.5E-3"]).rate == 1.5e-3


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text("maybe: ~/a\nseveral: [~/b]\n")
    found = config.parse(Texts, ["--config", str(tmp_path / "c.yaml"), "--out=~/c"])
    assert (found.out, found.maybe, found.several) == ("/home/me/c", "/home/me/a", ["/home/me/b"])


@pytest.mark.parametrize(("word", "message"), [
    ("count=0", "count got 0; expected 1 to 9"), ("rate=-1", "rate got -1.0; expected at least 0"),
    ("kind=three", "kind got 'three'; expected one, two or none"),
])  # fmt: skip
def test_values_out_of_range_are_refused(word, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.parse(Texts, [word])


def test_a_part_is_switched_off_by_false_and_on_by_true():
    from tokenizer.config import TrainConfig

    words = ["data.root=x", "run.out=y", "run.steps=1"]
    found = config.parse(TrainConfig, [*words, "regularizers.cross_length=true", "losses.perceptual=false"])
    assert found.regularizers["cross_length"]["min_tokens"] == 1 and set(found.losses) == {"recon"}
    assert config.parse(TrainConfig, [*words, "regularizers.cross_length=false"]).regularizers == {}
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "out/a.png"), "'out/a.png': No space left on device; free space"),
        (NotADirectoryError(20, "Not a directory", "file/s"), "'file/s': Not a directory; "),
        (PermissionError(13, "Permission denied", "/root"), "'/root': Permission denied; "),
        (OSError("truncated"), "truncated; "),
        (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file"), "free"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "free space"),
        (RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx"), "--compile"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "--compile"),
        (UserError("a sentence"), "a sentence"),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_code_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job() -> None:
        raise error

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as stopped:
        config.main(job)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.startswith("error: ") and said in printed and printed.count("\n") == 1


def test_a_full_disk_is_one_line_though_open_files_fail_again_when_they_are_closed(tmp_path: Path) -> None:
    job = f"""
import numpy, resource
from common import config
from common.npz import NpzWriter
def job():
    writer = NpzWriter({str(tmp_path / "a.npz")!r}, 8, (64, 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    writer.write(numpy.zeros((8, 64, 64, 3), numpy.uint8))
config.main(job)
"""
    done = subprocess.run([sys.executable, "-c", job], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_faults_of_the_program_keep_their_traceback() -> None:
    def job() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        config.main(job)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["count=1.5"], "key 'count' got 1.5; expected int"),
        (["several=a"], "key 'several' got 'a'; expected list[str]"),
        (["count=1:30"], "key 'count' got '1:30'; expected int"),
        (["rate=nan"], "rate got nan; expected at least 0"),
    ],
)
def test_values_of_another_type_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        config.parse(Texts, words)
    assert str(caught.value) == said


def test_a_decimal_with_leading_zeros_is_not_octal() -> None:
    assert config.parse(Texts, ["count=007"]).count == 7


@pytest.mark.parametrize("text", ["a: b", "#3", "'x'", "a ${", "-"])
def test_text_on_the_command_line_needs_no_quoting(text: str) -> None:
    assert config.parse(Texts, [f"--out={text}"]).out == text


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("root: x\nroot: y\n")
    with pytest.raises(UserError, match="key 'root' is given twice"):
        parse("--config", str(tmp_path / "a.yaml"))


def test_true_and_false_switch_optional_groups_and_parts() -> None:
    assert parse("root=x", "maybe=true").maybe == Optim() and parse("root=x", "maybe.lr=1", "maybe=false").maybe is None
    assert parse("root=x", "encoder=false").encoder is None


def test_a_part_is_resolved_once() -> None:
    whole = parse("root=x").encoder
    assert whole.config == Small.Config(width=5) and config.build(HERE, whole).settings is whole.config
    assert config.build(HERE, {**whole, "width": 7}).settings.width == 7


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lora.encoder=x", "key 'lora.encoder' got {'encoder': 'x'}; expected dict[str, int]"),
        ("regularizers=3", "key 'regularizers' got 3; expected a mapping of keys to values"),
        ("optim=null", "key 'optim' got 'null'; expected a mapping of keys to values"),
        ("run.steps=a: [x", "key 'run.steps' got 'a: [x'; expected int"),
        ("run.seed=1e3", "key 'run.seed' got 1000.0; expected int"),
    ],
)
def test_mistakes_inside_groups_are_one_sentence(word: str, said: str) -> None:
    from tokenizer.config import TrainConfig

    with pytest.raises(UserError) as caught:
        config.parse(TrainConfig, ["data.root=x", "run.out=y", "run.steps=1", word])
    assert str(caught.value) == said
