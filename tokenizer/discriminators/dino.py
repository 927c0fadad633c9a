"""The DINO discriminator: small convolutional heads on the features of a frozen self-supervised ViT.

Source: StyleGAN-T's idea in VAR's form, as GigaTok's dino_disc and RobusTok use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from common.config import opt
from common.errors import UserError
from common.meta import on_meta
from common.numerics import autocast
from tokenizer.discriminators.diffaug import NUM_UNIFORMS, augment
from tokenizer.discriminators.frozen import OnFrozen
from tokenizer.layers.vit import Vit, VitConfig
from tokenizer.teachers import IMAGENET

SIZE, PATCH = 224, 16
BACKBONE_FILE = "dino_deitsmall16_pretrain.pth"
BACKBONE_URL = f"https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/{BACKBONE_FILE}"


class LocalBatchNorm(nn.Module):
    """Normalises x (B,C,L) per channel over groups of at most eight samples and all positions, in fp32.

    There are no running statistics: it does the same in training and evaluation.
    """

    def __init__(self, channels: int, group: int = 8, eps: float = 1e-6):
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Raises: UserError when the batch does not split into equal groups."""
        groups = -(-len(x) // self.group)
        if len(x) % groups:
            raise UserError(
                f"the DINO discriminator got {len(x)} images at once; expected at most {self.group} or a batch that "
                f"splits into {groups} equal groups; change data.batch_size"
            )
        grouped = x.float().unflatten(0, (groups, -1))
        mean = grouped.mean(dim=(1, 3), keepdim=True)
        variance = grouped.var(dim=(1, 3), keepdim=True, unbiased=False)
        normal = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(0, 1)
        return (normal * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) * 2**-0.5


def _layer(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), LocalBatchNorm(width), nn.LeakyReLU(0.2))


class FrozenDino(nn.Module):
    """DINO ViT-S/16; images (B,3,224,224) in [-1,1] -> maps (B,D,196) before the first block and after chosen ones."""

    def __init__(self, config: VitConfig, depths: list[int]):
        super().__init__()
        self.depths = depths
        self.vit = Vit(config, SIZE // PATCH, scaled=False, gelu="tanh")
        mean, deviation = (torch.tensor(values, device="cpu").view(1, 3, 1, 1) for values in IMAGENET)
        self.register_buffer("x_scale", 0.5 / deviation)
        self.register_buffer("x_shift", (0.5 - mean) / deviation)
        self.requires_grad_(False)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Weights of DINO's file or of a training checkpoint. The keys' bias is zeroed: it changes no attention."""
        width = self.vit.pos_embed.shape[-1]
        ours = {key if key.startswith("x_s") else f"vit.{key}": value.clone() for key, value in tensors.items()}
        for key, value in ours.items():
            if key.endswith("attn.qkv.bias"):
                value[width : 2 * width] = 0
        self.load_state_dict({"x_scale": self.x_scale, "x_shift": self.x_shift, **ours}, strict=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.vit.place(self.vit.patch_embed(images * self.x_scale + self.x_shift))
        streams = [x] + [x for depth, x in enumerate(self.vit.outputs(x)) if depth in self.depths]
        # The class token is added to every patch token, not read on its own.
        return [(stream[:, 1:] + stream[:, :1]).transpose(1, 2) for stream in streams]


class DinoDiscriminator(OnFrozen[FrozenDino]):
    """images (B,3,H,W) -> logits (B, heads x 196). In training the images are augmented first.

    `state_dict()` holds the heads alone, as in released files.
    """

    @dataclass
    class Config:
        backbone_path: str | None = opt(None, f"{BACKBONE_FILE}; null = torch's hub cache")
        augment: float = opt(1.0, "probability of each kind of augmentation in training (per batch)")
        kernel: int = opt(9, "width of the residual convolution")
        depths: list[int] = opt([2, 5, 8, 11], "blocks (0-based) whose outputs get a head; the input gets one, too")
        width: int = opt(384, "backbone width D")
        layers: int = opt(12, "backbone blocks")
        heads: int = opt(6, "backbone attention heads")

    def __init__(self, config: Config, backbone: FrozenDino | None = None):
        """`backbone`: instead of the file's, e.g. in tests. Raises: UserError when the file is not there."""
        super().__init__(backbone or _released_backbone(config))
        self.config = config
        self.heads = nn.ModuleList(
            nn.Sequential(
                _layer(config.width, 1),
                Residual(_layer(config.width, config.kernel)),
                spectral_norm(nn.Conv1d(config.width, 1, 1)),
            )
            for _ in range(len(config.depths) + 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.config.augment > 0:
            images = self._augment(images)
        crop = None
        if images.shape[-1] > SIZE and bool(torch.rand(()) < 0.5):
            crop = tuple(torch.randint(images.shape[-1] - SIZE + 1, (2,)).tolist())
        return self.judge(fit(images, crop))

    def _augment(self, images: Tensor) -> Tensor:
        applied = (torch.rand(3) <= self.config.augment).tolist()
        return augment(images, torch.rand(NUM_UNIFORMS, len(images), device=images.device), tuple(applied))

    def judge(self, images: Tensor) -> Tensor:
        """Logits of images (B,3,224,224)."""
        with autocast("none", images.device):
            maps = self.backbone(images.float())
        return torch.cat([head(features).flatten(1) for head, features in zip(self.heads, maps, strict=True)], dim=1)


def fit(images: Tensor, crop: tuple[int, int] | None = None) -> Tensor:
    """(B,3,S,S) -> (B,3,224,224): cut out at `crop` (top, left), or averaged down, or enlarged (bicubic)."""
    if images.shape[-1] == SIZE:
        return images
    if crop is not None:
        top, left = crop
        return images[..., top : top + SIZE, left : left + SIZE]
    if images.shape[-1] > SIZE:
        return F.interpolate(images.float(), (SIZE, SIZE), mode="area")
    return F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", align_corners=False)


def _released_backbone(config: DinoDiscriminator.Config) -> FrozenDino:
    backbone = FrozenDino(VitConfig(config.width, config.layers, config.heads, PATCH), config.depths)
    if on_meta():
        return backbone
    path = Path(config.backbone_path or Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE)
    if not path.is_file():
        raise UserError(
            f"the DINO discriminator needs {str(path)!r}, which does not exist: "
            f"curl -L --create-dirs -o {path} {BACKBONE_URL}; or use adversary.discriminator.name=patchgan"
        )
    backbone.load(torch.load(path, weights_only=True, map_location="cpu"))
    return backbone
