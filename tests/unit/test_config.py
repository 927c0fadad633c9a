"""The config system: one schema, three spellings, one clear sentence for every mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common import config
from common.config import MISSING, opt, part, parts
from common.errors import UserError


class Small:
    @dataclass
    class Config:
        width: int = opt(3, "width", low=1)
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
    texts: list[str] = opt([], "texts")
    kind: str = opt("none", "kind", choices=("none", "bf16"))
    share: float = opt(0.0, "share", low=0, high=1)
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


@pytest.mark.parametrize("name", ["0042", "83e1204", "1_000", "20:15", "1e3", "no", "on", "a: b", "#3", "[x", "'x'"])
def test_text_stays_as_it_is_written(name: str, tmp_path: Path) -> None:
    if not name.startswith("["):
        assert parse(f"--root={name}").root == name
        assert parse("root=x", "texts=[0042, no, 1e3]").texts == ["0042", "no", "1e3"]
    if name[0] not in "#['" and ": " not in name:
        (tmp_path / "a.yaml").write_text(f"root: {name}\n")
        assert parse("--config", str(tmp_path / "a.yaml")).root == name


def test_numbers_in_every_spelling(tmp_path: Path) -> None:
    for value in ("1e-4", "1E-4", ".0001", "'1e-4'", "1.e-4"):
        (tmp_path / "a.yaml").write_text(f"root: x\noptim: {{lr: {value}}}\n")
        assert parse("--config", str(tmp_path / "a.yaml")).optim.lr == 1e-4
    assert parse("root=x", "steps=010").steps == 10
    assert parse("root=x", "steps=null").steps is None and parse("root=x", "fast=yes").fast


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("root: ~/data\ntexts: [~/b]\n")
    got = parse("--config=~/a.yaml")
    assert (got.root, got.texts) == (f"{tmp_path}/data", [f"{tmp_path}/b"])
    assert parse("--root=~/b").root == f"{tmp_path}/b"


def test_true_and_false_switch_optional_parts_and_groups(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("root: x\nextras: {small: {width: 1}}\nmaybe: {lr: 3}\n")
    given = ("--config", str(tmp_path / "a.yaml"))
    assert parse(*given, "extras.small=false", "maybe=false") == parse("root=x")
    both = parse(*given, "extras.small=true", "extras.deep=true", "maybe=true")
    assert both.extras == {"small": {"name": "small", "width": 3, "rate": 1e-4}, "deep": {"name": "deep", "depth": 2}}
    assert both.maybe == Optim()


def test_values_out_of_range_are_refused() -> None:
    assert parse("root=x", "kind=bf16", "share=0.5").kind == "bf16"
    for word, said in (
        ("kind=no", "kind got 'no'; expected none or bf16"),
        ("share=1.5", "share got 1.5; expected a value 0 to 1"),
        ("share=nan", "share got nan; expected a value 0 to 1"),
        ("encoder.width=0", "encoder.width got 0; expected a value >= 1"),
    ):
        with pytest.raises(UserError) as caught:
            parse("root=x", word)
        assert str(caught.value) == said


def test_help_shows_flags_types_and_defaults_and_the_options_of_a_part(capsys: pytest.CaptureFixture) -> None:
    def helped(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            parse("--help", *words, aliases={"lr": "optim.lr", "slow": lambda value: []}, about="A job.")
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    whole = helped()
    assert whole.startswith("A job.") and "optim.lr, --lr (float; default 0.0001) learning rate" in whole
    assert "kind, --kind (none | bf16; default none)" in whole and "share, --share (float 0 to 1; default 0.0)" in whole
    assert "root, --root (str; required) images" in whole and "encoder, --encoder (part: small, deep;" in whole
    assert "encoder.width" not in whole and "encoder.width (int >= 1; default 3) width" in helped("encoder=small")
    assert "extras.deep extras.deep.depth (int; default 2)" in helped("extras") and "betas" in helped("optim")
    with pytest.raises(UserError, match=r"'encodr' \(did you mean 'encoder'\?\)"):
        helped("encodr")


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
        (["root=x", "steps=1.5"], "key 'steps' got 1.5; expected int or null"),
        (["root=x", "betas=3"], "unknown key 'betas'"),
        (["root=x", "optim.betas=3"], "key 'optim.betas' got '3'; expected list of float"),
        (["root="], "key 'root' got None; expected str"),
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
