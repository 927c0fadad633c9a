"""The shipped configs: a whole training step of the real S-S, and the shapes of all that the others compute.

`bash scripts/test.sh -m slow tests/integration/test_tokenizer_full_size.py` runs the S-S step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common import config
from common.dist import World
from tests.unit.test_tokenizer_configs import CONFIGS, PARAMETERS
from tokenizer.config import TrainConfig
from tokenizer.model import Pass
from tokenizer.train import TokenizerTrainee

ROOT = Path(__file__).parents[2]
OTHERS = [ROOT / "configs/quickstart/tokenizer.yaml"]
OTHERS += [*sorted((ROOT / "configs").glob("*-train.yaml")), *sorted((ROOT / "configs").glob("toy/robustok*.yaml"))]
EVIDENCE = [path for scale in ("emoji", "imagenet") for path in sorted((ROOT / "configs/evidence" / scale).glob("*"))]
OTHERS += [path for path in EVIDENCE if path.stem != "gpt"]
HERE = "tests.integration.test_tokenizer_full_size"


class TeacherOfNoise(nn.Module):
    """Features of DINOv2's shape, so that the semantic head keeps its released width."""

    @dataclass
    class Config:
        width: int = 768

    def __init__(self, config: Config, grid: int, image_size: int):
        super().__init__()
        self.shape = (grid * grid, config.width)

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), *self.shape, device=images.device)


def trainee_of(path: Path, device: str, *words: str) -> TokenizerTrainee:
    """A shipped config, its networks that are not in the repository replaced.

    LeCam is left out: it keeps its means as plain numbers, which meta tensors have none of.
    """
    given = ["--config", str(path), "run.out=x", "run.steps=10", "data.root=x", "run.device=cpu", "run.precision=none"]
    given += ["run.recompute=false"] * (device == "meta")  # it does not restore MetaAutocast
    raw = config.parse(TrainConfig, given)
    given += ["losses.perceptual.name=efficientnet_lite0"] * bool("perceptual" in raw.losses)
    teacher = raw.regularizers.get("semantic", {}).get("teacher", {}).get("name")
    given += [f"regularizers.semantic.teacher.name={HERE}:TeacherOfNoise"] * (teacher == "dinov2_vitb14")
    if raw.adversary:
        given += ["adversary.start=0", "adversary.discriminator.name=patchgan"]
        given += ["adversary.lecam=null", "adversary.init=null"]
    given += ["regularizers.shortcut.until=10"] * bool("shortcut" in raw.regularizers)
    given += ["init=null"] * bool(raw.init) + ["backbone=null"] * bool(raw.backbone)
    chosen = config.parse(TrainConfig, [*given, *words])
    with torch.device(device):
        return TokenizerTrainee(chosen, World(0, 1, torch.device(device)))


def test_the_real_s_s_takes_a_step_at_256_pixels() -> None:
    """All losses at once, forward, backward and both updates, on one image: 20 s on one core, 4.2 GB."""
    trainee = trainee_of(ROOT / "configs/vq/VQ_SS256.yaml", "cpu", "ema_decay=0")
    model = trainee.tokenizer
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS["VQ_SS256"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pixels = torch.randint(256, (1, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logged = trainee.step({"pixels": pixels}, 0)
    expected = ("recon", "perceptual", "vq", "commit", "semantic", "shortcut", "adversarial", "discriminator")
    assert {f"train/loss_{name}" for name in expected} <= logged.keys()
    assert all(value.isfinite() for value in logged.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    # Adam moves by the learning rate whatever the gradient, unless that is as small as its epsilon.
    assert not [name for name in still if model.get_parameter(name).grad.abs().max() > 1e-6]


@pytest.mark.parametrize("path", [*CONFIGS, *OTHERS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_built_and_takes_a_step(path: Path) -> None:
    """On the meta device: every shape is computed and every gradient exists, nothing is allocated."""
    trainee = trainee_of(path, "meta")
    seen: list[Pass] = []
    logits: list[Tensor] = []
    trainee.trained.register_forward_hook(lambda _module, _given, done: seen.append(done))
    if trainee.adversary:
        trainee.adversary.module.register_forward_hook(lambda _module, _given, out: logits.append(out))
    size = trainee.config.model.image_size
    logged = trainee.step({"pixels": torch.empty(2, size, size, 3, dtype=torch.uint8, device="meta")}, 0)
    assert {"train/loss", "train/loss_recon"} <= logged.keys()
    assert all(value.dim() == 0 for value in logged.values())
    frozen = {name for name, p in trainee.tokenizer.named_parameters() if not p.requires_grad}
    without = {name for name, p in trainee.tokenizer.named_parameters() if p.grad is None}
    assert without == frozen
    if path in CONFIGS:
        assert shapes_of(seen[0], logits) == expected_shapes(path.stem)


def shapes_of(done: Pass, logits: list[Tensor]) -> dict[str, set[tuple[int, ...]]]:
    features = done.views[0].features
    found = {
        "images": [view.images for view in done.views], "vectors": [done.quantized.vectors],
        "codes": [done.quantized.codes], "map": [done.spatial], "decoder map": [features and features.spatial],
        "semantic": [done.extra.get("semantic")], "logits": logits,
    }  # fmt: skip
    return {name: {tuple(value.shape) for value in values if value is not None} for name, values in found.items()}


def expected_shapes(name: str) -> dict[str, set[tuple[int, ...]]]:
    """What two images of 256 pixels become. GigaTok: 16,384 x 8 codes on 256 tokens, a 16 x 16 map of 256 channels."""
    channels = {"fsq": 5, "lfq": 14, "SL256": 64, "S256": 12}.get(name.rpartition("_")[2], 8)
    side = 32 if name == "llamagen_VQ-8" else 16
    tokens = 480 if "_retok" in name else side**2
    without_teacher = name.endswith(("_finetune", "_nested_align")) or not name.startswith("VQ_")
    on_grid = name.endswith("_2d") or name.startswith("llamagen")
    hybrid = name.startswith("VQ_")
    return {
        "images": {(2, 3, 256, 256)},
        "vectors": {(2, channels, side, side) if on_grid else (2, channels, 1, tokens)},
        "codes": set() if name.endswith("_kl") else {(2, tokens)},
        "map": {(2, 256, 16, 16)} if hybrid else set(),
        "decoder map": {(2, 256, 16, 16)} if hybrid else set(),
        "semantic": set() if without_teacher else {(2, 256, 768)},
        "logits": {(2, 1, 30, 30)},
    }
