"""Metrics, one idea per file. Tables name what a config can choose; a metric is called what it measures."""

from common.networks.lpips import LPIPS
from evaluations.metrics.features import ClipL14, DinoV2L14, EfficientNetLite2, InceptionAdm
from evaluations.metrics.perceptual import PerceptualLite0

FEATURES = {
    "fd_efficientnet_lite2": EfficientNetLite2, "fd_inception": InceptionAdm, "fd_dinov2_vitl14": DinoV2L14,
    "fd_clip_vitl14_336": ClipL14,
}  # fmt: skip
"""Name of a Frechet distance -> the extractor of its features."""

PERCEPTUAL = {"lpips_vgg": LPIPS, "perceptual_efficientnet_lite0": PerceptualLite0}
"""Name of a perceptual distance -> module `(images, references) -> (B,)`."""
