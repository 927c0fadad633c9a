"""The bench: each question is measured once, by any number of workers; verdicts at equal bits; the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.claims import claim
from common.config import parse
from common.errors import UserError
from evaluations import bench, bench_page, bench_table
from evaluations.bench import BenchConfig, names, one_list
from tests import toys

GRID = {
    "encoder": {"name": "tokenizer.tiny:TinyCnnEncoder", **toys.CNN},
    "decoder": {"name": "tokenizer.tiny:TinyCnnDecoder", **toys.CNN},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    toys.write_images(root / "images", (3, 3, 2))
    toys.save_tokenizer(root / "one/tokenizer")
    toys.save_tokenizer(root / "grid/tokenizer", **GRID)
    return root


def options(made: Path, out: Path, **changes: Any) -> BenchConfig:
    stated: dict[str, Any] = {
        "num_tokens": [4, 16], "gpt_steps": 2, "resamples": 8, "examples": 2, "networks": [], "device": "cpu",
    }  # fmt: skip
    stated["tokenizers"] = [str(made / name / "tokenizer") for name in ("one", "grid")]
    return BenchConfig(data_path=str(made / "images"), out=str(out), **stated | changes)


@pytest.fixture(scope="module")
def whole(made: Path) -> tuple[Path, dict[str, Any]]:
    return made / "whole", bench.run(options(made, made / "whole"))


def test_the_table_has_every_column_and_interval(whole: tuple[Path, dict[str, Any]]) -> None:
    out, table = whole
    assert [(row["tokenizer"], row["num_tokens"]) for row in table["rows"]] == [("one", 4), ("one", 16), ("grid", 16)]
    sections = {bench_table.column(name).section for name in table["columns"]}
    assert sections == {"cost", "kept", "codes", "robust", "learned"}
    first = table["rows"][0]["figures"]
    assert first["bits"]["value"] == 4 * 6
    assert first["nats"]["value"] > 0 and first["samples_fd_efficientnet_lite2"]["value"] > 0
    for name in ("psnr", "fd_efficientnet_lite2", "kid_efficientnet_lite2", "nats"):
        assert first[name]["interval"][0] <= first[name]["interval"][1]
    assert json.loads((out / "bench.json").read_text())["rows"] == json.loads(json.dumps(table["rows"]))
    assert (out / table["rows"][0]["records"]["kept"]).is_file()


def test_interrupted_twice_it_ends_in_the_same_table(
    made: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    original = dict(bench.GROUPS)

    def dying(group: str) -> Any:
        def measure(*arguments: Any) -> Any:
            measured.append(group)
            if group in ("kept", "learned") and measured.count(group) == 1:
                raise KeyboardInterrupt
            return original[group](*arguments)

        return measure

    monkeypatch.setattr(bench, "GROUPS", {group: dying(group) for group in original})
    asked = options(made, tmp_path / "out", groups=["kept", "codes", "learned"])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            bench.run(asked)
    table = bench.run(asked)
    assert len(measured) == 3 + 2 + 3 + 2
    for row, other in zip(table["rows"], whole[1]["rows"], strict=True):
        assert row["figures"] == {name: each for name, each in other["figures"].items() if name in table["columns"]}
    bench.run(asked)
    assert len(measured) == 3 + 2 + 3 + 2


def test_a_tokenizer_that_is_added_later_leaves_the_others_measured(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(bench, "GROUPS", {"cost": lambda images, subject, *_: measured.append(subject.path) or {}})
    one, grid = options(made, tmp_path).tokenizers
    for chosen in ([one], [one, grid]):
        bench.run(options(made, tmp_path, groups=["cost"], num_tokens=[16], tokenizers=chosen))
    assert measured == [one, grid]


def test_batch_size_changes_nothing(made: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    table = bench.run(options(made, tmp_path, batch_size=5, groups=["kept"], num_tokens=[16]))
    for row, name in ((table["rows"][0], "psnr"), (table["rows"][0], "fd_efficientnet_lite2")):
        assert row["figures"][name]["value"] == pytest.approx(whole[1]["rows"][1]["figures"][name]["value"], rel=1e-9)


def test_tokenizers_run_in_bf16(made: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    table = bench.run(options(made, tmp_path, precision="bf16", num_tokens=[16]))
    assert "Precision of the tokenizers: bf16." in (tmp_path / "bench.md").read_text()
    halved, exact = table["rows"][0]["figures"], whole[1]["rows"][1]["figures"]
    for name in ("psnr", "fd_efficientnet_lite2", "pfd_efficientnet_lite2"):
        assert exact[name]["value"] != halved[name]["value"] == pytest.approx(exact[name]["value"], rel=0.1)
    assert halved["flops_decode"] == exact["flops_decode"]


def test_what_another_worker_holds_is_left_to_it(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "POLL_SECONDS", 0.0)
    asked = options(made, tmp_path, groups=["kept"], num_tokens=[16])
    images = bench.Images(asked, bench.torch.device("cpu"))
    (unit,) = bench.plan(asked, images, bench.Subject(asked.tokenizers[0], "one", "ema"))
    calls: list[int] = []
    unit.measure = lambda: calls.append(1) or {"psnr": {"value": 1.0}}

    def release(seconds: float) -> None:
        assert not calls
        held.__exit__(None, None, None)

    held = claim(unit.path.with_suffix(".lock"))
    assert held.__enter__()
    monkeypatch.setattr(bench.time, "sleep", release)
    bench.work([unit])
    assert calls == [1] and unit.read()["figures"]["psnr"]["value"] == 1.0


def test_options_change_only_what_depends_on_them(made: Path, tmp_path: Path) -> None:
    def digests(**changes: Any) -> dict[str, str]:
        asked = options(made, tmp_path, **changes)
        images = bench.Images(asked, bench.torch.device("cpu"))
        units = bench.plan(asked, images, bench.Subject(asked.tokenizers[0], "one", "ema"))
        return {f"{u.question['group']}-{u.question['num_tokens']}": u.path.stem for u in units}

    before = digests()
    for changes, changed in (
        ({"gpt_steps": 3}, {"learned"}), ({"resamples": 9}, {"kept", "learned"}), ({"batch_size": 4}, {"cost"}),
        ({"seed": 1}, {"kept", "robust", "learned"}), ({"train_path": str(made / "images")}, {"learned"}),
        ({"perceptual": {"name": "perceptual_efficientnet_lite0"}}, set()), ({"examples": 1}, {"kept"}),
        ({"precision": "bf16"}, {"cost", "kept", "codes", "robust", "learned"}),
    ):  # fmt: skip
        after = digests(**changes)
        assert {name.partition("-")[0] for name in before if after[name] != before[name]} == changed, changes


def test_verdicts_are_given_at_equal_bits() -> None:
    def figure(value: float, spread: list[float]) -> dict[str, Any]:
        return {"value": value, "replicates": [value + each for each in spread]}

    near = [figure(20.0, [0.5, -0.5, 0.1]), figure(19.9, [0.5, -0.3, 0.3]), figure(18.0, [0.4, -0.5, 0.2])]
    bench_table._judge("psnr", near)
    assert [each["verdict"] for each in near] == ["best", "equal", "worse"]
    assert near[2]["difference"][1] < 0
    alone = [{"value": 3.0}, {"value": 2.0}]
    bench_table._judge("pfd_x", alone)
    assert [each["verdict"] for each in alone] == [None, "best"]
    rows = [{"figures": {"bits": {"value": bits}}} for bits in (512, 128, 140, 640, 801)]
    bench_table._level(rows)
    assert [row["level"] for row in rows] == [1, 0, 0, 1, 2]


def test_the_page_shows_table_plots_examples_and_links(whole: tuple[Path, dict[str, Any]]) -> None:
    out, table = whole
    page = bench_page.render({**table, "about": {**table["about"], "left_out": {"fd_x": "<no weights>"}}}, out)
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    local = [link for link in links if not link.startswith("data:")]
    assert len(local) >= 2 * 3 + 12 and all((out / link).is_file() for link in local)
    assert page.count("data:image/png") >= 3 and "&lt;no weights&gt;" in page
    assert "http" not in re.sub(r"data:image/png[^\"]+", "", page)


def test_networks_without_weights_are_left_out_with_the_reason(made: Path, tmp_path: Path) -> None:
    asked = options(made, tmp_path, networks=["fd_inception"])
    images = bench.Images(asked, bench.torch.device("cpu"))
    if "fd_inception" not in images.networks:
        assert "does not exist" in images.left_out["fd_inception"]
    with pytest.raises(UserError, match="expected fd_efficientnet_lite2"):
        bench.Images(options(made, tmp_path, networks=["fd_nothing"]), bench.torch.device("cpu"))


def test_names_and_lists_of_the_command_line() -> None:
    assert names(["r/a/tokenizer", "r/b/tokenizer"]) == ["a", "b"]
    assert names(["r/a/x", "r/a/y/z"]) == ["x", "y-z"]
    assert names(["r/a.pt"]) == ["a.pt"]
    words = ["--tokenizers", "r/a b", "r/c", "--data-path", "d"]
    found = parse(BenchConfig, one_list(words))
    assert found.tokenizers == ["r/a b", "r/c"] and found.data_path == "d"
    assert one_list(["--tokenizers", "[a,b]"]) == ["--tokenizers", "[a,b]"]


def test_mistakes_are_one_sentence(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--groups got"):
        bench.run(options(made, tmp_path, groups=["speed"]))
    with pytest.raises(UserError, match="twice"):
        names(["a", "a"])
    toys.save_tokenizer(tmp_path / "kl", quantizer={"name": "kl"})
    with pytest.raises(UserError, match="is continuous"):
        bench.run(options(made, tmp_path, tokenizers=[str(tmp_path / "kl")]))
