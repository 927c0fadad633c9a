"""The Inception network of the ADM evaluator in torch, built from TensorFlow's own frozen graph file.

Its features are `pool_3` (2,048 numbers), the first 7 channels of `mixed_6/conv` (17 x 17 x 7 = 2,023 numbers) and the
class logits without the bias. The graph includes the resize to 299 pixels: bilinear as in TensorFlow 1, neither
corner-aligned nor with half-pixel centres. Only the file format needs protobuf, which TensorBoard brings along.
Source: Szegedy et al., Rethinking the Inception architecture (2015); Dhariwal and Nichol's evaluator (ADM, 2021).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor

from common.errors import UserError

__all__ = ["InceptionFeatures", "InceptionGraph", "graph_file", "read_graph"]

FILE = "classify_image_graph_def.pb"
URL = f"https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/{FILE}"
INPUT, POOL, SPATIAL, MATMUL = "ExpandDims", "pool_3", "mixed_6/conv", "softmax/logits/MatMul"
SPATIAL_CHANNELS = 7


@dataclass(frozen=True)
class InceptionFeatures:
    """`pool` (B,2048), `spatial` (B,2023), `logits` (B,K), float32."""

    pool: Tensor
    spatial: Tensor
    logits: Tensor


def graph_file(path: str | None = None) -> Path:
    """The graph file: `path`, or the one in the cache folder.

    Raises: UserError naming the file and the command that downloads it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "image-token-lab"
    file = Path(path) if path else cache / FILE
    if not file.is_file():
        raise UserError(
            f"the Inception graph {str(file)!r} does not exist: curl -L --create-dirs -o {file} {URL}; "
            "or measure the embedded distance 'fd_efficientnet_lite2'"
        )
    return file


def read_graph(path: str | Path) -> dict[str, NodeDef]:
    """All nodes of a frozen TensorFlow graph by name.

    Raises: UserError when the file is not a GraphDef.
    """
    try:
        graph = GraphDef.FromString(Path(path).read_bytes())
    except DecodeError as error:
        raise UserError(f"{str(path)!r} is not a frozen TensorFlow graph ({error}); download it again") from error
    if not graph.node:
        raise UserError(f"{str(path)!r} contains no graph nodes; download it again")
    return {node.name: node for node in graph.node}


class InceptionGraph:
    """The network of a graph file on `device`. Batch norm is folded into the convolutions.

    Raises: UserError when the file is missing or contains another network.
    """

    def __init__(self, path: str | None = None, device: torch.device | str = "cpu") -> None:
        self.path, self.device = graph_file(path), torch.device(device)
        self._nodes = read_graph(self.path)
        missing = [name for name in (INPUT, POOL, SPATIAL, MATMUL) if name not in self._nodes]
        if missing:
            raise UserError(f"{str(self.path)!r} has no node {missing[0]!r}; expected the Inception graph {FILE}")
        self._steps = self._compile([SPATIAL, POOL])
        self._classes = self._tensor(self._nodes[MATMUL].input[1])
        del self._nodes

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> InceptionFeatures:
        """Pixels (B,H,W,3) in [0,255], any size and numeric type, to features."""
        images = pixels.to(self.device, torch.float32).permute(0, 3, 1, 2)
        values: dict[str, Tensor] = {INPUT: images.contiguous(memory_format=torch.channels_last)}
        for step in self._steps:
            values[step.output] = step.run(*(values[name] for name in step.inputs))
            for name in step.last_use:
                del values[name]
        pool = values[POOL].flatten(1)
        spatial = values[SPATIAL][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return InceptionFeatures(pool, spatial, pool @ self._classes)

    # ------------------------------------------------------------------------------------------ graph -> steps

    def _compile(self, outputs: list[str]) -> list[_Step]:
        steps: list[_Step] = []
        done: set[str] = {INPUT}

        def visit(name: str) -> None:
            if name in done:
                return
            done.add(name)
            step = self._step(self._nodes[name])
            for needed in step.inputs:
                visit(needed)
            steps.append(step)

        for name in outputs:
            visit(name)
        seen = set(outputs)
        for step in reversed(steps):  # a value is dropped by the last step that reads it
            step.last_use = [name for name in dict.fromkeys(step.inputs) if name not in seen]
            seen.update(step.inputs)
        return steps

    def _step(self, node: NodeDef) -> _Step:
        inputs = [name.removesuffix(":0") for name in node.input if not name.startswith("^")]
        if node.op == "BatchNormWithGlobalNormalization":
            return self._convolution(node, inputs)
        if node.op in ("Identity", "CheckNumerics"):
            return _Step(node.name, inputs[:1], lambda x: x)
        if node.op == "Relu":
            return _Step(node.name, inputs, torch.relu_)  # in place: only this step reads the convolution's output
        if node.op in ("Sub", "Mul"):
            number = self._tensor(inputs[1]).item()
            return _Step(node.name, inputs[:1], (lambda x: x - number) if node.op == "Sub" else (lambda x: x * number))
        if node.op == "ResizeBilinear":
            size = self._tensor(inputs[1]).tolist()
            return _Step(node.name, inputs[:1], lambda x: _resize(x, *size))
        if node.op == "Concat":
            return _Step(node.name, inputs[1:], lambda *parts: torch.cat(parts, dim=1))
        if node.op in ("MaxPool", "AvgPool"):
            return _Step(node.name, inputs, _pool(node))
        raise UserError(f"{str(self.path)!r} has an operation {node.op!r} at {node.name!r}; expected the graph {FILE}")

    def _convolution(self, norm: NodeDef, inputs: list[str]) -> _Step:
        """Conv2D and the batch norm after it, which has no scale here, as one convolution."""
        convolution, name = self._nodes[inputs[0]], norm.name
        if convolution.op != "Conv2D" or norm.attr["scale_after_normalization"].b:
            raise UserError(f"{str(self.path)!r} has an unexpected batch norm at {name!r}; expected the graph {FILE}")
        inputs_of = [convolution.input[0].removesuffix(":0")]
        mean, variance, beta = (self._tensor(source).double() for source in inputs[1:4])
        scale = 1 / (variance + norm.attr["variance_epsilon"].f).sqrt()
        kernel = self._tensor(convolution.input[1]).double()
        weight = (kernel * scale).permute(3, 2, 0, 1).float().contiguous(memory_format=torch.channels_last)
        bias = (beta - mean * scale).float()
        stride = convolution.attr["strides"].list.i[1]
        same = convolution.attr["padding"].s == b"SAME"
        if same and stride == 1 and all(side % 2 for side in weight.shape[-2:]):
            # The padding is the same on all sides, so the input needs no padded copy.
            padding = [side // 2 for side in weight.shape[-2:]]
            return _Step(name, inputs_of, lambda x: F.conv2d(x, weight, bias, padding=padding))

        def run(x: Tensor) -> Tensor:
            if same:
                x = _pad_same(x, weight.shape[-2:], stride, 0.0)
            return F.conv2d(x, weight, bias, stride)

        return _Step(name, inputs_of, run)

    def _tensor(self, name: str) -> Tensor:
        value = self._nodes[name.removesuffix(":0")].attr["value"].tensor
        return torch.from_numpy(make_ndarray(value)).to(self.device)


@dataclass
class _Step:
    output: str
    inputs: list[str]
    run: Callable[..., Tensor]
    last_use: list[str] = ()


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's bilinear resize in its own order of operations: along rows first, then down the columns."""
    for axis, size in ((3, width), (2, height)):
        source = torch.arange(size, dtype=torch.float32, device=images.device) * (
            torch.tensor(images.shape[axis], dtype=torch.float32) / size
        )
        low = source.floor().long()
        high = (low + 1).clamp_max(images.shape[axis] - 1)
        weight = (source - low).view([-1 if d == axis else 1 for d in range(4)])
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, high) - first) * weight
    return images.contiguous(memory_format=torch.channels_last)


def _pool(node: NodeDef) -> Callable[[Tensor], Tensor]:
    kernel, stride = node.attr["ksize"].list.i[1], node.attr["strides"].list.i[1]
    same = node.attr["padding"].s == b"SAME"
    if node.op == "MaxPool":
        return lambda x: F.max_pool2d(_pad_same(x, (kernel, kernel), stride, -math.inf) if same else x, kernel, stride)
    if not same:
        return lambda x: F.avg_pool2d(x, kernel, stride)
    if stride == 1 and kernel % 2:
        return lambda x: F.avg_pool2d(x, kernel, stride, kernel // 2, count_include_pad=False)
    # Padded positions do not count: divide by the number of real ones.
    return lambda x: F.avg_pool2d(_pad_same(x, (kernel, kernel), stride, 0.0), kernel, stride) / F.avg_pool2d(
        _pad_same(torch.ones_like(x[:1, :1]), (kernel, kernel), stride, 0.0), kernel, stride
    )


def _pad_same(x: Tensor, kernel: tuple[int, int] | torch.Size, stride: int, value: float) -> Tensor:
    total = [max((math.ceil(n / stride) - 1) * stride + k - n, 0) for n, k in zip(x.shape[-2:], kernel, strict=True)]
    top, left = total[0] // 2, total[1] // 2
    return F.pad(x, (left, total[1] - left, top, total[0] - top), value=value) if any(total) else x
