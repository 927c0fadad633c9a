"""The pieces of the evaluation jobs: search, records, streamed files, the evaluator's seam, baselines."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import npz
from common.errors import UserError
from common.npz import NpzWriter, PartWriter, join
from evaluations import record
from evaluations.c2i import scores
from evaluations.metrics.codebook_usage import CodeUsage
from evaluations.search import STARTS, climb, start_scale, windows
from studies.baselines import bilinear_thumbnail, kmeans, nearest

# ------------------------------------------------------------------------------------------------ search


@pytest.mark.parametrize("optimum", [1.0, 1.6, 2.0, 3.87])
@pytest.mark.parametrize("start", [1.0, 1.75, 4.0])
@pytest.mark.parametrize("up_first", [True, False])
def test_climb_finds_a_convex_optimum_without_asking_twice(optimum, start, up_first):
    asked: list[float] = []
    scale, value = climb(lambda s: asked.append(s) or (s - optimum) ** 2, start, {}, up_first)
    assert abs(scale - optimum) <= 0.125 and value == pytest.approx((scale - optimum) ** 2)
    assert len(asked) == len(set(asked)) and min(asked) >= 1


def test_climb_continues_from_known_points():
    asked: list[float] = []
    known = {2.0: 0.01, 2.25: 0.0225}
    assert climb(lambda s: asked.append(s) or (s - 2.1) ** 2, 1.0, known)[0] == 2.0
    assert asked == [1.75]


def test_start_scales_and_windows():
    assert start_scale("step", "GPT-B") == 2.5 and start_scale("constant", "GPT-XL") == STARTS["constant"][""]
    found = windows()
    assert len(set(found)) == len(found) == 137 and all(start < end for start, end in found)


# ------------------------------------------------------------------------------------------------ records


def test_a_record_is_read_only_for_its_own_question(tmp_path):
    question = {"seed": 0, "files": "ab", "lengths": [8, 16]}
    written = record.write(tmp_path / "r.json", question, {"fd": 1.5})
    assert record.read_current(tmp_path / "r.json", question) == written
    assert record.read_current(tmp_path / "r.json", {**question, "seed": 1}) is None
    (tmp_path / "r.json").write_text('{"question": ')
    assert record.read_current(tmp_path / "r.json", question) is None


def test_numbers_that_are_not_finite_become_null_and_a_flag(tmp_path):
    written = record.write(tmp_path / "r.json", {}, {"tokens": {"8": {"psnr": math.inf, "fd": math.nan}}, "ok": 1.0})
    assert written["tokens"]["8"] == {"psnr": None, "fd": None} and written["ok"] == 1.0
    assert written["flags"] == ["tokens.8.psnr is inf", "tokens.8.fd is nan"]
    assert json.loads((tmp_path / "r.json").read_text()) == written


def test_the_files_key_notices_a_changed_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    before = record.files_key([path])
    path.write_text("three")
    assert record.files_key([path]) != before


# ------------------------------------------------------------------------------------------------ files


def test_parts_join_in_rank_order_and_stream_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
    for rank, share in enumerate((images[:3], images[3:3], images[3:])):
        part = PartWriter(tmp_path / "x.npz", rank)
        for image in share:
            part.write(image[None])
        part.close()
    join(tmp_path / "x.npz", 7, (4, 5), ranks=3, about={"kind": "reconstruction"})
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    assert npz.header(tmp_path / "x.npz") == npz.Header(7, (4, 5))
    blocks = list(npz.stream(tmp_path / "x.npz", 3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), images)


def test_missing_images_leave_no_npz(tmp_path):
    part = PartWriter(tmp_path / "x.npz", 0)
    part.write(np.zeros((2, 4, 4, 3), np.uint8))
    part.close()
    with pytest.raises(ValueError, match="2 images written, 3 announced"):
        join(tmp_path / "x.npz", 3, (4, 4), ranks=1, about={})
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 3, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8),
              np.asfortranarray(np.zeros((2, 4, 5, 3), np.uint8))],
)
def test_npz_of_the_wrong_kind_is_refused(tmp_path, array):
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(UserError, match="expected uint8"):
        npz.header(tmp_path / "x.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    writer = NpzWriter(tmp_path / "x.npz", 4, (8, 8))
    writer.write(np.zeros((4, 8, 8, 3), np.uint8))
    writer.close()
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        list(npz.stream(tmp_path / "x.npz", 2))


def test_code_usage_counts_positions():
    usage = CodeUsage(3, 8)
    usage.update(torch.tensor([[0, 1, 2], [0, 2, 2]]))
    usage.update(torch.tensor([[0, 3, 2], [0, 4, 2]]))
    found = usage.summary()
    assert found["images"] == 4 and found["codebook_usage"] == 5 / 8
    assert found["usage_per_position"] == [1 / 8, 4 / 8, 1 / 8]
    assert found["perplexity_per_position"] == pytest.approx([1, 4, 1])


# ------------------------------------------------------------------------------------------------ evaluator's seam

FIVE = "Inception Score: 240.5\nFID: 2.15\nsFID: 5.0\nPrecision: 0.81\nRecall: 0.6\n"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "ref.npz", tmp_path / "sample images.npz"  # a space: no shell is involved
    for path in paths:
        np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    return paths


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    path = folder / "stand_in.py"
    path.write_text("import sys, pathlib, json\nsample = pathlib.Path(sys.argv[2])\n" + body)
    monkeypatch.setattr(scores, "SCRIPT", path)


def test_the_evaluator_is_called_with_both_files_and_its_text_is_read(pair, tmp_path, monkeypatch):
    body = f"assert sys.argv[1].endswith('ref.npz')\nsample.with_suffix('.txt').write_text({FIVE!r})"
    script(monkeypatch, tmp_path, body)
    found = scores.evaluate(*pair, sys.executable)
    assert found == {"inception_score": 240.5, "fid": 2.15, "sfid": 5.0, "precision": 0.81, "recall": 0.6}


def test_json_beside_the_text_is_preferred(pair, tmp_path, monkeypatch):
    body = "sample.with_suffix('.json').write_text(json.dumps({'fid': 2.123456789, 'engine': 'x'}))"
    script(monkeypatch, tmp_path, f"sample.with_suffix('.txt').write_text({FIVE!r})\n{body}")
    assert scores.evaluate(*pair, sys.executable) == {"fid": 2.123456789, "engine": "x"}


def test_a_failed_evaluator_is_an_error_and_old_text_is_not_taken_for_new(pair, tmp_path, monkeypatch):
    pair[1].with_suffix(".txt").write_text(FIVE)
    script(monkeypatch, tmp_path, "sys.exit('no graph here')")
    with pytest.raises(UserError, match="status 1: no graph here"):
        scores.evaluate(*pair, sys.executable)
    script(monkeypatch, tmp_path, "")
    with pytest.raises(UserError, match="wrote no"):
        scores.evaluate(*pair, sys.executable)


def test_a_missing_interpreter_or_file_names_the_flag(pair, tmp_path, monkeypatch):
    script(monkeypatch, tmp_path, "")
    with pytest.raises(UserError, match=r"env_install\.sh --eval.*EVAL_PYTHON_PATH"):
        scores.evaluate(*pair, tmp_path / "no python")
    with pytest.raises(UserError, match="--gt-npz-path"):
        scores.evaluate(tmp_path / "gone.npz", pair[1], sys.executable)


def test_incomplete_text_is_refused():
    with pytest.raises(UserError, match="Precision, Recall"):
        scores.parse("\n".join(FIVE.splitlines()[:3]))
    with pytest.raises(UserError, match="expected a number"):
        scores.parse(FIVE.replace("2.15", "two"))


# ------------------------------------------------------------------------------------------------ baselines


def test_kmeans_finds_separate_clusters_and_repeats():
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    points = centres.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=rng)
    found = kmeans(points, 4, iterations=20, seed=1)
    assert torch.equal(found, kmeans(points, 4, iterations=20, seed=1))
    assert torch.equal(nearest(points, found, block=7), torch.cdist(points, found).argmin(dim=1))
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.2


def test_more_centres_than_patches_is_an_error():
    with pytest.raises(UserError, match="--num-codes"):
        kmeans(torch.zeros(3, 2), 4, 1, 0)


def test_the_thumbnail_keeps_flat_images_and_loses_detail():
    flat = torch.full((1, 3, 64, 64), 0.25)
    torch.testing.assert_close(bilinear_thumbnail(flat), flat)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert bilinear_thumbnail(noise).var() < 0.1 * noise.var()
