"""Checkpoints: one folder per step, written atomically and loaded strictly.

    <run>/checkpoints/0250000/
        model.safetensors ...   weights, one file per name
        state.pt                optimizers and counters (tensors and plain containers only)
        model/ ... state/       sharded tensors instead: one folder per name, one file per process
        config.json             the resolved config of the run
        manifest.json           sizes and sha256 of the files above; written last

A folder without a matching manifest is not a checkpoint and is never resumed from. A folder is written as
`<step>.partial`, renamed to `<step>`, and renamed to `<step>.pruned` before it is deleted. A resume renames a damaged
folder to `<step>.damaged`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common import dist, download
from common.config import merge
from common.errors import UserError, nearest
from common.options import RunConfig

MANIFEST = "manifest.json"


def save(
    run: str | Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write one checkpoint atomically: a temporary folder, fsync, rename. Returns its path.

    Rank 0 calls it. With sharded tensors every rank calls it, and returns when its own part is written.

    Raises: UserError when the disk is full or read-only; earlier checkpoints are untouched.
    """
    final = folder(run, step)
    partial = final.with_name(final.name + ".partial")
    try:
        weights, state = _start(partial, weights, state)
        if dist.rank() != 0:
            return final
        for name, tensors in weights.items():
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(plain, partial / f"{name}.safetensors")
        torch.save(dict(state), partial / "state.pt")
        (partial / "config.json").write_text(json.dumps(config, indent=1))
        files = {
            path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": files, **(meta or {})}, indent=1))
        for path in (*partial.rglob("*"), partial):
            _fsync(path)
        if final.exists():  # an incomplete folder of this step
            shutil.rmtree(final)
        os.rename(partial, final)
        _fsync(final.parent)
        _fsync(final.parent.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"checkpoint {str(final)!r} could not be written ({getattr(error, 'strerror', None) or error}); "
            "free space or choose another --out; earlier checkpoints are intact"
        ) from error
    return final


def in_parts(value: object) -> bool:
    """Whether a tensor is a DTensor. Does not import its module, which takes a second."""
    return hasattr(value, "placements")


def is_sharded(tensors: Mapping[str, Any]) -> bool:
    return any(map(in_parts, tensors.values()))


def _start(
    partial: Path, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]]:
    """Create the folder and write the sharded tensors; returns the other weights and state."""
    problem = None
    try:
        if dist.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    except OSError as error:
        problem = error
    parts = {name: tensors for name, tensors in weights.items() if is_sharded(tensors)}
    if parts:
        from common import sharded

        sharded.meet(problem)
        moments = sharded.select(state, lambda _, value: in_parts(value))
        for name, tensors in (parts | {"state": moments}).items():
            sharded.write(tensors, partial / name)
        return {name: weights[name] for name in weights.keys() - parts.keys()}, sharded.without(state, moments)
    if problem:
        raise problem
    return weights, state


def prune(run: str | Path, keep_last: int, milestone_every: int) -> list[str]:
    """Delete all but the newest `keep_last` checkpoints (0 = keep all) and the milestones (0 = none).

    Also deletes the leftovers of interrupted saves and deletions. Incomplete folders do not count and are kept.
    Returns one message for each folder that could not be deleted.
    """
    folders = [path for path in sorted(_candidates(Path(run))) if is_complete(path)]
    old = [
        path
        for path in (folders[:-keep_last] if keep_last else [])
        if not (milestone_every and int(path.name) % milestone_every == 0)
    ]
    problems = []
    for path in (*(Path(run) / "checkpoints").glob("*.partial"), *(Path(run) / "checkpoints").glob("*.pruned"), *old):
        try:
            if path in old:
                path = path.rename(path.with_name(path.name + ".pruned"))
            shutil.rmtree(path)
        except OSError as error:
            problems.append(f"{str(path)!r} cannot be deleted ({error.strerror}); delete it by hand")
    return problems


def lock(run: str | Path) -> IO[str]:
    """Reserve a run folder for this process, until the returned file is closed or the process ends.

    The lock is a POSIX record lock: it does not outlive the process, and forked loader processes do not inherit it.

    Raises: UserError when another process has reserved the folder.
    """
    Path(run).mkdir(parents=True, exist_ok=True)
    file = open(Path(run) / "lock", "a")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(
            f"another process is already training in {str(run)!r}; stop it, or choose another --out"
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def folder(run: str | Path, step: int) -> Path:
    """Where a run's checkpoint after `step` steps is."""
    return Path(run) / "checkpoints" / f"{step:07d}"


def newest(run: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    for folder in sorted(_candidates(Path(run)), reverse=True):
        if is_complete(folder):
            return folder
    return None


def recover(run: str | Path) -> tuple[Path | None, list[Path]]:
    """The newest undamaged checkpoint of a run (or None) to resume from. One process calls it; it reads all files.

    Newer damaged folders are renamed to `<step>.damaged` and returned, too.
    """
    aside = []
    for folder in sorted(_candidates(Path(run)), reverse=True):
        if is_complete(folder) and not damaged(folder):
            return folder, aside
        aside.append(folder.with_name(folder.name + ".damaged"))
        shutil.rmtree(aside[-1], ignore_errors=True)
        os.rename(folder, aside[-1])
    return None, aside


def damaged(folder: Path) -> list[str]:
    """The files of a checkpoint whose hash is not the manifest's. Reads all of them."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return [name for name, entry in files.items() if sha256(folder / name) != entry["sha256"]]


def is_complete(folder: Path) -> bool:
    """Whether every file the manifest lists is there in full size."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == entry["bytes"] and "sha256" in entry for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_config(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """The resolved config a checkpoint was trained with. `verify`: compare its hash with the manifest's."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} holds no config.json; expected a checkpoint such as <run>/checkpoints/0001000"
        )
    if verify:
        _check(path.parent, path.name)
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); use another checkpoint") from error
    if not isinstance(config, dict):
        raise UserError(f"{str(path)!r} holds a {type(config).__name__}; expected the keys of a config")
    return config


def read_weights(folder: str | Path, name: str, verify: bool = True) -> dict[str, Tensor]:
    """The weights `name` of a checkpoint folder, whole; `verify` as in `read_config`."""
    folder = Path(folder)
    path = folder / f"{name}.safetensors"
    shards = sorted((folder / name).glob("*.safetensors"))
    if not shards and not path.is_file():
        there = sorted(p.stem for p in folder.glob("*.safetensors"))
        raise UserError(
            f"{str(folder)!r} holds no weights {name!r}; there are: {', '.join(there) or 'none'} (weights=NAME)"
        )
    for file in (shards or [path]) if verify else ():
        _check(folder, file.relative_to(folder).as_posix())
    if shards:
        from common import sharded

        return sharded.read_whole(folder / name)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for damaged files
        raise UserError(f"{str(path)!r} is damaged ({error}); use another checkpoint") from error


def read_state(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """Optimizers and counters of a checkpoint folder; `verify` as in `read_config`.

    Raises: UserError when the file is damaged or missing.
    """
    path = Path(folder) / "state.pt"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no state.pt; it can be loaded but not resumed")
    if verify:
        _check(path.parent, path.name)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's restricted reader raises many types for a damaged file
        raise UserError(f"{str(path)!r} is damaged ({str(error).splitlines()[0]}); use another checkpoint") from error


def restore(
    folder: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> tuple[Callable[[str], Mapping[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint into the layout (sharded or whole) of `weights` and `state`; their shards are filled in place.

    Returns a reader of weights by name, and the state. Every rank calls both. Hashes are not compared: the main
    process has done that (`recover`).
    """
    kept = read_state(folder, verify=False)
    if not (folder / "state").is_dir() and not any(is_sharded(tensors) for tensors in weights.values()):
        return lambda name: read_weights(folder, name, verify=False), kept
    from common import sharded

    if (folder / "state").is_dir():
        there = sharded.names(folder / "state")
        sharded.read_into(sharded.select(state, lambda path, _: path in there), folder / "state")
        kept = merge(state, kept)

    def read(name: str) -> Mapping[str, Tensor]:
        if not (folder / name).is_dir():
            return sharded.like(weights[name], read_weights(folder, name, verify=False))
        sharded.read_into(weights[name], folder / name)
        return weights[name]

    return read, sharded.like(state, kept)


def has_weights(folder: str | Path, name: str) -> bool:
    """Whether a checkpoint folder holds weights of this name, whole or sharded."""
    return (Path(folder) / f"{name}.safetensors").is_file() or (Path(folder) / name).is_dir()


def resolve_folder(path: str | Path) -> Path:
    """The checkpoint folder or file for a path that a user gives.

    A checkpoint folder, or a run (its newest complete checkpoint); a folder with `model.safetensors` and
    `config.json`; a checkpoint file; or an id on the Hugging Face hub, which is downloaded.
    """
    text, path = str(path), Path(path)
    if (path / MANIFEST).is_file():
        if not is_complete(path):
            raise UserError(f"checkpoint {text!r} is incomplete (a file is missing or cut short); use an earlier one")
        return path
    if path.is_file() or ((path / "model.safetensors").is_file() and (path / "config.json").is_file()):
        return path
    found = newest(path)
    if found is None and not path.exists() and download.is_repo_id(text):
        found = download.fetch(text)
    if found is None:
        siblings = path.parent.iterdir() if path.parent.is_dir() and not path.exists() else ()
        raise UserError(
            f"no checkpoint at {text!r}{nearest(text, [str(sibling) for sibling in siblings])}; expected a run folder, "
            "<run>/checkpoints/<step>, a checkpoint file, a folder with model.safetensors and config.json, or a hub id "
            "(owner/name)"
        )
    return found


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Strict load, with all disagreements in one message.

    `assign` makes the tensors the module's own instead of copying them; modules on the meta device need it.

    Raises: UserError listing the first missing, unexpected and mis-shaped keys.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    shapes = [
        f"{key}: file {tuple(tensors[key].shape)}, model {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        problems = [
            f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            for kind, found in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
            if found
        ]
        raise UserError(
            f"weights of {source} do not fit this config: {'; '.join(problems)}; pass the config they were trained with"
        )
    module.load_state_dict(tensors, assign=assign)


def fingerprint(found: str | Path) -> str:
    """A short hash of the weights at a resolved path, for records of what was used."""
    found = Path(found)
    if (found / MANIFEST).is_file():
        files = json.loads((found / MANIFEST).read_text())["files"]
        weights = [name for name in sorted(files) if name.endswith(".safetensors") and not name.startswith("state/")]
        hashes = "".join(files[name]["sha256"] for name in weights)
    else:
        hashes = sha256(found if found.is_file() else found / "model.safetensors")
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, name: str) -> None:
    """Raises: UserError when the hash of file `name` is not the manifest's. Folders of a hub have no manifest."""
    path = folder / name
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"][name]["sha256"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder / MANIFEST)!r} is damaged ({error!r}); use another checkpoint") from error
    if sha256(path) != expected:
        raise UserError(f"{str(path)!r} is damaged (its hash is not the manifest's); use another checkpoint")


def _candidates(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    return [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Saver:
    """Saves checkpoints and deletes old ones. With `background_save` training waits only for a copy to host memory.

    One checkpoint is written at a time: a save waits until the previous one is on disk.
    """

    def __init__(
        self,
        config: RunConfig,
        run_config: Mapping[str, Any],
        meta: Mapping[str, Any] | None,
        warn: Callable[[str], None],
    ) -> None:
        self.config, self.run_config, self.meta, self.warn = config, run_config, meta, warn
        self._host: dict[str, Tensor] = {}  # reused, because page-locked memory is slow to allocate
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Raises: UserError when this checkpoint (in the background: the previous one) could not be written."""
        self.finish()
        if not self.config.background_save:
            self._write(step, weights, state)
            return
        copied = self._copy({"weights": dict(weights), "state": dict(state)}, "")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = Thread(target=self._try, args=(step, copied["weights"], copied["state"]), name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the background thread has failed."""
        return self._error is not None

    def finish(self) -> None:
        """Wait for the background thread. Raises: its error."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _try(self, *checkpoint_parts: Any) -> None:
        try:
            self._write(*checkpoint_parts)
        except Exception as error:  # `finish` raises it in the training's thread
            self._error = error

    def _write(self, step: int, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        save(self.config.out, step, weights, state, self.run_config, self.meta)
        if dist.rank() == 0:
            self.prune()

    def prune(self) -> None:
        for problem in prune(self.config.out, self.config.keep_last, self.config.milestone_every):
            self.warn(problem)

    def _copy(self, value: Any, path: str) -> Any:
        """Copy nested containers; their tensors are copied into host memory that the next save reuses."""
        if isinstance(value, Mapping):
            return {key: self._copy(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, f"{path}/{number}") for number, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        local = value.to_local() if in_parts(value) else value
        held = self._host.get(path)
        if held is None or held.shape != local.shape or held.dtype != local.dtype:
            held = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self._host[path] = held
        if local is not value:
            from common import sharded

            return sharded.on_host(value, held)
        return held.copy_(value.detach(), non_blocking=True)
