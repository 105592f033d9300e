"""The folder of a run: what is finished, what is under way, and whether it is the same training.

    OUT/recipe.yaml             every value of the recipe
    OUT/STAGE/                  the result of a finished stage: model, processor, train_log.jsonl, stage.json
    OUT/STAGE.work/             a stage under way: checkpoint-N, train_log.jsonl, stage.json
    OUT/.lock                   held by the run under way
    OUT/.lock.holder            which process on which machine that is

`OUT/STAGE` appears in one rename, so it is whole wherever it is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from llavit.train.recipe import Recipe, Stage
from llavit.train.schema import to_plain
from llavit.train.weights import weights_digest

RECORD = "stage.json"
UNFINISHED = "unfinished"
"""Folder of a checkpoint that is being written, within that of a stage under way."""

LOCK = ".lock"
"""File in a run's folder that the run under way holds: two would overwrite each other's checkpoints."""

RESULT = "result"
"""Folder of a stage's result that is being written."""

_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")

_HOW_NOT_WHAT = (
    "micro_batch_size",
    "pack_length",
    "group_by_length",
    "gradient_checkpointing",
    "save_every",
    "keep_checkpoints",
    "workers",
)
"""Keys of a stage that change how it is computed, not what comes out: they may differ when it is resumed."""

_NOT_THE_RECORDS = ("path", "format", "split", "limit", "mixture", "on_error", "max_skipped")
"""Keys of a stage's data for which its records stand, or that only say when to stop."""

_LATER = {"style": "chat", "image_aspect_ratio": None, "lora": None, "frozen_dtype": "float32"}
"""Keys of a stage that came later, and the values that stand for their absence: older runs go on."""

_LATER_IN_MODEL = {"projector_width": None, "visual_qkv_start": "copy"}
"""The same of the recipe's model."""


def stage_identity(recipe: Recipe, index: int, fingerprint: str, before: str | None) -> dict[str, Any]:
    """Collect all that decides what comes out of a stage.

    Args:
        recipe: the whole recipe.
        index: which stage.
        fingerprint: of the records; stands for their path, which may move.
        before: `digest` of the stage before, None for the first.
    """
    stage = {
        key: value
        for key, value in to_plain(recipe.stages[index]).items()
        if key not in _HOW_NOT_WHAT and (key not in _LATER or value != _LATER[key])
    }
    stage["learning_rates"] = recipe.stages[index].learning_rates.by_part()
    data = {key: value for key, value in stage["data"].items() if key not in _NOT_THE_RECORDS}
    stage["data"] = {**data, "records": fingerprint}
    model = {
        key: value
        for key, value in to_plain(recipe.model).items()
        if key not in _LATER_IN_MODEL or value != _LATER_IN_MODEL[key]
    }
    start = _starting_point(model) if before is None else {"the stage before": before}
    if recipe.feature_cache is not None:
        stage["features"] = "cached in bfloat16"
    return {**start, "seed": recipe.seed, "dtype": recipe.dtype, "stage": stage}


def _starting_point(model: dict[str, Any]) -> dict[str, Any]:
    """Say what the first stage starts from: by name, and by content what lies in folders."""
    sources = {name: model[name] for name in ("vision", "llm", "checkpoint") if model[name] is not None}
    digests = {name: weights_digest(source) for name, source in sources.items()}
    weights = {name: found for name, found in digests.items() if found is not None}
    return {"model": model, "weights": weights} if weights else {"model": model}


def _as_recorded(identity: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Leave out weights that are on record on one side only: in runs from before they counted, or deleted since."""
    here = identity.get("weights", {})
    weights = {name: here.get(name, found) for name, found in there.get("weights", {}).items()}
    identity = {key: value for key, value in identity.items() if key != "weights"}
    return {**identity, "weights": weights} if weights else identity


def digest(identity: dict[str, Any]) -> str:
    """Shorten an identity to one word."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def checkpoints(folder: Path) -> list[Path]:
    """List the whole checkpoints in a folder, oldest first; other names (checkpoint-200.bak, a copy) are none."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir()}
    steps = {path: int(name[1]) for path, name in found.items() if name is not None}
    return sorted(steps, key=steps.__getitem__)


class StageStore:
    """One stage's folders.

    Args:
        output: folder of the run.
        stage: the recipe's stage.
        identity: of `stage_identity`.

    Attributes:
        identity: the same, with what the folder's own record knows of the weights at the start.
    """

    def __init__(self, output: Path, stage: Stage, identity: dict[str, Any]):
        self.result = output / stage.name
        self.work = output / f"{stage.name}.work"
        folder = self._holds()
        if folder is not None and (folder / RECORD).is_file():
            identity = _as_recorded(identity, json.loads((folder / RECORD).read_text(encoding="utf-8")))
        self.identity = identity

    def finished(self) -> bool:
        """Say whether the result is there.

        Raises:
            ValueError: a folder is there, of the result or of the stage under way, that holds something else: another
                training, or none at all. Of a stage under way nothing counts that ended before its first checkpoint.
        """
        folder = self._holds()
        if folder is not None:
            self._check(folder)
        if folder != self.result:
            return False
        shutil.rmtree(
            self.work, ignore_errors=True
        )  # left by a run that was killed between its last two lines
        return True

    def begin(self) -> None:
        """Open the working folder, new or as a killed run left it, without what that one had not finished to write.

        Half a checkpoint is as large as a whole one: where a full disk ended the run, the next one needs its place.
        Without any checkpoint nothing stays, as it may be of another training, but for copies that somebody made of
        checkpoints (checkpoint-200.bak).
        """
        for name in (UNFINISHED, RESULT):
            shutil.rmtree(self.work / name, ignore_errors=True)
        if (self.work / RECORD).exists() and not checkpoints(self.work):
            for path in set(self.work.iterdir()) - set(self.work.glob("checkpoint-*")):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not (self.work / RECORD).exists():
            self.work.mkdir(parents=True, exist_ok=True)
            write_text(self.work / RECORD, json.dumps(self.identity, indent=2))

    def publish(self, folder: Path) -> None:
        """Make a complete folder the stage's result and clear up."""
        write_text(folder / RECORD, json.dumps(self.identity, indent=2))
        put_in_place(folder, self.result)
        shutil.rmtree(self.work)

    def _holds(self) -> Path | None:
        """Give the folder of what has been trained: the result, or the stage under way once it has a checkpoint."""
        if self.result.exists():
            return self.result
        return self.work if checkpoints(self.work) else None

    def _check(self, folder: Path) -> None:
        record = folder / RECORD
        if not record.is_file():
            raise ValueError(
                f"{folder} exists and was not made by a training run; choose another output folder"
            )
        made_with = json.loads(record.read_text(encoding="utf-8"))
        changes = differences(made_with, json.loads(json.dumps(self.identity)))
        if changes:
            raise ValueError(
                f"{folder} comes from another training:\n  " + "\n  ".join(changes) + "\n"
                f"Choose another output folder, or delete {folder} to train it again."
            )


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """List what differs between two nested values.

    Example:
        >>> differences({"seed": 0, "stage": {"steps": 3}}, {"seed": 0, "stage": {"steps": 4}})
        ['stage.steps: 3 there, 4 here']
    """
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        pairs = [(key, there.get(key), here.get(key)) for key in keys]
        return [line for key, a, b in pairs for line in differences(a, b, f"{path}.{key}" if path else key)]
    return [] if there == here else [f"{path}: {there} there, {here} here"]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is seen whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, path)


@contextmanager
def held(lock: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock file, if no other process does; one that is killed lets it go.

    Beside it lies who holds it (`holder`): on storage that machines share, a lost one may hold it for ever.

    Args:
        lock: the file; made if it is not there, and left there.
        patience: seconds to wait for another process. A killed one's data workers hold its locks for some seconds more.

    Returns:
        whether it is held.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), ".lock")
        >>> with held(file) as mine, held(file) as also_mine:
        ...     print(mine, also_mine)
        True False
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    by = _holder_of(lock)
    try:
        mine = {"machine": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%F %T}"}
        write_text(by, json.dumps(mine))
        yield True
    finally:
        by.unlink(missing_ok=True)
        file_lock.release()


def holder(lock: Path) -> str:
    """Say in words which process holds a lock file that `held` could not get.

    Example:
        >>> holder(Path("absent"))
        'which one is not on record'
    """
    try:
        by = json.loads(_holder_of(lock).read_text(encoding="utf-8"))
        return f"process {by['process']} on machine {by['machine']}, since {by['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which one is not on record"


def _holder_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.holder")


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what a full disk would end, with all of it lost.

    Args:
        folder: where it will be written.
        needed: bytes.

    Raises:
        ValueError: so many are not free; says how many are.

    Example:
        >>> require_space(Path(), 1)
    """
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:  # some file systems tell nothing
        raise ValueError(
            f"{folder}: what will be saved takes {needed / 1e9:.1f} GB, and {disk.free / 1e9:.1f} GB are free. Make "
            "room, choose another output folder, or keep fewer checkpoints (keep_checkpoints)"
        )


def put_in_place(folder: Path, place: Path) -> None:
    """Rename a folder with all that is in it on disk, so that it is whole also after a loss of power.

    A system may write names before contents, and what the folder stands for is deleted next.
    """
    for path in (*folder.rglob("*"), folder):
        _flush(path)
    os.replace(folder, place)
    _flush(place.parent)


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Say which checkpoint cannot be read, and what to do.

    Raises:
        ValueError: in place of what reading raised. Nothing but reading belongs into the block: who follows advice to
            delete a checkpoint must not do so because a GPU was full.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"{checkpoint} cannot be read: {error or type(error).__name__}. Is it damaged? Delete it: the same command "
            "then goes on from the checkpoint before, or starts the stage again where there is none"
        ) from error


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system flushes folders
            raise
    finally:
        os.close(descriptor)
