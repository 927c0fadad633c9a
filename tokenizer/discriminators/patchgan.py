"""PatchGAN (Isola et al. 2017): a logit per overlapping patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common import dist
from common.config import opt


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics are those of the global batch, so that the number of ranks does not matter.

    torch's SyncBatchNorm does the same but runs on CUDA only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or dist.size() == 1:
            return super().forward(x)
        x32 = x.float()
        mean = dist.all_reduce_sum(x32.mean(dim=(0, 2, 3))) / dist.size()
        var = dist.all_reduce_sum((x32 - mean[:, None, None]).square().mean(dim=(0, 2, 3))) / dist.size()
        count = x.numel() // x.shape[1] * dist.size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((x32 - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class PatchGan(nn.Module):
    """images (B,3,H,W) -> logits (B,1,h,w); 30 x 30 for 256 pixels and three layers."""

    @dataclass
    class Config:
        channels: int = opt(64, "base width")
        layers: int = opt(3, "strided layers")

    def __init__(self, config: Config):
        super().__init__()
        width = config.channels
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            out = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            stack += [nn.Conv2d(width, out, 4, stride, 1, bias=False), BatchNorm(out), nn.LeakyReLU(0.2)]
            width = out
        self.main = nn.Sequential(*stack, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BatchNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)
