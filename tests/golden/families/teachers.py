"""What the frozen semantic teachers are shown."""

from __future__ import annotations

import torch
from timm.layers import resample_abs_pos_embed

from tests.golden.fixture import Fixture, Report
from tokenizer.teachers import ClipDfn, DinoV2, SigLip, prepare

TEACHERS = {"dinov2": DinoV2, "clip_dfn": ClipDfn, "siglip": SigLip}


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and "rules" in fixture.about and "pos_embed_in" in fixture.io


def check(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    images = fixture.images()
    for name, teacher in TEACHERS.items():
        shown = prepare(images, 224, teacher.statistics, teacher.resize_first)
        report.close(f"{name}/crop", shown[..., 60:92, 100:132], io[f"{name}/crop"])
        statistics = torch.stack([shown[0].mean((1, 2)), shown[0].std((1, 2))])
        report.close(f"{name}/mean_std", statistics, io[f"{name}/mean_std"])
    # Building a teacher for another grid leaves the position table to timm's resampler.
    side = round((io["pos_embed_out"].shape[1] - 1) ** 0.5)
    resampled = resample_abs_pos_embed(io["pos_embed_in"], [side, side], num_prefix_tokens=1)
    report.close("pos_embed_out", resampled, io["pos_embed_out"])
