"""The card (README.md) of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common import records
from common.checkpoint import fingerprint
from common.classes import shown
from common.errors import UserError
from common.provenance import read_provenance

__all__ = ["card"]

PIPELINES = {"tokenizer": "image-to-image", "generator": "unconditional-image-generation"}
USE = {
    "tokenizer": """import tokenizer
from common.images import load_images, save_images

tok = tokenizer.load("FOLDER OR ID")
images = load_images(["image.png"], tok.image_size)
save_images(tok.detokenize(tok.tokenize(images)), "reconstruction.png")""",
    "generator": """import torch
import autoregressive
from autoregressive.generate import generate

gpt = autoregressive.load("FOLDER OR ID")
codes = generate(gpt, torch.tensor([0]))  # `decode` of its tokenizer makes an image of them""",
}


def card(
    model: nn.Module, kind: str, source: Path | None, results: str | None, data: str | None, license: str
) -> str:
    """Markdown with the metadata of the Hugging Face hub.

    kind: "tokenizer" or "generator". source: where the weights were loaded from; figures need it. results: a folder of
    result records; those of these weights become tables. data: a sentence on the training data, instead of what the
    checkpoint records.
    """
    count = sum(value.numel() for value in model.parameters())
    side = f", {model.image_size} x {model.image_size} pixels" if hasattr(model, "image_size") else ""
    try:
        codes = f"a codebook of {model.codebook_size:,} codes"
    except UserError:  # a continuous tokenizer
        codes = "continuous vectors"
    found = records.find(Path(results), {fingerprint(source)}) if results and source else []
    figures = records.render(found).replace("\n## ", "\n### ").replace("## ", "### ", 1) if found else (
        'There is no result record. `save_pretrained(FOLDER, model_card_kwargs={"results": RECORDS})` adds them.\n'
    )
    return f"""---
library_name: image-token-lab
pipeline_tag: {PIPELINES[kind]}
license: {license}
tags:
- {kind}
- image-tokens
---

# {kind.capitalize()}

{model.num_tokens} tokens per image{side}, {codes}, {count / 1e6:,.1f}M parameters. Saved by
image-token-lab.

## How to load it

```python
{USE[kind]}
```

## Data

{data or _recorded(source)}

## Figures

{figures}"""


def _recorded(source: Path | None) -> str:
    told: dict[str, Any] = read_provenance(source) if source else {}
    images, classes = (told.get("data") or {}).get("images"), told.get("classes")
    parts = [f"{images:,} images"] if images else []
    parts += [shown("class", "classes", classes)] if classes else []
    return f"Trained on {', '.join(parts)}." if parts else "The checkpoint does not record its training data."
