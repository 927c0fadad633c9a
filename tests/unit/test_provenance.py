"""Codes, generators and tokenizers are compared by the identity of the codes, classes by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autoregressive import check_codes, extract_codes, sample, train
from autoregressive.config import ExtractConfig, SampleConfig, TrainConfig
from common import checkpoint, config
from common.codes import CodeStore
from common.errors import UserError
from common.provenance import read_provenance
from evaluations import val_loss
from tests import toys


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """images/, vq/, its codes/, gpt/ trained on them; decoder/ = vq/ with another decoder, other/ = other codes."""
    toys.write_images(tmp_path / "images")
    toys.save_tokenizer(tmp_path / "vq")
    for name, part in (("decoder", "decoder."), ("other", "encoder.")):
        weights = checkpoint.read_weights(tmp_path / "vq/checkpoints/0000001", "model")
        weights = {key: value + 1 if key.startswith(part) else value for key, value in weights.items()}
        saved = checkpoint.read_config(tmp_path / "vq/checkpoints/0000001")
        checkpoint.save(tmp_path / name, 1, {"model": weights}, {}, saved)
    extract(tmp_path, "vq")
    generator(tmp_path)
    return tmp_path


def extract(root: Path, tokenizer: str, images: str = "images", codes: str = "codes") -> None:
    stated = [f"data_path={root / images}", f"vq_ckpt={root / tokenizer}", f"code_path={root / codes}", "device=cpu"]
    extract_codes.run(config.parse(ExtractConfig, stated))


def generator(root: Path, *words: object) -> None:
    stated = [
        f"data.codes={root / 'codes'}", f"run.out={root / 'gpt'}", "model.size=tiny", "data.batch_size=4",
        "run.steps=2", "run.device=cpu", "run.precision=none", *map(str, words),
    ]  # fmt: skip
    train.run(config.parse(TrainConfig, stated))


def draw(root: Path, tokenizer: str) -> None:
    stated = [f"gpt_ckpt={root / 'gpt'}", f"vq_ckpt={root / tokenizer}", f"sample_dir={root / tokenizer}-samples"]
    sample.run(config.parse(SampleConfig, [*stated, "num_images=2", "device=cpu"]))


def measure(root: Path, *words: object) -> None:
    stated = [f"gpt_ckpt={root / 'gpt'}", "device=cpu", *map(str, words)]
    val_loss.run(config.parse(val_loss.ValLossConfig, stated))


def test_a_generator_refuses_the_codes_of_another_tokenizer(made: Path) -> None:
    draw(made, "decoder")
    measure(made, f"vq_ckpt={made / 'decoder'}", f"data_path={made / 'images'}")
    extract(made, "other", codes="others")
    for refused in (
        lambda: draw(made, "other"),
        lambda: measure(made, f"vq_ckpt={made / 'other'}", f"data_path={made / 'images'}"),
        lambda: measure(made, f"code_path={made / 'others'}"),
        lambda: generator(made, "run.steps=3", "run.validate_every=1", f"data.val_codes={made / 'others'}"),
        lambda: check(made, "other"),
    ):
        with pytest.raises(UserError, match="tokenizer"):
            refused()
    check(made, "decoder")


def check(root: Path, tokenizer: str) -> None:
    check_codes.run(check_codes.CheckConfig(str(root / "codes"), str(root / tokenizer), sample_dir=str(root / "shown")))


def test_a_resume_refuses_the_codes_of_another_tokenizer(made: Path) -> None:
    shutil.rmtree(made / "codes")
    extract(made, "other")
    with pytest.raises(UserError, match="codes of another tokenizer"):
        generator(made, "run.steps=3")
    with pytest.raises(UserError, match="are not codes of"):
        generator(made, "run.steps=3", f"data.vq_ckpt={made / 'vq'}")
    shutil.rmtree(made / "codes")
    extract(made, "decoder")
    generator(made, "run.steps=3", f"data.vq_ckpt={made / 'vq'}")
    assert "warning" not in (made / "gpt/log.txt").read_text()


def test_a_resume_warns_of_more_images_and_refuses_other_classes(made: Path) -> None:
    shutil.rmtree(made / "codes")
    (made / "images/apple/extra.png").write_bytes((made / "images/apple/0.png").read_bytes())
    extract(made, "vq")
    generator(made, "run.steps=3")
    log = (made / "gpt/log.txt").read_text()
    assert "warning: the training data changed" in log and "images 11 -> 12" in log
    shutil.rmtree(made / "codes")
    (made / "images/apple").rename(made / "images/dog")
    extract(made, "vq")
    with pytest.raises(UserError, match="other classes"):
        generator(made, "run.steps=4")


def test_held_out_codes_may_lack_classes(made: Path) -> None:
    shutil.copytree(made / "images", made / "some")
    shutil.rmtree(made / "some/apple")
    extract(made, "vq", "some", "held_out")
    assert CodeStore(made / "held_out", classes=["apple", "bird", "cat"]).labels.tolist() == [1] * 3 + [2] * 4
    generator(made, "run.steps=3", "run.validate_every=1", f"data.val_codes={made / 'held_out'}")
    measure(made, f"code_path={made / 'held_out'}")
    assert read_provenance(made / "gpt")["classes"] == ["apple", "bird", "cat"]
