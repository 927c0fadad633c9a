"""The StyleGAN discriminator: residual blocks down to 4 x 4, then one logit an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2)


class Blur(nn.Module):
    """Binomial 3 x 3 blur of every channel, reflected at the borders."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.outer(self.f, self.f)
        kernel = (kernel / kernel.sum()).to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


class Block(nn.Module):
    """Two convolutions and a blurred halving beside a 1 x 1 convolution of every second pixel, summed over sqrt(2).

    The pixels are sliced: torch 2.13's CPU backward of `nn.Conv2d(8, 8, 1, stride=2)` writes beyond its memory where
    the input (8,8,64,64) is channels_last, as images from pixels are.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.conv_res = nn.Conv2d(width, out, 1)
        self.net = nn.Sequential(
            nn.Conv2d(width, out, 3, padding=1), _leaky(), nn.Conv2d(out, out, 3, padding=1), _leaky()
        )
        self.downsample = nn.Sequential(Blur(), nn.Conv2d(out, out, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.downsample(self.net(x)) + self.conv_res(x[..., ::2, ::2])) * 2**-0.5


class StyleGanDiscriminator(nn.Module):
    """images (B,3,S,S) -> logits (B,1). There are no norms, so images are judged one by one.

    Source: StyleGAN2's residual discriminator in the form that GigaTok and LlamaGen offer.
    """

    @dataclass
    class Config:
        image_size: int = opt(256, "side S of the images, a power of two; the tokenizer's")
        widths: list[int] = opt(
            [512, 512, 512, 512, 256, 128, 64, 32, 16], "channels at 4 x 4, 8 x 8, 16 x 16 and so on"
        )

    def __init__(self, config: Config):
        super().__init__()
        self.image_size = config.image_size
        halvings = config.image_size.bit_length() - 3
        if config.image_size != 4 << max(halvings, 0) or halvings >= len(config.widths):
            largest = 4 << (len(config.widths) - 1)
            got = f"discriminator.image_size got {config.image_size}"
            raise UserError(f"{got}; expected a power of two, 4 to {largest}")
        width = config.widths[halvings]
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), _leaky()]
        for level in range(halvings - 1, -1, -1):
            blocks.append(Block(width, config.widths[level]))
            width = config.widths[level]
        self.blocks = nn.ModuleList(blocks)
        self.final_conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), _leaky())
        self.final_linear = nn.Sequential(nn.Linear(16 * width, width), _leaky(), nn.Linear(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Raises: UserError for images of another size."""
        if images.shape[-1] != self.image_size:
            raise UserError(
                f"the StyleGAN discriminator got images {images.shape[-1]} wide and was built for {self.image_size}; "
                f"set adversary.discriminator.image_size={images.shape[-1]}"
            )
        x = images
        for block in self.blocks:
            x = block(x)
        return self.final_linear(self.final_conv(x).flatten(1))
