"""Toy files in the layouts of other projects go through every job, as released ones do."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import autoregressive
import tokenizer as tokenizers
from autoregressive import extract_codes
from autoregressive import sample as sampling
from autoregressive import train as generator_training
from autoregressive.config import ExtractConfig, SampleConfig
from autoregressive.config import TrainConfig as GeneratorTrainConfig
from autoregressive.models.rar import RAR
from autoregressive.paper_flags import EXTRACT_FLAGS, SAMPLE_FLAGS
from autoregressive.paper_flags import TRAIN_FLAGS as GENERATOR_FLAGS
from autoregressive.released import write_released as write_generator
from common import config
from common.checkpoint import newest
from common.errors import UserError
from evaluations import diagnose, pfid, reconstruction
from tests import toys
from tokenizer import train as tokenizer_training
from tokenizer.config import TokenizerConfig, TrainConfig
from tokenizer.families import robustok, taming, titok, var, xqgan
from tokenizer.families.base import swap_back
from tokenizer.model import Tokenizer
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.released import write_released

ROOT = Path(__file__).parents[2]
SIZES = {"name": "titok", "width": 64, "layers": 1, "heads": 1, "patch": 8}
CNN = {"channels": 32, "multipliers": [1, 1, 1, 1], "blocks": 1}
VQ = {"name": "vq", "codebook_size": 32, "codebook_dim": 6, "rotation": False}
PLAIN = {
    "image_size": 32, "z_channels": 64, "layout": {"num_tokens": 8}, "encoder": SIZES, "decoder": SIZES,
    "quantizer": {**VQ, "l2_norm": False},
}  # fmt: skip
PROXY = {"codebook_size": 16, "codebook_dim": 32, **CNN}
TWO_STAGE = {
    **PLAIN, "encoder": {**SIZES, "reread": True}, "decoder": {**SIZES, "proxy": PROXY}, "quantizer": VQ,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "titok": TWO_STAGE,
    "onedpiece": {**TWO_STAGE, "layout": {"num_tokens": 256}},
    "titok_pixels": PLAIN,
    "titok_vae": {**PLAIN, "quantizer": {"name": "kl", "dim": 4, "weight": 1e-6}},
    "maskgit": {
        "image_size": 32, "z_channels": 6, "quant_conv_kernel": 0, "encoder": {"name": "maskgit", **CNN},
        "decoder": {"name": "maskgit", **CNN}, "quantizer": {**VQ, "l2_norm": False},
    },
}  # fmt: skip
GRID = {"channels": 32, "multipliers": [1, 1]}
TAMING = {"name": "cnn", "attention": True, **GRID}
VIT = {"name": "dino_vit", "width": 64, "layers": 1, "heads": 1, "patch": 8}
FOREIGN: dict[str, dict[str, Any]] = {
    name: {
        "image_size": 32, "z_channels": 8, "encoder": {**TAMING, "blocks": blocks},
        "decoder": {**TAMING, "blocks": blocks + 1, "adaptive_norm": False, "depth_to_space": False},
        "quantizer": {"name": kind, "codebook_size": 32, "codebook_dim": 8, "l2_norm": False, "rotation": False},
    }
    for name, kind, blocks in (("taming", "vq", 2), ("ibq", "ibq", 4))
} | {
    "var": {
        "image_size": 32, "z_channels": 8, "encoder": TAMING,
        "decoder": {**TAMING, "adaptive_norm": False, "depth_to_space": False},
        "quantizer": {"name": "multi_scale", "codebook_size": 32, "codebook_dim": 8, "l2_norm": False},
    },
    "magvit2": {
        "image_size": 32, "z_channels": 6, "quant_conv_kernel": 0, "quantizer": {"name": "lfq", "codebook_size": 64},
        "encoder": {"name": "magvit2", **GRID}, "decoder": {"name": "magvit2", **GRID},
    },
} | {
    name: {
        "image_size": 32, "z_channels": 64, "layout": {"num_tokens": tokens}, "encoder": {**VIT, "groups": 2},
        "decoder": VIT, "quantizer": {"name": "product", "groups": 2, "part": {**part, "codebook_size": 32}},
    }
    for name, tokens, part in (
        ("xqgan", 16, {"name": "vq_hits", "codebook_dim": 4}),
        ("xqgan_residual", 121, {"name": "multi_scale", "codebook_dim": 4, "scales": xqgan.SCALES}),
        ("xqgan_binary", 121, {"name": "binary_multi_scale", "scales": xqgan.SCALES}),
    )
}  # fmt: skip
"""Families whose files we read but do not write."""
CONVOLUTIONS = ("maskgit", "taming", "ibq", "var", "magvit2")
SLOW = [name for name in (*MODELS, *FOREIGN) if name not in ("titok", "titok_vae")]


def make(name: str) -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(config.resolve(TokenizerConfig, (MODELS | FOREIGN)[name], where="model"))
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.mul_(4)  # an untrained encoder gives every image the same few codes
    return model.eval()


def theirs(name: str) -> dict[str, torch.Tensor]:
    """The tensors of `make(name)` under the names of their project."""
    tensors = {key: value for key, value in make(name).state_dict().items() if not key.endswith("codebook_used")}
    if name.startswith("xqgan"):
        parts = [(f"quantizes.{place}.{old}", f"quantizer.parts.{place}.{new}") for place in (0, 1)
                 for old, new in ((var.HITS, "hits"), var.PHI, ("", ""))]  # fmt: skip
        return swap_back(tensors, parts + robustok.PREFIXES)
    levels = len(GRID["multipliers"])
    found = []
    if name == "magvit2":
        found = [(f"{side}.mid_block.", f"{side}.mid.") for side in ("encoder", "decoder")]
        for level in range(levels):
            found.append((f"decoder.adaptive.{level}.", f"decoder.adaptive.{levels - 1 - level}."))
            found.append((f"encoder.down.{level}.downsample.", f"encoder.conv_blocks.{level}.downsample.conv."))
    if name == "var":
        found = [(f"quantize.{var.PHI[0]}", f"quantizer.{var.PHI[1]}")]
        for key in [key for key in tensors if ".q." in key]:
            parts = [tensors.pop(key.replace(".q.", f".{each}.")) for each in "qkv"]
            tensors[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return swap_back(tensors, found + taming.pairs({f"decoder.up.{levels - 1}.": None}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("open")
    toys.write_images(root / "images")
    for name in MODELS:
        write_released(make(name), root / f"{name}.bin")
    for name in FOREIGN:
        torch.save({"state_dict": theirs(name)}, root / f"{name}.bin")
    return root


def parse(schema: type, aliases: dict[str, Any], *words: object) -> Any:
    return config.parse(schema, [str(word) for word in words], aliases=aliases)


def size_of(name: str) -> list[object]:
    """Convolutional files do not show the size of their images."""
    return ["--image-size", 32] if name in CONVOLUTIONS else []


@pytest.mark.parametrize("name", [*MODELS, *FOREIGN])
def test_a_file_is_recognised_and_loads_the_same_model(made: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    own, images = make(name), torch.rand(2, 3, 32, 32) * 2 - 1
    model = tokenizers.load(made / f"{name}.bin", image_size=32)
    assert torch.equal(model.encode_vectors(images), own.encode_vectors(images))
    vectors = own.encode_vectors(images)
    assert torch.equal(model.decode_vectors(vectors).images, own.decode_vectors(vectors).images)
    titles = {
        "maskgit": "MaskGIT-VQGAN", "onedpiece": "One-D-Piece", "taming": "taming's VQGAN", "ibq": "IBQ",
        "var": "VAR's VQVAE", "magvit2": "Open-MAGVIT2", "xqgan": "XQ-GAN",
    }  # fmt: skip
    title = titles.get(name.partition("_")[0], "TiTok")
    assert f"recognised {title}" in capsys.readouterr().err
    assert model.image_size == 32


HUB_CONFIG = {
    "experiment": {"output_dir": "x"}, "dataset": {"preprocessing": {"crop_size": 32}},
    "model": {
        "vq_model": {
            "codebook_size": 32, "token_size": 6, "use_l2_norm": True, "commitment_cost": 0.5,
            "vit_enc_model_size": "small", "vit_dec_model_size": "small", "vit_enc_patch_size": 8,
            "vit_dec_patch_size": 8, "num_latent_tokens": 8,
        },
        "generator": {"image_seq_len": "${model.vq_model.num_latent_tokens}"},
    },
}  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hub_folder_with_the_projects_own_config(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    monkeypatch.setitem(titok.SIZES, "small", (64, 1, 1))
    (tmp_path / "config.json").write_text(json.dumps({"config": HUB_CONFIG} if wrapped else HUB_CONFIG))
    save_file(torch.load(made / "titok.bin", weights_only=True)["model"], tmp_path / "model.safetensors")
    model = tokenizers.load(tmp_path)
    assert model.config.quantizer["commit_weight"] == 0.5 and model.config.encoder["reread"]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(model.encode(images), make("titok").encode(images))


def test_a_training_run_of_1d_tokenizer_stands_for_the_average_of_its_newest_checkpoint(
    made: Path, tmp_path: Path
) -> None:
    tensors = torch.load(made / "titok.bin", weights_only=True)["model"]
    for step, name, factor in ((9000, "ema_model", 1), (50000, "ema_model", 2), (50000, "unwrapped_model", 3)):
        folder = tmp_path / f"checkpoint-{step}" / name
        folder.mkdir(parents=True)
        torch.save({**tensors, "latent_tokens": factor * tensors["latent_tokens"]}, folder / "pytorch_model.bin")
    latents = make("titok").encoder.latent_tokens
    assert torch.equal(tokenizers.load(tmp_path).encoder.latent_tokens, 2 * latents)
    assert torch.equal(tokenizers.load(tmp_path, "model").encoder.latent_tokens, 3 * latents)


def test_files_that_cannot_be_decoded_say_why(made: Path, tmp_path: Path) -> None:
    tensors = torch.load(made / "titok.bin", weights_only=True)["model"]
    first_stage = {key: value for key, value in tensors.items() if not key.startswith("pixel_")}
    torch.save(first_stage, tmp_path / "first.bin")
    with pytest.raises(UserError, match="first stage"):
        tokenizers.load(tmp_path / "first.bin")
    plain = torch.load(made / "titok_pixels.bin", weights_only=True)["model"]
    torch.save({**plain, "decoder.text_guidance_proj.weight": torch.zeros(64, 768)}, tmp_path / "text.bin")
    with pytest.raises(UserError, match="TA-TiTok"):
        tokenizers.load(tmp_path / "text.bin")
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(plain, folder / "model.safetensors")
    for broken in ({"vq_model": "x"}, {"vq_model": {}}, {"vq_model": {"vit_enc_model_size": ["small"]}}):
        (folder / "config.json").write_text(json.dumps({"model": broken, "dataset": {}}))
        with pytest.raises(UserError, match="looks like a titok"):
            tokenizers.load(folder)
    for key, value in (("latent_tokens", torch.zeros(())), ("decoder.decoder_embed.weight", torch.zeros(3))):
        torch.save({**plain, key: value}, tmp_path / "shapes.bin")
        with pytest.raises(UserError, match="looks like a titok"):
            tokenizers.load(tmp_path / "shapes.bin")


def test_the_file_around_them_tells_ibq_from_taming(tmp_path: Path) -> None:
    tensors = theirs("taming")  # two blocks a level
    averages = {f"model_ema.{key.replace('.', '')}": value for key, value in tensors.items()}
    gear, lightning = {"vq": tensors, "vq_ema": tensors}, {"state_dict": tensors | averages}
    for content, choices in ((gear, ("ema", "model", "vq_ema")), (lightning, ("ema", "model"))):
        torch.save(content, tmp_path / "a.ckpt")
        for weights in choices:
            assert tokenizers.load(tmp_path / "a.ckpt", weights).config.quantizer["name"] == "ibq"


def test_the_choice_between_taming_and_ibq_can_be_overridden(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert tokenizers.load(made / "taming.bin").config.quantizer["name"] == "vq"
    advice = capsys.readouterr().err.splitlines()[0].partition("pass config=")[2]
    model = tokenizers.load(made / "taming.bin", config=ast.literal_eval(advice))
    assert model.config.quantizer["name"] == "ibq" and model.codebook_size == 32


@pytest.mark.parametrize("name", ["titok", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_job_takes_the_file(made: Path, tmp_path: Path, name: str) -> None:
    path = made / f"{name}.bin"
    given = ["--vq-ckpt", path, "--data-path", made / "images", "--device", "cpu"]
    model = tokenizers.load(path, image_size=32)
    full = model.num_tokens
    counts = [1, full // 2, full] if model.is_1d else [full]
    found = reconstruction.run(parse(
        reconstruction.ReconstructionConfig, reconstruction.FLAGS, *given, *size_of(name), "--sample-dir",
        tmp_path / "recon", "--num-tokens", f"[{','.join(map(str, counts))}]",
    ))  # fmt: skip
    assert list(found["tokens"]) == [str(count) for count in counts]
    robust = pfid.run(parse(
        pfid.PfidConfig, pfid.FLAGS, *given, *size_of(name), "--sample-dir", tmp_path / "pfid", "--alphas", "[0.5]",
        "--deltas", "[4]", "--frechet", "fd_efficientnet_lite2",
    ))  # fmt: skip
    assert robust["tokens"][str(full)]["cells"]
    seen = diagnose.run(parse(
        diagnose.DiagnoseConfig, diagnose.FLAGS, *given, *size_of(name), "--out", tmp_path / "seen",
        "--every", full // 2,
    ))  # fmt: skip
    assert seen["prefixes"]["num_tokens"][-1] == full
    store = tmp_path / "codes"
    extract_codes.run(parse(ExtractConfig, EXTRACT_FLAGS, *given, *size_of(name), "--code-path", store))
    assert np.load(store / "codes.npy").shape == (11, 2, full)
    generator_training.run(parse(
        GeneratorTrainConfig, GENERATOR_FLAGS, "--code-path", store, "--out", tmp_path / "gpt", "--gpt-model", "tiny",
        "--global-batch-size", 4, "--iterations", 2, "--device", "cpu", "--mixed-precision", "none",
    ))  # fmt: skip
    packed = sampling.run(parse(
        SampleConfig, SAMPLE_FLAGS, "--gpt-ckpt", tmp_path / "gpt", "--vq-ckpt", path, *size_of(name), "--sample-dir",
        tmp_path / "samples", "--num-fid-samples", 3, "--cfg-scale", 2.0, "--device", "cpu",
    ))  # fmt: skip
    assert toys.read_npz(packed).shape == (3, 32, 32, 3)
    post_train(made, name, tmp_path / "post")


def post_train(made: Path, name: str, out: Path) -> None:
    """Two steps of the decoder: its codes stay."""
    stated = made / f"{name}.yaml"
    model = tokenizers.load(made / f"{name}.bin", image_size=32)
    stated.write_text("model:\n" + "".join(f"  {line}\n" for line in config.dump(model.config).splitlines()))
    tokenizer_training.run(parse(
        TrainConfig, TRAIN_FLAGS, "--config", stated, f"init={made / f'{name}.bin'}", "--data-path", made / "images",
        "--out", out, "--iterations", 2, "--global-batch-size", 4, "--mixed-precision", "none", "--device", "cpu",
        "--lr", 1e-2, "freeze=[encoder,quant_conv,quantizer]", "adversary=null", "losses.perceptual=null",
    ))  # fmt: skip
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    trained = tokenizers.load(out)
    assert torch.equal(trained.encode_vectors(images), model.encode_vectors(images))
    vectors = model.encode_vectors(images)
    assert not torch.equal(trained.decode_vectors(vectors).images, model.decode_vectors(vectors).images)


def test_a_continuous_tokenizer_reconstructs_and_its_decoder_trains(made: Path, tmp_path: Path) -> None:
    given = ["--vq-ckpt", made / "titok_vae.bin", "--data-path", made / "images", "--device", "cpu"]
    found = reconstruction.run(parse(
        reconstruction.ReconstructionConfig, reconstruction.FLAGS, *given, "--sample-dir", tmp_path / "recon",
        "--num-tokens", "[2,8]",
    ))  # fmt: skip
    assert list(found["tokens"]) == ["2", "8"]
    with pytest.raises(UserError, match="continuous"):
        extract_codes.run(parse(ExtractConfig, EXTRACT_FLAGS, *given, "--code-path", tmp_path / "codes"))
    post_train(made, "titok_vae", tmp_path / "post")


@pytest.mark.parametrize("name", ["titok_SL256", "onedpiece_S256"])
def test_the_shipped_configs_train(made: Path, tmp_path: Path, name: str) -> None:
    small = [f"model.{side}.{key}={value}" for side in ("encoder", "decoder") for key, value in SIZES.items()]
    settings = parse(
        TrainConfig, TRAIN_FLAGS, "--config", ROOT / f"configs/vq/{name}.yaml", *small, "model.decoder.size=null",
        "model.image_size=32", "model.z_channels=64", "model.layout.num_tokens=8", "model.quantizer.codebook_size=32",
        "--data-path", made / "images", "--out", tmp_path / "run", "--iterations", 3, "--global-batch-size", 4,
        "--mixed-precision", "none", "--device", "cpu", "--log-every", 1, "--num-workers", 0, "losses.perceptual=null",
        "losses.logits=null", "adversary.start=1",
    )  # fmt: skip
    tokenizer_training.run(settings)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"train/loss_recon", "train/loss_vq", "train/loss_commit", "train/logits_real"} <= set().union(*lines)
    model = tokenizers.load(tmp_path / "run")
    assert model.config.encoder["reread"] == (name == "onedpiece_S256") == ("nested_dropout" in settings.regularizers)


def test_rar_trains_on_lines_of_maskgit_codes_and_samples(made: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 32, (6, 16))
    lines = [json.dumps({"class_id": index % 3, "tokens": row.tolist()}) for index, row in enumerate(rows)]
    (tmp_path / "maskgitvq.jsonl").write_text("\n".join(lines) + "\n")
    sizes = ["model.size=tiny", "model.num_tokens=16", "model.num_classes=3"]
    published = ["--config", ROOT / "configs/generator/rar_maskgit.yaml"]
    common = [*published, "model.vq_model.codebook_size=32", f"model.vq_ckpt={made / 'maskgit.bin'}"]
    generator_training.run(parse(
        GeneratorTrainConfig, GENERATOR_FLAGS, *common, *sizes, f"experiment.output_dir={tmp_path / 'rar'}",
        "--image-size", 32, f"dataset.params.pretokenization={tmp_path / 'maskgitvq.jsonl'}",
        "--iterations", 2, "--global-batch-size", 4, "--device", "cpu", "--mixed-precision", "none",
    ))  # fmt: skip
    assert autoregressive.load(newest(tmp_path / "rar")).num_classes == 3
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 4, "ffn_width": 64}
    model = RAR(RAR.Config(**sizes, codebook_size=32, num_tokens=16, num_classes=3))
    write_generator(model, tmp_path / "rar_b.bin")
    for setting in ((1.0, 16.0, 2.75), (1.02, 15.5, 2.5), (1.02, 6.9, 1.5), (1.02, 8.0, 1.2)):
        names = ("randomize_temperature", "guidance_scale", "guidance_scale_pow")
        asked = [f"model.generator.{name}={value}" for name, value in zip(names, setting, strict=True)]
        toy = ["model.generator.image_seq_len=16", "model.generator.condition_num_classes=3"]
        out = tmp_path / f"samples_{setting[1]}"
        packed = sampling.run(parse(
            SampleConfig, SAMPLE_FLAGS, *common, *asked, *toy, f"experiment.output_dir={out}", "--image-size", 32,
            f"experiment.generator_checkpoint={tmp_path / 'rar_b.bin'}", "num_images=3", "--device", "cpu",
        ))  # fmt: skip
        assert toys.read_npz(packed).shape == (3, 32, 32, 3)
        told = json.loads((out / "settings.json").read_text())
        assert (told["sampling"]["temperature"], told["guidance"]["scale"], told["guidance"]["power"]) == setting
