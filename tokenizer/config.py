"""The options of tokenizer training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.config import opt, part, parts
from common.options import DataConfig, EstimateConfig, LogConfig, OptimConfig, RunConfig
from tokenizer.layout import Layout


@dataclass
class TokenizerConfig:
    """Architecture of a tokenizer; stored in every checkpoint as `model`."""

    image_size: int = opt(256, "side of the square images, pixels", low=1)
    z_channels: int = opt(256, "channels of the encoder's latents, and except for dino_vit of the decoder's", low=1)
    quant_conv_kernel: int = opt(
        1, "kernel of the convolutions around the quantizer; VAR 3, Open-MAGVIT2 and MaskGIT 0 = none", low=0, high=3
    )
    layout: Layout = field(default_factory=Layout)
    init: str = opt(
        "released", "initial weights: deviation 0.02 as released, or fan-in scale", choices=("released", "fan_in")
    )
    encoder: dict[str, Any] = part("tokenizer.encoders:ENCODERS", "images -> latents", {"name": "hybrid_1d"})
    decoder: dict[str, Any] = part("tokenizer.decoders:DECODERS", "latents -> images", {"name": "hybrid_1d"})
    quantizer: dict[str, Any] = part("tokenizer.quantizers:QUANTIZERS", "latents -> codes", {"name": "vq"})
    teacher: dict[str, Any] | None = part(
        "tokenizer.teachers:TEACHERS", "frozen teacher stored in the checkpoint, as in RobusTok's files; null = none"
    )


@dataclass
class LeCamConfig:
    """LeCam regularization: pulls the discriminator's logits towards their running means."""

    weight: float = opt(0.001, "weight beside the discriminator's loss", low=0)
    decay: float = opt(0.999, "decay of the running means; GigaTok 0.99, RobusTok 0.999", low=0, high=1)
    settle: int = opt(
        0, "steps after `start` in which the means equal those of the batch; GigaTok 1000, RobusTok 0", low=0
    )


@dataclass
class BackboneConfig:
    """Pretrained weights for `dino_vit` parts, resampled to their patch size and grid."""

    model: str = opt("vit_base_patch14_dinov2.lvd142m", "timm model name")
    weights: str | None = opt(None, "local weights file; null = timm's cache")
    parts: list[str] = opt(
        ["encoder", "decoder", "teacher"], "parts of the model that start from it", ("encoder", "decoder", "teacher")
    )
    decoder_model: str | None = opt(None, "timm model name for the decoder; null = `model`")
    decoder_weights: str | None = opt(None, "local weights file of `decoder_model`")


@dataclass
class AdversaryConfig:
    """GAN loss with a discriminator that is trained beside the tokenizer."""

    start: int = opt(20000, "first step (0-based) with a discriminator", low=0)
    weight: float = opt(0.5, "weight of the generator's and of the discriminator's loss", low=0)
    loss: str = opt("hinge", "relativistic is R3GAN's, with `penalty`", ("hinge", "non_saturating", "relativistic"))
    adaptive: bool = opt(False, "scale the generator's loss to the gradient of the reconstruction loss (VQGAN)")
    penalty: float = opt(0.0, "gamma of the gradient penalties R1 + R2 on real and generated images; R3GAN 15", low=0)
    init: str | None = opt(None, "run or checkpoint whose discriminator to start from; null = a new one")
    lecam: LeCamConfig | None = opt(None, "LeCam regularization; {} = defaults, null = off")
    optim: OptimConfig | None = opt(
        None, "optimizer of the discriminator, its steps counted from `start`; null = the tokenizer's options and steps"
    )
    discriminator: dict[str, Any] = part("tokenizer.discriminators:DISCRIMINATORS", "network", {"name": "patchgan"})


@dataclass
class TrainConfig:
    """Everything `python -m tokenizer.train` reads, for training from scratch, fine-tuning and post-training."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    val_root: str | None = opt(None, "held-out image folder for run.validate_every; null = no validation")
    run: RunConfig = field(default_factory=RunConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    losses: dict[str, Any] = parts(
        "tokenizer.losses:LOSSES",
        "reconstruction losses, applied to every view",
        {"recon": {"name": "l2"}, "perceptual": {"name": "lpips"}},
    )
    adversary: AdversaryConfig | None = field(default_factory=AdversaryConfig)
    regularizers: dict[str, Any] = parts(
        "tokenizer.regularizers:REGULARIZERS", "additional views, perturbations and losses"
    )
    ema_decay: float = opt(
        0.9999, "decay of the average of the weights that evaluation uses; 0 = no average", low=0, high=1
    )
    freeze: list[str] = opt([], "modules that are not trained; decoder fine-tuning: [encoder, quant_conv, quantizer]")
    lora: dict[str, int] = opt({}, "rank of LoRA adapters per part, whose transformer is frozen; RobusTok {encoder: 8}")
    backbone: BackboneConfig | None = opt(None, "pretrained weights for `dino_vit` parts; null = none")
    init: str | None = opt(None, "checkpoint or run whose tokenizer weights to start from")
    log: LogConfig = field(default_factory=LogConfig)
    estimate: EstimateConfig | None = opt(None, "print the cost of a step and stop: --estimate RANKS")
