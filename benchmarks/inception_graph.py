"""A stand-in for the evaluator's Inception file: its nodes, shapes and old operations, with random weights.

    python -m benchmarks.inception_graph --out graph.pb [--width 0.0625]

At width 1 the file has the size (95.7 MB) and the cost of the genuine one; its figures are meaningless. Smaller widths
serve tests.
Source: topology of Szegedy et al., Rethinking the Inception architecture (2015), as frozen on 2015-12-05.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto import graph_pb2, types_pb2
from tensorboard.compat.proto.attr_value_pb2 import AttrValue

__all__ = ["write_graph"]

FLOAT = types_pb2.DT_FLOAT
PRODUCER = 8
"""Version of the graph: from 9 on, TensorFlow has no BatchNormWithGlobalNormalization."""
CLASSES = 1008


def write_graph(path: str | Path, width: float = 1.0, seed: int = 0) -> Path:
    """Write the graph; `width` scales every layer's channels (at least 8, so the 7 spatial channels exist)."""
    network = _Network(width, np.random.default_rng(seed))
    network.build()
    Path(path).write_bytes(network.graph.SerializeToString())
    return Path(path)


class _Network:
    """Collects nodes; a layer is (name, channels)."""

    def __init__(self, width: float, rng: np.random.Generator) -> None:
        self.width, self.rng, self.graph = width, rng, graph_pb2.GraphDef()
        self.graph.versions.producer = PRODUCER

    def build(self) -> None:
        x = self.stem()
        for block, pooled in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            x = self.join(block, [
                self.conv(f"{block}/conv", x, 64, 1, 1),
                self.chain(f"{block}/tower", x, [(48, 1, 1), (64, 5, 5)]),
                self.chain(f"{block}/tower_1", x, [(64, 1, 1), (96, 3, 3), (96, 3, 3)]),
                self.conv(f"{block}/tower_2/conv", self.pool(f"{block}/tower_2/pool", "AvgPool", x), pooled, 1, 1),
            ])
        x = self.join("mixed_3", [
            self.conv("mixed_3/conv", x, 384, 3, 3, 2, "VALID"),
            self.chain("mixed_3/tower", x, [(64, 1, 1), (96, 3, 3), (96, 3, 3, 2, "VALID")]),
            self.pool("mixed_3/pool", "MaxPool", x, 2, "VALID"),
        ])
        for block, m in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
            x = self.join(block, [
                self.conv(f"{block}/conv", x, 192, 1, 1),
                self.chain(f"{block}/tower", x, [(m, 1, 1), (m, 1, 7), (192, 7, 1)]),
                self.chain(f"{block}/tower_1", x, [(m, 1, 1), (m, 7, 1), (m, 1, 7), (m, 7, 1), (192, 1, 7)]),
                self.conv(f"{block}/tower_2/conv", self.pool(f"{block}/tower_2/pool", "AvgPool", x), 192, 1, 1),
            ])
        x = self.join("mixed_8", [
            self.chain("mixed_8/tower", x, [(192, 1, 1), (320, 3, 3, 2, "VALID")]),
            self.chain("mixed_8/tower_1", x, [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2, "VALID")]),
            self.pool("mixed_8/pool", "MaxPool", x, 2, "VALID"),
        ])
        for block, kind in (("mixed_9", "AvgPool"), ("mixed_10", "MaxPool")):
            a = self.conv(f"{block}/tower/conv", x, 384, 1, 1)
            b = self.chain(f"{block}/tower_1", x, [(448, 1, 1), (384, 3, 3)])
            x = self.join(block, [
                self.conv(f"{block}/conv", x, 320, 1, 1),
                self.conv(f"{block}/tower/mixed/conv", a, 384, 1, 3),
                self.conv(f"{block}/tower/mixed/conv_1", a, 384, 3, 1),
                self.conv(f"{block}/tower_1/mixed/conv", b, 384, 1, 3),
                self.conv(f"{block}/tower_1/mixed/conv_1", b, 384, 3, 1),
                self.conv(f"{block}/tower_2/conv", self.pool(f"{block}/tower_2/pool", kind, x), 192, 1, 1),
            ])
        self.head(x)

    def stem(self) -> tuple[str, int]:
        self.node("ExpandDims", "Placeholder", dtype=FLOAT)
        self.constant("ResizeBilinear/size", np.array([299, 299], np.int32))
        self.node("ResizeBilinear", "ResizeBilinear", ["ExpandDims", "ResizeBilinear/size"], T=FLOAT)
        for name, source, value in (("Sub", "ResizeBilinear", 128.0), ("Mul", "Sub", 1 / 128)):
            self.constant(f"{name}/y", np.array(value, np.float32))
            self.node(name, name, [source, f"{name}/y"], T=FLOAT)
        x = self.conv("conv", ("Mul", 3), 32, 3, 3, 2, "VALID")
        x = self.conv("conv_2", self.conv("conv_1", x, 32, 3, 3, 1, "VALID"), 64, 3, 3)
        x = self.conv("conv_3", self.pool("pool", "MaxPool", x, 2, "VALID"), 80, 1, 1, 1, "VALID")
        return self.pool("pool_1", "MaxPool", self.conv("conv_4", x, 192, 3, 3, 1, "VALID"), 2, "VALID")

    def head(self, x: tuple[str, int]) -> None:
        self.pool("pool_3", "AvgPool", x, 1, "VALID", kernel=8)
        self.constant("pool_3/_reshape/shape", np.array([1, x[1]], np.int32))
        self.node("pool_3/_reshape", "Reshape", ["pool_3", "pool_3/_reshape/shape"], T=FLOAT)
        weights = self.rng.standard_normal((x[1], CLASSES), np.float32)
        self.constant("softmax/weights", weights * np.float32(2 / x[1] ** 0.5))
        self.node("softmax/logits/MatMul", "MatMul", ["pool_3/_reshape", "softmax/weights"], T=FLOAT)

    # ------------------------------------------------------------------------------------------ layers

    def conv(
        self, name: str, source: tuple[str, int], channels: int, height: int, width: int, stride: int = 1,
        padding: str = "SAME",
    ) -> tuple[str, int]:
        """Convolution, the old batch norm, and Relu behind a gate that checks for NaN, as in the genuine file."""
        channels, number = max(round(channels * self.width), 8), FLOAT
        kernel = self.rng.standard_normal((height, width, source[1], channels), np.float32)
        self.constant(f"{name}/conv2d_params", kernel * np.float32((2 / (height * width * source[1])) ** 0.5))
        self.node(f"{name}/Conv2D", "Conv2D", [source[0], f"{name}/conv2d_params"], T=number,
                  strides=[1, stride, stride, 1], padding=padding)
        norm = f"{name}/batchnorm"
        statistics = {"moving_mean": 0.0, "moving_variance": 1.0, "beta": 0.1, "gamma": 1.0}
        for part, value in statistics.items():
            self.constant(f"{norm}/{part}", np.full(channels, value, np.float32))
        self.node(norm, "BatchNormWithGlobalNormalization",
                  [f"{name}/Conv2D", *(f"{norm}/{part}" for part in statistics)], T=number,
                  variance_epsilon=0.001, scale_after_normalization=False)
        self.node(f"{name}/CheckNumerics", "CheckNumerics", [norm], T=number, message="batchnorm")
        self.node(f"{name}/control_dependency", "Identity", [norm, f"^{name}/CheckNumerics"], T=number)
        self.node(name, "Relu", [f"{name}/control_dependency"], T=number)
        return name, channels

    def chain(self, prefix: str, x: tuple[str, int], layers: list[tuple]) -> tuple[str, int]:
        for place, layer in enumerate(layers):
            x = self.conv(f"{prefix}/conv" + (f"_{place}" if place else ""), x, *layer)
        return x

    def pool(
        self, name: str, kind: str, source: tuple[str, int], stride: int = 1, padding: str = "SAME", kernel: int = 3
    ) -> tuple[str, int]:
        self.node(name, kind, [source[0]], T=FLOAT, ksize=[1, kernel, kernel, 1],
                  strides=[1, stride, stride, 1], padding=padding)
        return name, source[1]

    def join(self, block: str, branches: list[tuple[str, int]]) -> tuple[str, int]:
        self.constant(f"{block}/join/concat_dim", np.array(3, np.int32))
        self.node(f"{block}/join", "Concat", [f"{block}/join/concat_dim", *(name for name, _ in branches)],
                  T=FLOAT, N=len(branches))
        return f"{block}/join", sum(channels for _, channels in branches)

    def constant(self, name: str, value: np.ndarray) -> None:
        dtype = FLOAT if value.dtype == np.float32 else types_pb2.DT_INT32
        tensor = self.node(name, "Const", dtype=dtype).attr["value"].tensor
        tensor.dtype, tensor.tensor_content = dtype, np.ascontiguousarray(value).tobytes()
        tensor.tensor_shape.SetInParent()
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)

    def node(self, name: str, op: str, inputs: list[str] | None = None, **attributes: Any) -> graph_pb2.NodeDef:
        node = self.graph.node.add(name=name, op=op, input=inputs or [])
        for key, value in attributes.items():
            node.attr[key].CopyFrom(_attribute(key, value))
        return node


def _attribute(key: str, value: Any) -> AttrValue:
    if key in ("T", "dtype"):
        return AttrValue(type=value)
    if isinstance(value, list):
        return AttrValue(list=AttrValue.ListValue(i=value))
    kinds = {bool: "b", int: "i", float: "f"}
    return AttrValue(s=value.encode()) if isinstance(value, str) else AttrValue(**{kinds[type(value)]: value})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--width", type=float, default=1.0)
    arguments = parser.parse_args()
    print(write_graph(arguments.out, arguments.width), arguments.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
