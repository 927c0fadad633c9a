"""The evaluation commands of the ReTok and GigaTok READMEs, run at toy scale with exactly their flags.

Each goes through its launcher as far as the command it starts, which then runs in this process: tiny checkpoints, a
handful of images, a small Inception graph in the cache folder and a VGG16 with random weights where torch's hub keeps
its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from autoregressive.models.gpt import GPT
from benchmarks.inception_graph import write_graph
from common import checkpoint, config
from common.networks.lpips import SLICES, VGG_FILE, LPIPSNetwork
from evaluations.metrics.inception import FILE
from tests import toys
from tests.toys import read_npz
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = {**toys.TOKENIZER, "decoder": {**toys.TOKENIZER["decoder"], "semantic_head": None}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMGNET/{train,val}, vq/, vq.yaml, gpt/, and the two caches that hold networks."""
    root = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("apple", "bird", "cat"):
            folder = root / "IMGNET" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{index}.png")
    torch.manual_seed(0)
    schema = config.resolve(TokenizerConfig, TOKENIZER, where="model")
    weights = {"model": Tokenizer(schema).state_dict()}
    checkpoint.save(root / "vq", 1, weights, {}, {"model": dataclasses.asdict(schema)})
    (root / "vq.yaml").write_text(yaml.safe_dump({"model": TOKENIZER}))
    gpt = GPT.Config(size="tiny", codebook_size=64, num_tokens=16, num_classes=3)
    about = {"model": {"name": "gpt", **dataclasses.asdict(gpt)}}
    checkpoint.save(root / "gpt", 1, {"model": GPT(gpt).state_dict()}, {}, about)
    (root / "cache" / "image-token-lab").mkdir(parents=True)
    write_graph(root / "cache" / "image-token-lab" / FILE, width=1 / 16)
    (root / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    trunk = LPIPSNetwork().net
    torch.save(
        {f"features.{layer}.{kind}": getattr(trunk.get_submodule(f"slice{stage + 1}")[str(layer)], kind)
         for stage, layers in enumerate(SLICES) for layer in layers for kind in ("weight", "bias")},
        root / "torch" / "hub" / "checkpoints" / VGG_FILE,
    )
    return root


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a README's command line in `place`, where its variables are set."""
    for name, value in {
        "XDG_CACHE_HOME": "cache", "TORCH_HOME": "torch", "IMGNET_ROOT": "IMGNET", "VAL_PATH": "out/val_imagenet",
        "GT_VAL_NPZ_PATH": "out/val_imagenet.npz", "GT_NPZ_PATH": "out/train_imagenet.npz", "VQ_CKPT": "vq",
        "TOK_CONFIG": "vq.yaml", "GPT_CKPT": "gpt", "GPT_MODEL": "tiny", "CFG_SCHEDULE": "step", "PRECISION": "none",
        "CFG_START_RATIO": "0.18", "CFG_SCALE": "1.5", "EVAL_BATCH_PER_GPU": "4", "SEED": "0",
    }.items():
        known_folder = name in ("XDG_CACHE_HOME", "TORCH_HOME")
        monkeypatch.setenv(name, str(place / value) if known_folder else value)
    monkeypatch.setenv("EVAL_PYTHON_PATH", sys.executable)  # has no TensorFlow: the torch engine
    monkeypatch.chdir(place)

    def run(line: str, **variables: str) -> None:
        line = " ".join(line.split()).replace("scripts/", f"{ROOT}/scripts/")
        environment = {**os.environ, "DRY_RUN": "1", "GPUS": "1", "NNODES": "1", **variables}
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout)
        monkeypatch.setattr(sys, "argv", words[2:])
        importlib.import_module(words[2]).main()

    return run


REFERENCE = "bash scripts/val.sh --data-path $IMGNET_ROOT/val --sample-dir out --image-size 32"
TRAINING = "bash scripts/val.sh --data-path $IMGNET_ROOT/train --sample-dir out --image-size 32 --split train"


def test_reference_and_reconstruction(typed, place):
    """ReTok's and GigaTok's `val.sh` and quantitative `reconstruction.sh`."""
    typed(REFERENCE)
    assert read_npz(place / "out" / "val_imagenet.npz").shape == (6, 32, 32, 3)
    typed("""bash scripts/reconstruction.sh --data-path $VAL_PATH --image-size 32 --quant-way vq --sample-dir out/rec
        --vq-ckpt ${VQ_CKPT} --model-config ${TOK_CONFIG} --clear-cache --eval-python-path ${EVAL_PYTHON_PATH}
        --gt-npz-path ${GT_VAL_NPZ_PATH} --lpips""")
    results = json.loads((place / "out" / "rec" / "results.json").read_text())
    assert {"rfid", "psnr", "ssim", "lpips_vgg"} <= set(results["protocol"]["metrics"])
    assert not list((place / "out" / "rec").glob("*.npz"))


def test_qualitative_reconstruction(typed, place):
    """GigaTok's, whose README sets `gpus` and PORT in front."""
    typed("""gpus=1 PORT=11086 bash scripts/reconstruction.sh --quant-way=vq --data-path=${IMGNET_ROOT}/val
        --image-size=32 --sample-dir=out/qualitative --vq-ckpt=${VQ_CKPT} --model-config ${TOK_CONFIG} --qualitative
        --lpips --clear-cache""")
    assert len(list((place / "out" / "qualitative" / "previews").glob("*_gt.png"))) == 6


SAMPLE = """bash scripts/sample_c2i_search_cfg.sh --quant-way=vq --image-size=32 --sample-dir=out/{folder}
    --cfg-scale ${{CFG_SCALE}} --vq-ckpt ${{VQ_CKPT}} --tok-config ${{TOK_CONFIG}} --gpt-model ${{GPT_MODEL}}
    --cfg-schedule ${{CFG_SCHEDULE}} --step-start-ratio ${{CFG_START_RATIO}} --gpt-ckpt ${{GPT_CKPT}}
    --per-proc-batch-size ${{EVAL_BATCH_PER_GPU}} --precision ${{PRECISION}} --eval-python-path ${{EVAL_PYTHON_PATH}}
    --gt-npz-path ${{GT_NPZ_PATH}} --global-seed ${{SEED}} --clear-cache --num-fid-samples 6"""


@pytest.mark.parametrize("search", ["", " --search --search-num-images 4"])
def test_samples_are_measured_and_searched(typed, place, search):
    """The same command with and without --search; 50,000 images, the default, are six here."""
    if not (place / "out" / "train_imagenet.npz").is_file():
        typed(TRAINING)
    folder = "search" if search else "sampled"
    typed(SAMPLE.format(folder=folder) + search)
    results = json.loads((place / "out" / folder / "results.json").read_text())
    assert results["metrics"]["fid"] > 0 and results["protocol"]["guidance"]["schedule"] == "step"
    assert len((place / "out" / folder / "search.csv").read_text().splitlines()) > (4 if search else 1)
    assert not list((place / "out" / folder).glob("*.npz"))


def test_visualization(typed, place):
    typed("""bash scripts/sample_c2i_visualization.sh --quant-way=vq --image-size=32 --sample-dir=out/classes
        --vq-ckpt ${VQ_CKPT} --tok-config ${TOK_CONFIG} --gpt-model ${GPT_MODEL} --cfg-schedule constant
        --cfg-scale 4.0 --gpt-ckpt ${GPT_CKPT} --precision fp16 --class-idx "2,0" --per-proc-batch-size 4
        --qual-num 4""")
    assert len(list((place / "out" / "classes").glob("class_*/*.png"))) == 4


def test_the_model_card_is_made_of_what_the_jobs_recorded(typed, place):
    """Runs after the jobs above; alone, it makes their records first."""
    if not (place / "out" / "rec" / "results.json").is_file():
        test_reference_and_reconstruction(typed, place)
    if not (place / "out" / "sampled" / "results.json").is_file():
        test_samples_are_measured_and_searched(typed, place, "")
    typed("bash scripts/model_card.sh --results out --out out/MODEL_ZOO.md")
    text = (place / "out" / "MODEL_ZOO.md").read_text()
    recorded = json.loads((place / "out" / "sampled" / "results.json").read_text())
    for heading in ("rFID", "PSNR", "LPIPS", "gFID", "IS", "Prec. (float64)"):
        assert f"| {heading} |" in text
    assert f"{recorded['metrics']['fid']:.4g}" in text and "step 1.5" in text
    assert recorded["protocol"]["checkpoints"]["generator"]["weights_sha256"][:8] in text
    assert "published Frechet distances use 50000" in text  # a weak number carries its flag
