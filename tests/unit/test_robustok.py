"""RobusTok's tokenizer in training: where its ViTs start, what guides it, and its shipped configs.

Checks 1, 2 and 4 to 6 of RobusTok's acceptance list; the perturbation's draws are in test_tokenizer_parts.py.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

import tokenizer
from common.config import parse
from common.dist import World
from common.errors import UserError
from common.optim import rate
from tests.unit.test_released_files import SMALL, make
from tokenizer.config import BackboneConfig, TrainConfig
from tokenizer.layers.vit import Vit
from tokenizer.losses.feature import contrastive_loss
from tokenizer.model import Tokenizer
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.pretrained import check_teacher, start_from
from tokenizer.quantizers.perturbation import anneal
from tokenizer.released import write_released
from tokenizer.train import TokenizerTrainee

ROOT = Path(__file__).parents[2]
CPU = World(0, 1, torch.device("cpu"))


def read(config: str, *words: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(ROOT / config), "data.root=x", "run.out=x", *words], aliases=TRAIN_FLAGS)


def toy(*words: str, config: str = "robustok") -> TokenizerTrainee:
    """The toy config, with a smaller codebook unless the words name another quantizer."""
    given = ["run.device=cpu", *words]
    if not any(word.startswith("model.quantizer=") for word in words):
        given.insert(0, "model.quantizer.codebook_size=64")
    return TokenizerTrainee(read(f"configs/toy/{config}.yaml", *given), CPU)


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------------------------------- what the model is


def test_sequences_and_parameters_are_the_released_ones() -> None:
    with torch.device("meta"):
        model = Tokenizer(read("configs/main-train.yaml").model).eval()
    lengths: list[int] = []
    for vit in (model.encoder.vit, model.decoder.vit):
        vit.blocks[0].register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    codes = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    model.decode(codes)
    assert codes.shape == (1, 256) and lengths == [513, 514]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {
        "encoder": 86_061_312, "decoder": 85_865_472, "quantizer": 262_144, "quant_conv": 49_216,
        "post_quant_conv": 49_920, "teacher": 85_863_168,
    }  # fmt: skip
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 172_288_064


def test_decoding_the_codes_is_reconstructing() -> None:
    model = make("dino_vit")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    quantized = model.quantizer(model.latents(images)[0])
    torch.testing.assert_close(model.decode(model.encode(images)), model.decode_vectors(quantized.vectors).images)


def test_the_shipped_schedules_are_the_papers() -> None:
    main, post = read("configs/main-train.yaml"), read("configs/post-train.yaml")
    epochs = {0: 1e-5, 1: 2.4e-4, 50: 2.122e-4, 100: 1.45e-4, 150: 7.78e-5, 199: 5e-5}
    for epoch, expected in epochs.items():
        assert rate(main.optim, epoch * 1251 + 700, main.run.steps) == pytest.approx(expected, rel=2e-3)
    assert main.run.steps == 200 * 1251 and main.adversary.start == 56 * 1251
    assert [rate(post.optim, epoch * 195, 19500) for epoch in (0, 1)] == [1e-5, pytest.approx(5e-5, rel=1e-3)]
    assert rate(post.optim, 19499, 19500) == pytest.approx(1e-5, rel=2e-3) and post.run.steps == 100 * 195
    judge, start = main.adversary.optim, main.adversary.start
    judged = [rate(judge, epoch * 1251, main.run.steps - start) for epoch in (0, 1, 2, 3, 4, 143)]
    assert judged == pytest.approx([1e-5, 2.08e-4, 4.05e-4, 6.03e-4, 7.99e-4, 5e-5], rel=3e-3)
    assert (post.adversary.optim.lr, post.adversary.optim.weight_decay, post.adversary.start) == (5e-5, 5e-4, 0)
    noise = main.regularizers["perturbation"]
    ratios = [anneal(e * 1251, noise["anneal_start"], noise["anneal_end"], noise["end_ratio"]) for e in (40, 80, 120)]
    assert ratios == [1.0, 0.75, 0.5] and (noise["alpha"], noise["beta"], noise["delta"]) == (1.0, 0.1, 100)
    assert not post.regularizers and post.freeze == ["encoder", "quant_conv", "quantizer"] and post.backbone is None


# ------------------------------------------------------------------------------------------- where it starts


@pytest.fixture
def backbone(tmp_path: Path) -> BackboneConfig:
    """A small ViT as timm knows them, patch 14 on a 5 x 5 grid, its weights in a file."""
    sizes = {"embed_dim": 64, "depth": 3, "num_heads": 1, "init_values": 1.0, "num_classes": 0}

    def small_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
        shape = {"img_size": 70, "patch_size": 14, **sizes, **options}
        return build_model_with_cfg(
            VisionTransformer, "small_vit", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **shape
        )

    small_vit.__module__ = "timm.models.vision_transformer"
    warnings.simplefilter("ignore")  # every test registers it anew
    register_model(small_vit)
    torch.manual_seed(1)
    net = small_vit()
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.5)
    torch.save(net.state_dict(), tmp_path / "vit.pt")
    return BackboneConfig("small_vit", str(tmp_path / "vit.pt"), ["encoder", "decoder", "teacher"])


def test_vits_start_from_a_backbone_resampled_to_their_patches_and_grid(backbone: BackboneConfig) -> None:
    model = make("dino_vit")
    start_from(model, backbone)
    trained = torch.load(backbone.weights, weights_only=True)
    vits: list[Vit] = [model.encoder.vit, model.decoder.vit, model.teacher.net]
    for vit in vits:
        assert torch.equal(vit.blocks[2].mlp.fc1.weight, trained["blocks.2.mlp.fc1.weight"])
        assert torch.equal(vit.pos_embed[:, 0], trained["pos_embed"][:, 0])
        grids = vit.pos_embed[0, 1:].mean(dim=0), trained["pos_embed"][0, 1:].mean(dim=0)
        assert torch.corrcoef(torch.stack(grids))[0, 1] > 0.5  # 5 x 5 places became 2 x 2
    own, theirs = vits[0].patch_embed.proj.weight, trained["patch_embed.proj.weight"]
    assert own.shape[-1] == 16
    # A patch embeds as the same patch at the backbone's size does: that is what the resampled kernel is for.
    smooth = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), 16, mode="bicubic", align_corners=True)
    small = torch.nn.functional.interpolate(smooth, 14, mode="bicubic", antialias=True)
    seen = [(kernel * patch).sum(dim=(1, 2, 3)) for kernel, patch in ((own, smooth), (theirs, small))]
    assert torch.corrcoef(torch.stack(seen))[0, 1] > 0.99


def test_encoder_and_decoder_may_have_different_widths(tmp_path: Path) -> None:
    wide = {**SMALL["dino_vit"]["decoder"], "width": 128, "heads": 2, "layers": 2}
    model = make("dino_vit", decoder=wide)
    assert model.quant_conv.in_channels == 64 and model.post_quant_conv.out_channels == 128
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    decoded = model.decode(model.encode(images))
    assert decoded.shape == images.shape
    write_released(model, tmp_path / "released.pt")
    again = tokenizer.load(tmp_path / "released.pt")
    torch.testing.assert_close(again.decode(again.encode(images)), decoded, rtol=0, atol=1e-5)


def test_a_backbone_that_is_missing_or_does_not_fit_says_what_to_do(
    backbone: BackboneConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = make("dino_vit")
    for config, said in (
        (BackboneConfig(parts=["encoder"]), "hf download timm/vit_base_patch14_dinov2.lvd142m.*backbone=null"),
        (BackboneConfig("small_vit", str(tmp_path / "none.pt")), "none.pt"),
        (BackboneConfig("small_vit", backbone.weights, ["quantizer"]), "quantizer, which is not a dino_vit"),
    ):
        with pytest.raises(UserError, match=said):
            start_from(model, config)
    narrow = make("dino_vit", encoder={**SMALL["dino_vit"]["encoder"], "layers": 4})
    with pytest.raises(UserError, match=r"does not fit model.encoder: .* first blocks.3"):
        start_from(narrow, backbone)


def test_nothing_learns_from_an_untrained_teacher() -> None:
    for words in (["backbone=null"], ["backbone.parts=[encoder]"]):
        with pytest.raises(UserError, match="would be untrained"):
            check_teacher(read("configs/main-train.yaml", *words))
    for words in ([], ["backbone=null", "init=x"], ["backbone=null", "regularizers.contrastive=null"]):
        check_teacher(read("configs/main-train.yaml", *words))
    with pytest.raises(UserError, match="set backbone=null"):
        toy("init=x", "backbone.model=small_vit")


# ------------------------------------------------------------------------------------------- what guides it


def test_guidance_is_contrastive_between_teacher_and_clean_codes() -> None:
    trainee = toy("regularizers.perturbation.beta=1.0", "regularizers.perturbation.delta=64")
    images = pixels(4).permute(0, 3, 1, 2) / 127.5 - 1
    plan = trainee.plan(4, 0)
    losses, done = trainee.generator_losses(images, plan)
    model, teacher = trainee.tokenizer, trainee.regularizers[0].teacher
    guide = model.quant_conv(teacher(images).mean(dim=1)[..., None, None]).flatten(1)
    expected = 0.1 * contrastive_loss(guide, done.quantized.vectors.mean(dim=(2, 3)))
    torch.testing.assert_close(losses["contrastive_last"], expected)
    assert not torch.equal(done.vectors, done.quantized.vectors)
    losses["contrastive_last"].backward()
    assert model.quant_conv.weight.grad.any() and model.encoder.latent_tokens.grad.any()
    trainee.regularizers[0].config.on = "perturbed"
    assert trainee.regularizers[0].losses(images, done, plan)["contrastive_last"] != expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["regularizers.contrastive.feature=cls"], "expected class or patch"),
        (["regularizers.contrastive={teacher: null}"], "has no teacher"),
        (["regularizers.contrastive.teacher.stride=32"], "set model.z_channels=320"),
    ],
)
def test_guidance_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        toy(*words).step({"pixels": pixels(2)}, 0)


def test_the_toy_trains_on_all_of_its_parts_and_its_decoder_alone_after() -> None:
    trainee = toy("regularizers.perturbation.beta=0.5")
    before = {name: value.clone() for name, value in trainee.tokenizer.named_parameters()}
    logged = trainee.step({"pixels": pixels(4)}, 0)
    assert {"train/loss_contrastive_last", "train/perturbed@delta", "train/loss_vq"} <= logged.keys()
    assert [name for name, value in trainee.tokenizer.named_parameters() if torch.equal(value, before[name])] == []
    post = toy("ema_decay=0", config="robustok_post")
    post.tokenizer.load_state_dict(trainee.tokenizer.state_dict())
    images = pixels(4, 1).permute(0, 3, 1, 2) / 127.5 - 1
    codes = post.tokenizer.encode(images)
    before = {name: value.clone() for name, value in post.tokenizer.state_dict().items()}
    logged = post.step({"pixels": pixels(4)}, 0)
    changed = [name for name, value in post.tokenizer.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.partition(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert "train/loss_vq" not in logged
    assert torch.equal(post.tokenizer.encode(images), codes)


# ------------------------------------------------------------------------- several codes a position, several scales

SIZE = "codebook_size: 64, codebook_dim: 16"
PYRAMID = f"{{name: multi_scale, {SIZE}, scales: [1, 2, 4, 8]}}"
GROUPS = ("model.encoder.groups=2", f"model.quantizer={{name: product, groups: 2, part: {{{SIZE}}}}}")
SCALES = (f"model.quantizer={PYRAMID}",)
BOTH = (GROUPS[0], f"model.quantizer={{name: product, part: {PYRAMID}}}", "regularizers.perturbation.neighbours=code")


@pytest.mark.parametrize(
    ("words", "num_codes", "width"),
    [(GROUPS, 128, 32), ((*SCALES, "regularizers.perturbation.neighbours=code"), 85, 16), (BOTH, 170, 32)],
    ids=["product", "multi_scale", "both"],
)
def test_groups_and_scales_train_and_decode_from_codes(words: tuple[str, ...], num_codes: int, width: int) -> None:
    trainee = toy(*words)
    model, images = trainee.tokenizer, pixels(4).permute(0, 3, 1, 2) / 127.5 - 1
    logged = trainee.step({"pixels": pixels(4)}, 0)
    assert 0 < logged["train/codebook_usage"] <= 1
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    codes = model.eval().encode(images)
    assert codes.shape == (4, num_codes) == (4, model.num_tokens) and codes.max() < 64
    quantized = model.quantizer(model.latents(images)[0])
    assert quantized.vectors.shape == (4, width, 8, 8)
    torch.testing.assert_close(model.vectors(codes), quantized.vectors, rtol=1e-4, atol=1e-5)
    moved = trainee.regularizers[1].draw(trainee.plan(4, 0))
    moved.chosen = torch.tensor([True, False, True, False])
    out = model.quantizer.perturb(model.latents(images)[0], quantized, moved)
    changed = (out - quantized.vectors).abs().amax(dim=(2, 3)) > 1e-3
    assert changed[[0, 2]].any(dim=1).all() and not changed[[1, 3]].any()
    assert all(half[[0, 2]].any() for half in changed.chunk(2, dim=1))  # every group has draws of its own


def test_finer_scales_bring_the_sum_nearer_when_they_are_fitted() -> None:
    """With phi the identity and latents among the codes, the last scale takes up what is left exactly."""
    model = toy(*SCALES, "regularizers.perturbation=null", "model.quantizer.l2_norm=false").tokenizer
    layer = model.quantizer.eval()
    for smoother in layer.smoothers:
        torch.nn.init.dirac_(smoother.weight)
        torch.nn.init.zeros_(smoother.bias)
    with torch.no_grad():
        layer.embedding.weight[:-1].zero_()
        layer.embedding.weight[-1] = 1.0
    latents = torch.zeros(1, 16, 8, 8)
    latents[..., 3, 5] = 1.0
    done = layer(latents)
    torch.testing.assert_close(done.vectors, latents)
    assert done.codes[0, -64:].view(8, 8)[3, 5] == 63 and (done.codes[0] == 63).sum() == 1


def test_dropped_scales_add_nothing_and_are_not_guided() -> None:
    words = ("regularizers.codebook_drop={share: 0.5, min_scales: 2}", "regularizers.perturbation=null")
    trainee = toy(*SCALES, *words)
    kept = torch.cat([trainee.plan(8, step).quantizer_options["kept_scales"] for step in range(50)])
    assert kept.unique().tolist() == [2, 3, 4] and (kept == 4).float().mean() == pytest.approx(0.5 + 0.5 / 3, abs=0.08)
    layer, latents = trainee.tokenizer.quantizer.eval(), torch.randn(2, 16, 8, 8)
    done = layer(latents, kept_scales=torch.tensor([2, 4]))
    first = layer.arrange(done.codes, 8, 8)
    coarse = sum(layer.drawn(own, scale) for scale, own in enumerate(done.codes[:, :5].split([1, 4], dim=1)))
    torch.testing.assert_close(done.vectors[1], first[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.vectors[0], coarse[0], rtol=1e-4, atol=1e-5)
    images, plan = pixels(4).permute(0, 3, 1, 2) / 127.5 - 1, trainee.plan(4, 0)
    plan.quantizer_options["kept_scales"] = torch.tensor([4, 2, 4, 4])
    plan.kept_codes = torch.tensor([1, 0.5, 1, 1])
    losses, done = trainee.generator_losses(images, plan)
    rows = done.extra["contrastive_last"], done.quantized.vectors.mean(dim=(2, 3))
    expected = 0.1 * contrastive_loss(*(x[[0, 2, 3]] for x in rows))
    torch.testing.assert_close(losses["contrastive_last"], expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (GROUPS[1:], "makes 1 groups of tokens, quantizer 'product' takes 2"),
        (("model.quantizer={name: multi_scale, scales: [1, 4]}",), "smoothers got 4; expected 0 to 2"),
        (("model.quantizer={name: multi_scale, scales: [1, 2, 3, 4]}",), "expected the grid's side, 8"),
        (("regularizers.codebook_drop={}",), "set model.quantizer.name=multi_scale"),
        ((*SCALES, "regularizers.perturbation.beta=1"), "neighbours=code"),
    ],
)
def test_groups_and_scales_that_do_not_fit_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        toy(*words).step({"pixels": pixels(2)}, 0)


# ------------------------------------------------------------------------------------------------ tuning methods


def test_adapters_train_beside_a_frozen_body_and_are_saved_as_an_ordinary_tokenizer(tmp_path: Path) -> None:
    trainee = toy("lora={encoder: 4}")
    model = trainee.tokenizer
    before = {name: value.clone() for name, value in model.named_parameters()}
    for step in range(2):  # one matrix of a pair starts at zero, so the other moves in the second step
        trainee.step({"pixels": pixels(4)}, step)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    body = {name for name in before if name.startswith("encoder.vit.")}
    adapters = {name for name in body if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 3 and adapters <= moved
    assert moved & body - adapters == {"encoder.vit.norm.weight", "encoder.vit.norm.bias"}
    assert {"encoder.latent_tokens", "decoder.to_pixel.weight", "quant_conv.weight"} <= moved
    files = trainee.weights()
    plain = Tokenizer(trainee.config.model).eval()
    plain.load_state_dict(files["model"], strict=True)
    images = pixels(4, 1).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(plain.latents(images)[0], model.eval().latents(images)[0], rtol=1e-4, atol=1e-5)
    again = toy("lora={encoder: 4}")
    again.load(files.__getitem__, deepcopy(trainee.state()))
    assert all(torch.equal(value, again.weights()["ema"][name]) for name, value in files["ema"].items())
    for one in (trainee, again):
        one.trained.train()
        one.step({"pixels": pixels(4)}, 2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.tokenizer.state_dict().items())
    for words, said in (("lora={quantizer: 4}", "expected encoder or decoder"), ("lora={encoder: 0}", "rank >= 1")):
        with pytest.raises(UserError, match=said):
            toy(words)
    with pytest.raises(UserError, match="both lora and freeze"):
        toy("lora={encoder: 4}", "freeze=[encoder]")
