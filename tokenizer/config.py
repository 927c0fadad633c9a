"""The options of tokenizer training. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.config import opt, part, parts
from common.options import DataConfig, EstimateConfig, LogConfig, OptimConfig, RunConfig
from tokenizer.layout import Layout


@dataclass
class TokenizerConfig:
    """What a tokenizer is. Kept in every checkpoint as `model`."""

    image_size: int = opt(256, "side of the square images, pixels")
    z_channels: int = opt(256, "channels of the encoder's latents, and except for dino_vit of the decoder's")
    layout: Layout = field(default_factory=Layout)
    init: str = opt(
        "released", "initial weights: deviation 0.02 as released, or fan-in scale", choices=("released", "fan_in")
    )
    encoder: dict[str, Any] = part("tokenizer.encoders:ENCODERS", "images -> latents", {"name": "hybrid_1d"})
    decoder: dict[str, Any] = part("tokenizer.decoders:DECODERS", "latents -> images", {"name": "hybrid_1d"})
    quantizer: dict[str, Any] = part("tokenizer.quantizers:QUANTIZERS", "latents -> codes", {"name": "vq"})
    teacher: dict[str, Any] | None = part(
        "tokenizer.teachers:TEACHERS", "a frozen teacher kept in the checkpoint, as RobusTok's files do; null = none"
    )


@dataclass
class LeCamConfig:
    """Holds the discriminator's logits near their running means; tokenizer/losses/adversarial.py."""

    weight: float = opt(0.001, "weight beside the discriminator's loss")
    decay: float = opt(0.999, "of the running means; GigaTok 0.99, RobusTok 0.999")
    settle: int = opt(0, "steps after `start` in which the means follow each batch; GigaTok 1000, RobusTok 0")


@dataclass
class BackboneConfig:
    """Trained weights that `dino_vit` parts start from, resampled to their patches and grids."""

    model: str = opt("vit_base_patch14_dinov2.lvd142m", "timm model name")
    weights: str | None = opt(None, "local weights file; null = timm's cache")
    parts: list[str] = opt(["encoder", "decoder", "teacher"], "parts of the model that start from it")
    decoder_model: str | None = opt(None, "the decoder's, where it is another; null = as `model`")
    decoder_weights: str | None = opt(None, "local weights file of `decoder_model`")


@dataclass
class AdversaryConfig:
    """A GAN loss against a trained discriminator."""

    start: int = opt(20000, "first step (0-based) with a discriminator")
    weight: float = opt(0.5, "factor of both the generator's and the discriminator's loss")
    loss: str = opt("hinge", "hinge | non_saturating | relativistic (R3GAN, with penalty)")
    adaptive: bool = opt(False, "also scale the generator's loss to the reconstruction's gradient (VQGAN)")
    penalty: float = opt(0.0, "gamma of R1 + R2, gradient penalties on real and generated images; R3GAN 15")
    init: str | None = opt(None, "run or checkpoint whose discriminator to start from; null = a new one")
    lecam: LeCamConfig | None = opt(None, "LeCam regularization; {} = its defaults, null = off")
    optim: OptimConfig | None = opt(
        None, "of the discriminator, its steps counted from `start`; null = as the tokenizer's, and in step with it"
    )
    discriminator: dict[str, Any] = part("tokenizer.discriminators:DISCRIMINATORS", "network", {"name": "patchgan"})


@dataclass
class TrainConfig:
    """Everything `python -m tokenizer.train` reads. Main training and fine-tuning are configs of this one schema."""

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
        "tokenizer.regularizers:REGULARIZERS", "what steps decode and which losses they add"
    )
    ema_decay: float = opt(0.9999, "decay of the weight average that evaluation uses; 0 = none")
    freeze: list[str] = opt(
        [], "modules kept as they are; decoder fine-tuning: [encoder, quant_conv, quantizer]"
    )
    lora: dict[str, int] = opt({}, "train adapters of this rank instead of a part's transformer; RobusTok {encoder: 8}")
    backbone: BackboneConfig | None = None
    init: str | None = opt(None, "checkpoint (or run) whose tokenizer weights to start from")
    log: LogConfig = field(default_factory=LogConfig)
    estimate: EstimateConfig | None = opt(None, "print what a step costs, and stop: --estimate RANKS")
