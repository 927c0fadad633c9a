"""An image folder as tar shards (WebDataset's layout), and back: a million small files as a thousand large ones.

    bash scripts/pack_images.sh --data-path DIR --out SHARDS
    bash scripts/pack_images.sh --unpack --data-path SHARDS --out DIR

Training, extraction, validation loss and linear probes read either: give the folder of shards as --data-path. Shards
that another program wrote need an index first: --index --data-path SHARDS.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import MISSING, opt
from common.errors import UserError


@dataclass
class PackConfig:
    data_path: str = opt(MISSING, "image folder; with unpack or index a folder of shards")
    out: str | None = opt(None, "folder to write; not with index")
    shard_mb: float = opt(500.0, "size of a shard, million bytes")
    unpack: bool = opt(False, "shards -> image folder")
    index: bool = opt(False, "write the index of shards from elsewhere, in place")


def main() -> None:
    options = config.parse(PackConfig, about=__doc__)
    if options.index == bool(options.out) or (options.index and options.unpack):
        raise UserError("give --out with a folder to write, or --index alone")
    from common import shards

    if options.index:
        print(f"{options.data_path}: {shards.make_index(options.data_path)} images indexed")
    elif options.unpack:
        print(f"written: {shards.unpack(options.data_path, options.out)}")
    else:
        print(f"written: {shards.pack(options.data_path, options.out, options.shard_mb)}")


if __name__ == "__main__":
    config.main(main)
