"""Studies of many jobs: what is skipped, who works on what, and what a spread allows to be said."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from common.errors import UserError
from evaluations.figures import markdown
from studies import study, variants_table
from studies.study import Difference, Spread, Stage
from studies.variants import EvidenceConfig, lengths, stages

ROOT = Path(__file__).parents[2]
CHAIN = [Stage("a/train", ("job", "a")), Stage("a/measure", ("job", "m"), ("a/train",)), Stage("b/train", ("job", "b"))]


class Jobs:
    """Stands in for the processes; notes who ran, and how many at once."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.ran, self.running, self.most = fails, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, stage: Stage, log: Path) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.05)
        with self.lock:
            self.running -= 1
            self.ran.append(stage.name)
        log.write_text("error: it went wrong\n")
        return int(stage.name == self.fails)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)


def test_every_stage_runs_once_and_after_what_it_needs(tmp_path):
    jobs = Jobs()
    study.run(CHAIN, tmp_path, spend=jobs)
    assert jobs.ran == [stage.name for stage in CHAIN]
    study.run(CHAIN, tmp_path, spend=jobs)
    assert len(jobs.ran) == 3


def test_several_workers_share_the_work(tmp_path):
    jobs = Jobs()
    study.run(CHAIN, tmp_path, workers=3, spend=jobs)
    assert sorted(jobs.ran) == sorted(stage.name for stage in CHAIN) and jobs.most == 2
    assert jobs.ran.index("a/train") < jobs.ran.index("a/measure")


def test_a_stage_that_another_process_works_on_is_left_to_it(tmp_path):
    jobs, other = Jobs(), study.Ledger(tmp_path)
    with other.claim(CHAIN[0]) as ours:
        assert ours
        thread = threading.Thread(target=study.run, args=(CHAIN, tmp_path), kwargs={"spend": jobs})
        with pytest.MonkeyPatch.context() as patched:  # only the main thread may handle signals
            patched.setattr(study.signal, "signal", lambda *_: None)
            thread.start()
            while jobs.ran != ["b/train"]:
                time.sleep(0.01)
            time.sleep(0.05)
            assert jobs.ran == ["b/train"]
            other.finish(CHAIN[0], 1.0)
            thread.join(timeout=10)
    assert jobs.ran == ["b/train", "a/measure"]


def test_a_failure_is_told_and_is_tried_again(tmp_path):
    with pytest.raises(UserError, match="'a/train' ended with status 1: error: it went wrong"):
        study.run(CHAIN, tmp_path, spend=Jobs(fails="a/train"))
    failed = float((tmp_path / "ledger/a/train.spent").read_text())
    jobs = Jobs()
    study.run(CHAIN, tmp_path, spend=jobs)
    assert jobs.ran == ["a/train", "a/measure", "b/train"]
    both = json.loads((tmp_path / "ledger/a/train.json").read_text())["seconds"]
    assert failed >= 0.05 and both >= failed + 0.04  # a job takes 0.05 s; figures have one decimal


def test_a_stage_made_with_other_options_is_not_reused(tmp_path):
    study.run(CHAIN[:1], tmp_path, spend=Jobs())
    with pytest.raises(UserError, match="other options"):
        study.run([Stage("a/train", ("job", "other"))], tmp_path, spend=Jobs())
    with_config = Stage("c", ("job", "--config", str(tmp_path / "c.yaml")))
    (tmp_path / "c.yaml").write_text("steps: 1\n")
    study.run([with_config], tmp_path, spend=Jobs())
    (tmp_path / "c.yaml").write_text("steps: 2\n")
    with pytest.raises(UserError, match="another config"):
        study.run([with_config], tmp_path, spend=Jobs())


def test_a_difference_is_paired_and_needs_several_seeds():
    low, high = [1.0, 5.0, 9.0], [1.5, 5.4, 9.6]
    found = Difference.of(high, low)
    assert found.mean == pytest.approx(0.5) and found.sign == 1 and Difference.of(low, high).sign == -1
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert Difference.of([1.0, 2.0, 3.0], [1.5, 1.5, 3.5]).sign == 0 and Difference.of([9.0], [1.0]).sign == 0
    assert found.text() == "+0.50 [+0.25, +0.75]"
    assert Spread.of([1.0, 1.2, 1.1]).text() == "1.10 ± 0.10" and Spread.of([9.0]).text(1) == "9.0"


def test_a_table_has_a_cell_for_every_column():
    assert markdown(["a", "b"], [{"a": 1}, {"b": 2}]) == "| a | b |\n|-|-|\n| 1 |  |\n|  | 2 |\n"


def test_the_evidence_study_is_complete_and_consistent(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = EvidenceConfig()
    made = stages(options)
    names = [stage.name for stage in made]
    assert len(set(names)) == len(names) and all(set(stage.needs) <= set(names) for stage in made)
    for variant in options.variants:
        for seed in options.seeds:
            own = ("tokenizer", "reconstruction", "diagnosis", "samples")
            assert {f"{variant}/seed-{seed}/{what}" for what in own} <= {*names}
    drawn = next(stage for stage in made if stage.name == "retok_finetune/seed-1/samples")
    assert drawn.needs == ("retok/seed-1/gpt", "retok_finetune/seed-1/tokenizer")
    with pytest.raises(UserError, match=r"there is no .*retk"):
        stages(EvidenceConfig(variants=["retk"]))
    with pytest.raises(UserError, match="lacks 'retok'"):
        stages(EvidenceConfig(variants=["nested_dropout", "retok_finetune"]))


def test_verdicts_follow_the_direction_of_a_figure():
    options = EvidenceConfig(variants=["fixed", "nested_dropout"])
    figures = {
        "fixed": {"psnr@8": [10.0, 10.1, 10.2], "psnr@64": [15.0, 15.1, 15.2], "sample fd2@64": [900.0, 910.0, 920.0]},
        "nested_dropout": {"psnr@8": [12.0, 12.1, 12.3], "psnr@64": [15.1, 15.0, 15.2], "sample fd2@64": [800.0] * 3},
    }
    found = {(row["pair"], row["figure"]): row["verdict"] for row in variants_table.verdicts(options, figures)}
    assert found["nested_dropout - fixed", "psnr@8"] == "seen"
    assert found["fixed - nested_dropout", "psnr@64"] == "not decided here"
    best = variants_table.best_of(figures, "sample fd2@64")
    assert best["best"] == "nested_dropout: 800 ± 0" and best["not told apart"] == ""
    assert variants_table.best_of(figures, "psnr@64")["not told apart"].startswith(("fixed", "nested_dropout"))


def test_the_comparison_reads_every_stages_results(tmp_path):
    """Made-up results: `nested_dropout` beats `fixed` in every seed, `grid` has a figure at full length only."""
    options = EvidenceConfig(
        out=str(tmp_path), variants=["fixed", "nested_dropout", "grid"], seeds=[0, 1, 2], num_tokens=[8, 64]
    )
    for place, variant in enumerate(options.variants):
        for seed in options.seeds:
            gain = 5 * place + seed / 100
            tokens = {
                str(k): {"psnr": 10 + gain, options.perceptual: 0.5, options.frechet: 99.0}
                for k in lengths(options, variant)
            }
            summary = {"tail_entropy": gain, "tail_usage": 0.5}
            if variant != "grid":
                summary["tail_gain_mse"] = gain
            fd = {f"efficientnet_lite{n}": {"samples": 50.0 + n, "samples_8": 60.0 + n} for n in (0, 2)}
            drawn = {"fd": fd, **{f"{name}{k}": 0.5 for name in ("class_accuracy", "near_copies") for k in ("", "_8")}}
            for file, body in {
                "reconstruction/results.json": {"tokens": tokens}, "samples/results.json": drawn,
                "diagnosis/diagnosis.json": {"summary": summary, "positions": {"entropy": [gain] * 4}},
                "val_loss.json": {"loss": 4.0 + seed},
            }.items():
                path = options.folder(variant, seed) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(body))
            ledger = tmp_path / f"ledger/{variant}/seed-{seed}/tokenizer.json"
            ledger.parent.mkdir(parents=True, exist_ok=True)
            ledger.write_text('{"seconds": 9.0}')
    written = variants_table.compare(options)
    assert written["figures"]["nested_dropout"]["psnr@8"] == pytest.approx([15.0, 15.01, 15.02])
    assert "psnr@8" not in written["figures"]["grid"] and "sample fd0@64" in written["figures"]["grid"]
    seen = {(row["claim"], row["figure"]): row["verdict"] for row in written["claims"]}
    assert seen["Nested dropout makes prefixes decode (ReTok)", "psnr@8"] == "seen"
    assert seen["Flexible length costs quality at full length (ReTok)", "psnr@64"] == "not seen"
    table = (tmp_path / "table.md").read_text()
    assert "| nested_dropout | 15.01 ± 0.01 | 15.01 ± 0.01 |" in table and "-5.00 [-5.00, -5.00]" in table
    pictures = {"quality.png", "generation.png", "tail.png", "positions.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
