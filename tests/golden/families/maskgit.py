"""MaskGIT-VQGAN. Its images are v / 255 in [0,1]; ours are v / 127.5 - 1."""

from __future__ import annotations

import torch

from tests.golden import models
from tests.golden.families.titok import CROP, images_of, unit
from tests.golden.fixture import Fixture, Report, filled
from tokenizer.families.maskgit import rename, restore
from tokenizer.model import Tokenizer


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and fixture.about.get("project") == "maskgit_vqgan"


def check(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    report.recorded = about["fp32_versus_fp64_max_relative_difference"]
    with torch.device("meta"):
        model = Tokenizer(models.maskgit(about.get("constructor_args", {}), about))
    weights = filled(about, restore(model.state_dict())) if fixture.kind == "fullsize" else fixture.weights
    model.load_state_dict(rename(weights), strict=True, assign=True)
    with torch.no_grad():
        (_released_size if fixture.kind == "fullsize" else _tiny)(model.eval(), fixture, report)


def _tiny(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io, images = fixture.io, images_of(fixture)
    hidden, _ = model.latents(images)
    codes = model.encode(images)
    report.close("hidden", hidden, io["hidden"])
    report.equal("codes", codes, io["codes"])
    report.close("quant", model.vectors(codes), io["quant"])
    decoded = unit(model.decode(codes))
    report.close("decoded_raw", decoded[:1], io["decoded_raw"])
    report.close("decoded", decoded.clamp(0, 1), io["decoded"])
    hidden = model.encoder(images_of(fixture, "wide/image_u8"))
    codes = model.quantizer(hidden).codes
    report.close("wide/hidden", hidden, io["wide/hidden"])
    report.equal("wide/codes", codes, io["wide/codes"])
    decoded = unit(model.decoder(model.quantizer.arrange(codes, *hidden.shape[2:])))
    report.close("wide/decoded", decoded.clamp(0, 1), io["wide/decoded"])


def _released_size(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    hidden, _ = model.latents(images_of(fixture))
    report.close("pre_quant", hidden[:, :48], io["pre_quant"])
    report.codes("codes", model.quantizer(hidden).codes, io["codes"], io["index_margin"][None])
    decoded = unit(model.decode(io["codes"]))
    report.close("decoded_crop", decoded[CROP], io["decoded_crop"])
    statistics = torch.stack([decoded[0].mean((1, 2)), decoded[0].std((1, 2))])
    report.close("decoded_stats", statistics, io["decoded_stats"])
