"""Every command of RobusTok's README, path-mapped, at toy scale: dotlist keys and flags mixed as it mixes them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import autoregressive
import tokenizer as tokenizers
from autoregressive import extract_codes
from autoregressive.config import ExtractConfig
from common import checkpoint
from common.pairs import PairFolder
from tests.toys import read_npz

ROOT = Path(__file__).parents[2]
TOY = """
model:
  image_size: 16
  z_channels: 32
  layout: {num_tokens: 16}
  encoder: {name: dino_vit, width: 32, layers: 1, heads: 2, patch: 4}
  decoder: {name: dino_vit, width: 32, layers: 1, heads: 2, patch: 4}
  quantizer: {name: vq_hits, codebook_size: 32, codebook_dim: 8}
data: {batch_size: 4, crop: center}
run: {out: %s, steps: 2, device: cpu, precision: none}
losses: {perceptual: null}
adversary: null
regularizers: {perturbation: {beta: 0.5, delta: 8}}
"""
POST = """
base: main-train.yaml
data: {flip: false}
freeze: [encoder, quant_conv, quantizer]
regularizers: {perturbation: null}
run: {out: %s}
"""
SIZES = [
    f"model.generator.{key}={value}" for key, value in
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}.items()
]  # fmt: skip
RAR = [f"config={ROOT}/configs/generator/rar.yaml", *SIZES]
TINY = [
    "model.vq_model.codebook_size=32", "model.generator.image_seq_len=16", "model.generator.condition_num_classes=2",
]  # fmt: skip


def command(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def test_the_readme_from_images_to_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("c0", "c1"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(5):
            colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((16, 16)).save(tmp_path / f"images/{name}/{index}.png")
    vq, post, rar = tmp_path / "vq", tmp_path / "post", tmp_path / "rar_b"
    (tmp_path / "main-train.yaml").write_text(TOY % vq)
    (tmp_path / "post-train.yaml").write_text(POST % post)

    command(monkeypatch, "tokenizer/tokenizer_image/main_train.py", "--config", tmp_path / "main-train.yaml",
            "--data-path", tmp_path / "images")  # fmt: skip

    store = extract_codes.run(ExtractConfig(str(tmp_path / "codes"), str(tmp_path / "images"), str(vq), device="cpu"))
    codes, labels = np.load(store / "codes.npy"), np.load(store / "labels.npy")
    crops = [(int(label), row.tolist()) for label, rows in zip(labels, codes, strict=True) for row in rows]
    lines = [{"class_id": label, "tokens": row} for label, row in crops]
    tokens = tmp_path / "pretokenized.jsonl"
    tokens.write_text("".join(json.dumps(line) + "\n" for line in lines))

    command(monkeypatch, "scripts/train_rar.py", "experiment.project=rar", "experiment.name=rar_b",
            f"experiment.output_dir={rar}", *RAR, *TINY, f"dataset.params.pretokenization={tokens}",
            f"model.vq_ckpt={vq}", "--iterations", 2, "--global-batch-size", 4, "--device", "cpu")  # fmt: skip
    config = checkpoint.read_config(checkpoint.newest(rar))
    assert [config["model"][key] for key in ("name", "width", "layers", "heads", "ffn_width")] == ["rar", 32, 2, 4, 64]
    assert (config["data"]["codes"], config["optim"]["beta2"]) == (str(tokens), 0.96)
    assert autoregressive.load(rar).num_classes == 2

    sampling = [
        f"experiment.generator_checkpoint={rar}", f"model.vq_ckpt={vq}", "model.generator.randomize_temperature=1.02",
        "model.generator.guidance_scale=6.0", "model.generator.guidance_scale_pow=1.15",
    ]  # fmt: skip
    command(monkeypatch, "scripts/post_train_data.py", *RAR, *TINY, f"experiment.output_dir={tmp_path / 'pairs'}",
            *sampling, "--sigma", "0.7", "--data-path", tmp_path / "images", "--num_samples", 8)  # fmt: skip
    pairs = PairFolder(tmp_path / "pairs", tmp_path / "images")
    assert len(pairs) == 8 and pairs.meta["sampling"]["temperature"] == 1.02
    guidance = pairs.meta["guidance"]
    assert (guidance["schedule"], guidance["scale"], guidance["power"]) == ("power_cosine", 6.0, 1.15)

    command(monkeypatch, "tokenizer/tokenizer_image/xqgan_post_train.py", "--config", tmp_path / "post-train.yaml",
            "--data-path", tmp_path / "pairs", "--pair-set", tmp_path / "images", "--vq-ckpt", vq)  # fmt: skip
    assert tokenizers.load(post).num_tokens == 16

    sampling[1] = f"model.vq_ckpt={post}"
    command(monkeypatch, "scripts/sample_imagenet_rar.py", *RAR, *TINY, f"experiment.output_dir={tmp_path / 'samples'}",
            *sampling, "num_images=6")  # fmt: skip
    assert read_npz(tmp_path / "samples.npz").shape == (6, 16, 16, 3)
    assert np.load(tmp_path / "samples/labels.npy").tolist() == [0, 1, 0, 1, 0, 1]
    assert (ROOT / "evaluations/c2i/evaluator.py").is_file()
