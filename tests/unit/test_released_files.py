"""Released files: what loads, what is refused, and that refusing never runs anything of the file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle  # only to write what must be refused
import sys
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import autoregressive
import tokenizer
from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from common import weights
from common.config import resolve
from common.errors import UserError
from common.weights import open_weights
from tokenizer.config import TokenizerConfig
from tokenizer.families import BY_NAME
from tokenizer.model import Tokenizer
from tokenizer.released import find_tokenizer, from_released, to_released, write_released

WIDTH = 64
CNN = {"channels": 32, "multipliers": [1, 2]}
HYBRID = {"width": WIDTH, "layers": 3, "heads": 1}
SMALL = {
    "hybrid_1d": {
        "image_size": 16, "z_channels": 32, "layout": {"num_tokens": 64, "redundant": 32},
        "encoder": {"name": "hybrid_1d", "cnn": CNN, "transformer": {**HYBRID, "layers": 2}},
        "decoder": {
            "name": "hybrid_1d", "cnn": CNN, "transformer": HYBRID, "semantic_head": {"depth": 3, "width": 24}
        },
        "quantizer": {"name": "vq", "codebook_size": 40, "codebook_dim": 8},
    },
    "hybrid_2d": {
        "image_size": 16, "z_channels": 32, "layout": {"num_tokens": 64},
        "encoder": {"name": "hybrid_2d", "cnn": CNN, "transformer": {**HYBRID, "qformer": True}},
        "decoder": {"name": "hybrid_2d", "cnn": CNN, "transformer": HYBRID, "semantic_head": {"depth": 3, "width": 24}},
        "quantizer": {"name": "vq", "codebook_size": 40, "codebook_dim": 8},
    },
    "cnn": {
        "image_size": 16, "z_channels": 32,
        "encoder": {"name": "cnn", **CNN, "attention": True},
        "decoder": {"name": "cnn", **CNN, "attention": True, "adaptive_norm": False, "depth_to_space": False},
        "quantizer": {"name": "vq", "codebook_size": 40, "codebook_dim": 8, "rotation": False},
    },
    "dino_vit": {
        "image_size": 32, "z_channels": WIDTH, "layout": {"num_tokens": 4},
        "encoder": {"name": "dino_vit", **HYBRID}, "decoder": {"name": "dino_vit", **HYBRID},
        "quantizer": {"name": "vq_hits", "codebook_size": 40, "codebook_dim": 8},
        "teacher": {"name": "dino_vit", **HYBRID},
    },
}  # fmt: skip


def make(name: str, **changes: object) -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(resolve(TokenizerConfig, SMALL[name] | changes, where="model"))
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def generators() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {"size": "tiny", "codebook_size": 40, "num_classes": 5}
    return {
        "learned": GPT(GPT.Config(**sizes, num_tokens=16)),
        "rope2d": GPT(GPT.Config(**sizes, num_tokens=256, positions="rope2d")),
        "adaln": GPT(GPT.Config(**sizes, num_tokens=16, qk_norm=True, adaln="full")),
        "simple": GPT(GPT.Config(**sizes, num_tokens=16, adaln="simple")),
        "rar": RAR(RAR.Config(**sizes, num_tokens=16)),
    }


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


# ------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("name", SMALL)
def test_a_file_in_the_papers_layout_loads_bit_identically_and_is_recognised(name, tmp_path, capsys):
    model = make(name)
    write_released(model, tmp_path / "released.pt")
    # Convolutions do not show the size of their images.
    again = tokenizer.load(tmp_path / "released.pt", config={"image_size": 16} if name == "cnn" else None)
    same(model, again)
    assert f"recognised {BY_NAME[name].title}, " in capsys.readouterr().err
    wanted = dataclasses.asdict(model.config)
    wanted["encoder"]["transformer"] = dataclasses.asdict(again.config)["encoder"].get("transformer")
    assert dataclasses.asdict(again.config)["layout"] == wanted["layout"] or name == "cnn"
    images = torch.rand(1, 3, model.image_size, model.image_size) * 2 - 1
    assert torch.equal(model.encode(images), again.encode(images))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("name", generators())
def test_a_generator_loads_bit_identically_and_is_recognised(name, tmp_path, capsys):
    model = generators()[name].eval()
    path = tmp_path / "released.pt"
    torch.save({"model": model.state_dict(), "steps": 7, "args": argparse.Namespace(lr=1e-4)}, path)
    again = autoregressive.load(path)
    same(model, again)
    assert "recognised " in capsys.readouterr().err
    codes, labels = torch.randint(40, (1, model.num_tokens)), torch.tensor([3])
    assert torch.equal(model(codes, labels), again(codes, labels))


def wrapped(tmp_path: Path, **parts: object) -> Path:
    torch.save(parts, tmp_path / "released.pt")
    return tmp_path / "released.pt"


def test_tokenizers_prefer_the_average_and_generators_the_model(tmp_path):
    model, ema = make("hybrid_1d"), make("hybrid_1d")
    with torch.no_grad():
        ema.quant_conv.bias.fill_(3.0)
    plain, averaged = (to_released(one.state_dict(), "hybrid_1d") for one in (model, ema))
    path = wrapped(tmp_path, model=plain, ema=averaged)
    same(tokenizer.load(path), ema)
    same(tokenizer.load(path, weights="model"), model)
    gpt = generators()["learned"]
    other = {key: value + 1 for key, value in gpt.state_dict().items()}
    path = wrapped(tmp_path, ema=other, model=gpt.state_dict())
    same(autoregressive.load(path), gpt)
    assert torch.equal(autoregressive.load(path, weights="ema").norm.weight, other["norm.weight"])


WRAPPED = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.")


@pytest.mark.parametrize("part", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("prefix", WRAPPED)
def test_every_nesting_of_a_generator_is_unwrapped(part, prefix, tmp_path):
    model = generators()["learned"]
    tensors = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({part: tensors, "steps": 3} if part else tensors, tmp_path / "released.bin")
    same(autoregressive.load(tmp_path / "released.bin"), model)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts_are_unwrapped(wrapper, tmp_path):
    model = make("hybrid_1d")
    tensors = to_released(model.state_dict(), "hybrid_1d")
    path = wrapped(tmp_path, model={key.replace(".", f".{wrapper}.", 1): value for key, value in tensors.items()})
    same(tokenizer.load(path), model)
    path = wrapped(tmp_path, model=tensors | {f"module.{key}": value for key, value in tensors.items()})
    with pytest.raises(UserError, match="weights twice, with and without prefixes"):
        tokenizer.load(path)


@pytest.mark.parametrize("name", ["epoch=3.ckpt", "weights", "weights.pt.bak", "model.safetensors.pt"])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_the_content_decides_how_a_file_is_read(kind, name, tmp_path):
    model = make("cnn")
    tensors = to_released(model.state_dict(), "cnn")
    if kind == "safetensors":
        save_file(tensors, tmp_path / name)
    else:
        torch.save({"model": tensors}, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    same(tokenizer.load(tmp_path / name), model)


def lightning(tmp_path: Path, zipped: bool = True, **more: object) -> tuple[Path, Tokenizer, Tokenizer]:
    """A Lightning checkpoint as of taming-transformers and SEED-Voken, its model, and the average inside it."""
    model, ema = make("hybrid_1d"), make("hybrid_1d")
    with torch.no_grad():
        for value in ema.parameters():
            value += 1
    plain, averaged = (to_released(one.state_dict(), "hybrid_1d") for one in (model, ema))
    names = {key for key, _ in model.named_parameters()}
    shadows = {key: value for key, value in averaged.items() if from_released({key: 0}, "hybrid_1d").keys() & names}
    state = {**plain, "loss.discriminator.main.0.weight": torch.zeros(2), "loss.logvar": torch.ones(1)}
    state |= {f"model_ema.{key.replace('.', '')}": value for key, value in shadows.items()}
    state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
    content = {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": OrderedDict(state), **more}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    return tmp_path / "last.ckpt", model, ema


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoints_are_read_as_data(zipped, tmp_path, monkeypatch):
    """Callbacks and hyper-parameters of any class are neither imported nor in the way."""
    callback = type("ModelCheckpoint", (), {"__module__": "some_trainer"})
    extra = {
        "callbacks": {callback: {"best": callback()}, "monitor": defaultdict(list, a=[1])},
        "hyper_parameters": {"path": Path("x"), "config": callback(), "scale": np.float64(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    }
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "some_trainer", SimpleNamespace(ModelCheckpoint=callback))
        path, model, ema = lightning(tmp_path, zipped, **extra)
    same(tokenizer.load(path, weights="model"), model)
    same(tokenizer.load(path), ema)


@pytest.mark.parametrize("ema", [{}, {"decay": torch.ones(1)}, {"shadow": [torch.ones(1)]}])
def test_an_average_of_something_else_is_not_taken(ema, tmp_path):
    model = make("cnn")
    same(tokenizer.load(wrapped(tmp_path, ema=ema, model=to_released(model.state_dict(), "cnn"))), model)


def test_a_folder_with_another_projects_config_is_recognised(tmp_path):
    model = make("hybrid_1d")
    save_file(to_released(model.state_dict(), "hybrid_1d"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    same(tokenizer.load(tmp_path), model)
    same(tokenizer.load(tmp_path / "model.safetensors"), model)


def test_recognition_reads_no_tensors(tmp_path):
    """Damage in the weights is found by reading them, not by looking at their shapes."""
    write_released(make("cnn"), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[info.header_offset + 2000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    config, read = find_tokenizer(tmp_path / "a.pt", "ema")
    assert config.quantizer["codebook_size"] == 40
    with pytest.raises(UserError, match=r"checksum of .* does not match"):
        read()


def test_half_precision_becomes_float32(tmp_path):
    model = make("cnn")
    half = {key: value.half() for key, value in to_released(model.state_dict(), "cnn").items()}
    torch.save({"model": half}, tmp_path / "a.pt")
    save_file(half, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        again = tokenizer.load(tmp_path / name)
        assert {value.dtype for value in again.state_dict().values() if value.is_floating_point()} == {torch.float32}
        assert torch.equal(again.quant_conv.weight, model.quant_conv.weight.half().float())


def test_what_old_generator_files_hold_besides_is_dropped(tmp_path):
    model = generators()["rope2d"]
    extra = {"freqs_cis": torch.zeros(3), "layers.0.attention.kv_cache.k_cache": torch.zeros(2)}
    same(autoregressive.load(wrapped(tmp_path, model=model.state_dict() | extra)), model)


def test_settings_beside_the_weights_tell_the_grid(tmp_path):
    model = generators()["rope2d"]
    args = argparse.Namespace(image_size=384, downsample_size=16)
    path = wrapped(tmp_path, model=model.state_dict(), args=args)
    assert autoregressive.load(path).num_tokens == 576
    assert autoregressive.load(path, config={"num_tokens": 64}).num_tokens == 64


def test_a_config_can_be_given(tmp_path):
    model = make("cnn")
    write_released(model, tmp_path / "a.pt")
    assert tokenizer.load(tmp_path / "a.pt", config={"image_size": 384}).image_size == 384
    assert tokenizer.load(tmp_path / "a.pt", config=model.config).config == model.config
    assert tokenizer.load(tmp_path / "a.pt").image_size == 256
    (tmp_path / "c.yaml").write_text("model: {image_size: 256}")
    with pytest.raises(UserError, match="do not fit this config"):
        tokenizer.load(tmp_path / "a.pt", config=tmp_path / "c.yaml")


def test_an_image_size_is_checked_and_sets_what_convolutions_leave_open(tmp_path):
    for name in ("cnn", "hybrid_1d"):
        write_released(make(name), tmp_path / f"{name}.pt")
    make("cnn").save_pretrained(tmp_path / "ours")
    assert tokenizer.load(tmp_path / "cnn.pt", image_size=384).image_size == 384
    assert tokenizer.load(tmp_path / "hybrid_1d.pt", image_size=16).image_size == 16
    for path, own in (("hybrid_1d.pt", 16), ("ours", 16)):
        with pytest.raises(UserError, match=f"image-size is 384, .* has {own}; leave it out"):
            tokenizer.load(tmp_path / path, image_size=384)


def test_the_file_decides_whether_there_are_redundant_tokens(tmp_path, capsys):
    """GigaTok's and ReTok's configs have the same names."""
    for redundant in (0, 32):
        model = make("hybrid_1d", layout={"num_tokens": 64, "redundant": redundant})
        write_released(model, tmp_path / "a.pt")
        other = dataclasses.replace(model.config, layout=type(model.config.layout)(64, 32 - redundant))
        again = tokenizer.load(tmp_path / "a.pt", config=other)
        assert again.config.layout.redundant == redundant
        assert f"has {redundant} redundant tokens" in capsys.readouterr().err


def test_loading_copies_nothing(tmp_path):
    """Every tensor is a view of the one mapped file."""
    write_released(make("hybrid_1d"), tmp_path / "a.pt")
    model = tokenizer.load(tmp_path / "a.pt")
    places = [value.untyped_storage().data_ptr() for value in model.parameters()]
    size = (tmp_path / "a.pt").stat().st_size
    assert max(places) - min(places) < size


# --------------------------------------------------------------------------------------------- what is refused


class Payload:
    """Pickles as a call of `os.system`, which would leave a file behind."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["args", "model", "inside"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_by_name_and_never_run(place, zipped, tmp_path):
    trap = tmp_path / "ran"
    bad = Payload(f"touch {trap}")
    content = {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1.0)}
    content |= {"args": argparse.Namespace(x=[bad])} if place == "inside" else {place: bad}
    path = tmp_path / "bad.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for load in (tokenizer.load, autoregressive.load, weights.read):
        with pytest.raises(UserError, match=r"refused: it names (posix|os|argparse)\.") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["builtins eval", "__builtin__ exec", "os system", "subprocess Popen", "nt system"])
def test_functions_of_python_are_refused_by_name(name, tmp_path):
    write(tmp_path, b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(UserError, match=f"it names {name.replace('__builtin__', 'builtins').replace(' ', '.')}"):
        weights.read(tmp_path / "x.pt")


def write(folder: Path, instructions: bytes) -> None:
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", instructions)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"\x80\x02(ios\nsystem\n.", "it names os.system"),
        (b"\x80\x02U\x01a(K\x01K\x02u.", "damaged or cut short"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x81.", "damaged or cut short"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo index out of range"),  # Python would allocate 32 GB
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__)s\x86b.", "changes a function"),
        (b"\x80\x02cmodels\nVQModel\n)\x81.", r"an object of class models\.VQModel, whose state_dict"),
        (b"\x80\x02]", "damaged or cut short"),
        (b"\x80\x02h\x05.", "damaged or cut short"),
        (b"", "damaged or cut short"),
    ],
)
def test_a_pickle_that_is_no_plain_data_is_refused(instructions, message, tmp_path):
    write(tmp_path, instructions)
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / "x.pt")


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    tensor = torch.arange(4.0)
    torch.save({"a": tensor}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as source, zipfile.ZipFile(tmp_path / "bad.pt", "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):  # offset 0, length 4 -> offset 2, length 4
                data = data.replace(b"K\x00K\x04\x85", b"K\x02K\x04\x85")
            target.writestr(info, data)
    assert torch.equal(weights.read(tmp_path / "good.pt")["a"], tensor)
    with pytest.raises(UserError, match="beyond its storage"):
        weights.read(tmp_path / "bad.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_says_so(suffix, share, tmp_path):
    model = make("cnn")
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        write_released(model, path)
    else:
        save_file(to_released(model.state_dict(), "cnn"), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="damaged or cut short") as caught:
        tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_inside_a_whole_archive_is_seen(tmp_path):
    torch.save({"a": torch.zeros(64)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info)[:32] if "/data/" in info.filename else source.read(info))
    with pytest.raises(UserError, match="beyond its storage"):
        weights.read(tmp_path / "b.pt")


def test_a_wrong_architecture_names_what_was_found(tmp_path):
    torch.save({"model": generators()["learned"].state_dict()}, tmp_path / "gpt.pt")
    write_released(make("cnn"), tmp_path / "vq.pt")
    with pytest.raises(UserError, match="holds no known tokenizer"):
        tokenizer.load(tmp_path / "gpt.pt")
    with pytest.raises(UserError, match="holds no known generator"):
        autoregressive.load(tmp_path / "vq.pt")
    with pytest.raises(UserError, match=r"missing .*unexpected"):
        tokenizer.load(tmp_path / "vq.pt", config=make("hybrid_1d").config)


def change(tensors: dict, case: str) -> dict:
    tensors = dict(tensors)
    if case == "missing":
        tensors.pop("decoder.conv_out.bias")
    elif case == "unexpected":
        tensors["decoder.poem"] = torch.zeros(1)
    else:
        tensors["quantize.embedding.weight"] = torch.zeros(50, 8)
    return tensors


@pytest.mark.parametrize("case", ["missing", "unexpected", "mis-shaped"])
def test_disagreements_are_listed_in_one_message(case, tmp_path):
    model = make("hybrid_1d")
    torch.save(change(to_released(model.state_dict(), "hybrid_1d"), case), tmp_path / "a.pt")
    keys = {"missing": "decoder.cnn.conv_out.bias", "unexpected": "decoder.cnn.poem"}
    key = keys.get(case, "quantizer.embedding")
    with pytest.raises(UserError, match=f"1 {case} \\({key}") as caught:
        tokenizer.load(tmp_path / "a.pt", config=model.config)
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_explained(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    torch.save({"weights": {"a": torch.zeros(1)}, "model": 3}, tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    for path, message in (
        ("a.txt", "neither safetensors nor"), ("a.pt", "holds 'weights', 'model'"), ("b.pt", "holds a list"),
        ("nothing.pt", "no checkpoint at"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            tokenizer.load(tmp_path / path)
    with pytest.raises(UserError, match="weights got 'best'"):
        tokenizer.load(tmp_path / "a.pt", weights="best")


# --------------------------------------------------------------------------------------------- plain settings


def test_settings_arrive_as_plain_data(tmp_path):
    args = argparse.Namespace(lr=1e-4, sizes=[1, 2], name="x", nested=argparse.Namespace(deep=(1, None)), flag=True)
    torch.save({"model": OrderedDict(a=torch.ones(2)), "args": args, "steps": 2**40}, tmp_path / "a.pt")
    content = weights.read(tmp_path / "a.pt")
    assert content["args"] == {"lr": 1e-4, "sizes": [1, 2], "name": "x", "nested": {"deep": (1, None)}, "flag": True}
    assert content["steps"] == 2**40
    released = open_weights(tmp_path / "a.pt", ("ema", "model"))
    assert (released.part, released.args["lr"]) == ("model", 1e-4)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_of_torch_is_read(protocol, tmp_path):
    tensors = {
        "f": torch.randn(3, 4).t(), "h": torch.randn(2).bfloat16(), "i": torch.arange(5), "b": torch.tensor(True),
        "p": torch.nn.Parameter(torch.ones(2)), "view": torch.arange(6.0)[2:5], "empty": torch.empty(0, 3),
    }  # fmt: skip
    content = {"model": tensors, "odd": {1, 2}, "text": "ä" * 300, "bytes": b"xy", "none": None, "dtype": torch.float16}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    again = weights.read(tmp_path / "a.pt")
    for key, value in tensors.items():
        assert torch.equal(again["model"][key], value) and again["model"][key].dtype == value.dtype
    assert {key: again[key] for key in content if key != "model"} == {k: v for k, v in content.items() if k != "model"}


def test_files_older_than_the_zip_format_are_read(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(weights.read(tmp_path / "old.pth")["a"], torch.arange(3.0))


def test_the_writer_of_these_tests_would_have_run_it(tmp_path):
    """The trap works: Python's own reader springs it."""
    pickle.loads(pickle.dumps(Payload(f"touch {tmp_path / 'ran'}")))  # noqa: S301
    assert (tmp_path / "ran").exists()


def test_a_tar_that_begins_like_a_pickle_is_not_unpacked(tmp_path: Path) -> None:
    """torch.load would unpack its members before reading them."""
    with tarfile.open(tmp_path / "x.pt", "w", format=tarfile.USTAR_FORMAT, encoding="latin1") as archive:
        for name in ("\x80first", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    assert (tmp_path / "x.pt").read_bytes()[:1] == b"\x80"
    with pytest.raises(UserError, match="is refused: it is a tar archive"):
        weights.read(tmp_path / "x.pt")


def test_safetensors_of_every_type_are_read_as_their_library_does(tmp_path: Path) -> None:
    """An odd number of bytes comes first, so that later tensors do not begin at multiples of their size."""
    made = {f"{number}": torch.arange(6).reshape(2, 3).to(dtype) for number, dtype in enumerate(weights.SAFE.values())}
    first = {"": torch.tensor([7], dtype=torch.uint8)}
    save_file({**first, **made, "scalar": torch.tensor(3.0)}, tmp_path / "x.safetensors")
    found, expected = weights.read(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")
    assert found.keys() == expected.keys() and len(found) == len(weights.SAFE) + 2
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
