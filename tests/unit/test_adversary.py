"""The adversarial game with every discriminator and every loss, and the losses that contain frozen networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from benchmarks.check_gpu.cases import trainee_and_batch
from common import numerics
from common.config import build, resolve
from common.dist import World
from common.errors import UserError
from common.networks import lpips
from common.numerics import place
from common.options import OptimConfig
from tokenizer.config import AdversaryConfig
from tokenizer.discriminators import DISCRIMINATORS
from tokenizer.discriminators.dino import FrozenDino
from tokenizer.discriminators.stylegan import Blur, StyleGanDiscriminator
from tokenizer.layers.vit import VitConfig
from tokenizer.losses import LOSSES
from tokenizer.losses.adversarial import GAMES, gradient_penalty
from tokenizer.losses.adversary import Adversary

DINO = {"width": 32, "layers": 2, "heads": 2}
SMALL = {
    "patchgan": {"channels": 8, "layers": 1},
    "dino": {**DINO, "depths": [0, 1]},
    "efficientnet_lite0": {"strides": [4, 8], "width": 4},
    "stylegan": {"image_size": 16, "widths": [8, 8, 8]},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "backbone.pth"
    tensors = FrozenDino(VitConfig(**DINO), [0, 1]).vit.state_dict()
    torch.save(tensors, path)
    return path


def adversary_of(backbone: Path, name: str = "patchgan", **options: object) -> Adversary:
    torch.manual_seed(0)
    judge = {"name": name, **SMALL[name]}
    if name == "dino":
        judge["backbone_path"] = str(backbone)
    config = resolve(AdversaryConfig, {"start": 10, "discriminator": judge, **options}, where="adversary")
    return Adversary(config, OptimConfig(lr=1e-3), World(0, 1, torch.device("cpu")), "none")


def pictures(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def step_of(adversary: Adversary, step: int = 10) -> dict[str, torch.Tensor]:
    _, logged = adversary.backward(pictures(1), [pictures(2), pictures(3)], step)
    adversary.update(step, 100, torch.tensor(0.0))
    return logged


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_every_discriminator_plays_every_game_with_every_penalty(backbone: Path, name: str, game: str) -> None:
    adversary = adversary_of(backbone, name, loss=game, penalty=2.0, lecam={})
    assert not adversary.active(9) and adversary.active(10)
    recon = pictures(2).requires_grad_()
    last = nn.Parameter(torch.zeros(1))
    adversary.generator_loss(pictures(1), [recon], recon.mean(), last)["adversarial"].backward()
    assert recon.grad.abs().sum() > 0 and all(p.grad is None for p in adversary.module.parameters())
    before = [p.detach().clone() for p in adversary.module.parameters()]
    logged = step_of(adversary)
    assert all(value.isfinite() and value.dim() == 0 for value in logged.values())
    assert logged["train/loss_gradient_penalty"] > 0 and logged["train/loss_lecam"] >= 0
    assert all(p.requires_grad for p in adversary.module.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, adversary.module.parameters(), strict=True))


@pytest.mark.parametrize("game", GAMES)
def test_both_sides_pull_against_each_other(game: str) -> None:
    real, fake = torch.zeros(50).requires_grad_(), torch.zeros(50).requires_grad_()
    GAMES[game].discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    GAMES[game].generator(fake, real.detach()).backward()
    assert (fake.grad < 0).all()


def test_the_relativistic_loss_sees_differences_only() -> None:
    real, fake, game = torch.randn(9), torch.randn(9), GAMES["relativistic"]
    torch.testing.assert_close(game.discriminator(real + 5, fake + 5), game.discriminator(real, fake))
    torch.testing.assert_close(game.generator(fake + 5, real + 5), game.generator(fake, real))
    assert game.discriminator(real, real).item() == pytest.approx(math.log(2))


def test_the_gradient_penalty_of_a_linear_discriminator_is_its_weights_length() -> None:
    weight = torch.randn(3 * 16 * 16).requires_grad_()
    images = pictures(0).requires_grad_()
    penalty = gradient_penalty(images.flatten(1) @ weight, images)
    assert penalty.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_what_a_checkpoint_keeps_continues_the_game(backbone: Path) -> None:
    whole, cut = (adversary_of(backbone, lecam={"decay": 0.5}) for _ in range(2))
    for step in (10, 11):
        step_of(whole, step)
    step_of(cut)
    again = adversary_of(backbone, lecam={"decay": 0.5})
    again.module.load_state_dict(cut.module.state_dict())
    again.load(cut.state())
    step_of(again, 11)
    assert again.lecam.state_dict() == whole.lecam.state_dict() != cut.lecam.state_dict()
    pairs = zip(whole.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_resume_takes_the_discriminators_hyperparameters_from_the_config(backbone: Path) -> None:
    stated = {"lr": 1e-3, "beta1": 0.9, "weight_decay": 0.1}
    changed = {"lr": 2e-3, "beta1": 0.5, "weight_decay": 0.3}
    before, after = (adversary_of(backbone, optim=options) for options in (stated, changed))
    step_of(before)
    after.load(before.state())
    assert [group["weight_decay"] for group in after.optimizer.param_groups] == [0.3, 0.0]
    assert all(group["lr"] == 2e-3 and group["betas"][0] == 0.5 for group in after.optimizer.param_groups)
    assert all(state["step"] == 1 for state in after.optimizer.state.values())


def test_the_adaptive_weight_scales_the_generators_loss_alone(backbone: Path) -> None:
    last = nn.Parameter(torch.ones(3, 1, 1))
    recon = pictures(2) * last
    plain = adversary_of(backbone).generator_loss(pictures(1), [recon], recon.square().mean(), last)
    scaled = adversary_of(backbone, adaptive=True).generator_loss(pictures(1), [recon], recon.square().mean(), last)
    torch.testing.assert_close(scaled["adversarial"], scaled["weight@adversarial"] * plain["adversarial"])
    assert scaled["weight@adversarial"] > 0 and not scaled["weight@adversarial"].requires_grad
    with pytest.raises(UserError, match="frozen"):
        adversary_of(backbone, adaptive=True).generator_loss(pictures(1), [recon], recon.mean(), last.detach())


def test_mistakes_are_named(backbone: Path) -> None:
    with pytest.raises(UserError, match=r"adversary\.loss got 'wgan'; expected hinge, non_saturating or relativistic"):
        adversary_of(backbone, loss="wgan")
    judge = StyleGanDiscriminator(StyleGanDiscriminator.Config(16, [8, 8, 8]))
    with pytest.raises(UserError, match=r"image_size=32"):
        judge(torch.zeros(1, 3, 32, 32))
    for size in (24, 32, 2):
        with pytest.raises(UserError, match="power of two, 4 to 16"):
            StyleGanDiscriminator(StyleGanDiscriminator.Config(size, [8, 8, 8]))


def test_the_blur_keeps_flat_images_and_their_size() -> None:
    flat = torch.full((1, 4, 6, 6), 0.7)
    torch.testing.assert_close(Blur()(flat), flat)


# ------------------------------------------------------------------------------------------- frozen networks


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, str]]:
    """Untrained networks in the places of LPIPS' and ConvNeXt's files; the keys that a loss then needs."""
    torch.manual_seed(0)
    states = lpips.LPIPSNetwork().state_dict()
    heads = {key: value.abs() for key, value in states.items() if key.startswith("lin")}
    trunk = {f"features.{key.split('.', 2)[2]}": value for key, value in states.items() if key.startswith("net")}
    torch.save(trunk, tmp_path / "vgg.pth")
    monkeypatch.setattr(lpips, "_heads_file", lambda path: "heads")
    monkeypatch.setattr(lpips, "_load", lambda path: heads if path == "heads" else trunk)

    def narrow() -> ConvNeXt:
        return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], stochastic_depth_prob=0.5)

    torch.save(narrow().state_dict(), tmp_path / "convnext.pth")
    monkeypatch.setattr(torchvision.models, "convnext_small", narrow)
    return {"lpips": {"vgg_path": f"{tmp_path}/vgg.pth"}, "convnext_small": {"path": f"{tmp_path}/convnext.pth"}}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_frozen_deterministic_and_zero_for_equal_images(name: str, networks: dict) -> None:
    loss = build("tokenizer.losses:LOSSES", {"name": name, "weight": 3.0, **networks.get(name, {})})
    around = nn.ModuleDict({"loss": loss}).train()  # as a trainer may do by accident
    assert around.training and not any(module.training for module in loss.modules())
    assert not any(p.requires_grad for p in loss.parameters())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    recon = (images * 0.5).requires_grad_()
    target = loss.target(images)
    value = loss(recon, target)
    assert value.dim() == 0 and value > 0 and torch.equal(value, loss(recon, target))
    assert loss(images, target).item() == pytest.approx(0, abs=1e-6)
    value.backward()
    assert recon.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())


def test_missing_convnext_weights_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"curl -L .*convnext_small-0c510722\.pth.*efficientnet_lite0"):
        build("tokenizer.losses:LOSSES", {"name": "convnext_small", "path": str(tmp_path / "nothing.pth")})


@pytest.mark.parametrize("kind, layout", [("cuda", torch.channels_last), ("cpu", torch.contiguous_format)])
def test_on_cuda_convolutions_run_in_channels_last(
    kind: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PatchGAN and LPIPS of contiguous images, on a CPU that is called CUDA."""
    move = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda own, device=None, **how: move(own, "cpu", **how))
    device = torch.device(kind)
    config = AdversaryConfig(discriminator={"name": "patchgan", "channels": 8})
    judge = Adversary(config, OptimConfig(), World(0, 1, device), "none").module
    network = place(lpips.LPIPSNetwork((4, 4, 4, 4, 4)), device)
    seen: list[torch.Tensor] = []
    for module in (*judge.modules(), *network.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _own, _given, made: seen.append(made))
    judge(torch.rand(2, 3, 32, 32))
    network.features(torch.rand(2, 3, 32, 32))
    wide = [made for made in seen if made.shape[1] > 1]  # both layouts are the same for one channel
    assert len(wide) == 4 + 13 and all(made.is_contiguous(memory_format=layout) for made in wide)


def test_a_tokenizers_losses_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[nn.Module] = []
    monkeypatch.setattr(numerics, "place", lambda module, device: (placed.append(module), module)[1])
    trainee = trainee_and_batch("robustok", torch.device("cpu"), "adversary=null")[0]
    assert placed == [trainee.losses_by_name] and any(isinstance(each, nn.Conv2d) for each in placed[0].modules())
