"""What cells share and none of them makes: pictures, and decoders trained from scratch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llavit.compare.cells import Cell
from llavit.compare.grid import Corpus, Grid
from llavit.progress import progress_bar
from llavit.train.schema import to_plain


class Material:
    """The shared folders of an experiment.

    Args:
        grid: the experiment.
        output: its folder.

    Attributes:
        grid: with `$data` in the paths of its questions filled in.
        data: folder of the corpus; None where the grid builds none.
    """

    def __init__(self, grid: Grid, output: Path):
        self.output = output
        self.data = None if grid.corpus is None else output / "data"
        spec = grid.evaluation
        if self.data is not None:
            spec = replace(spec, test=self._filled(spec.test), val=self._filled(spec.val))
        self.grid = replace(grid, evaluation=spec)

    def _filled(self, path: str) -> str:
        return path.replace("$data", str(self.data))

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Build what is not there: one process does, others wait."""
        from filelock import FileLock

        self.output.mkdir(parents=True, exist_ok=True)
        with FileLock(self.output / ".material.lock"):
            if self.grid.corpus is not None:
                assert self.data is not None
                _build(self.grid.corpus, self.data)
            for llm in dict.fromkeys(cell.llm for cell in cells):
                if self.grid.llms[llm].scratch is not None and not self.ready(llm):
                    self._train_llm(llm)

    @property
    def drawn(self) -> bool:
        """Whether the corpus is there, if the grid builds one."""
        return self.data is None or _is_whole(self.data)

    def ready(self, llm: str) -> bool:
        """Say whether all that cells with an LLM need is there."""
        if not self.drawn:
            return False
        folder = self.llm(llm)
        return folder is None or folder.is_dir()

    def llm(self, name: str) -> Path | None:
        """Give the folder of a decoder that is trained from scratch; None for any other LLM."""
        if self.grid.llms[name].scratch is None:
            return None
        return self.output / "llms" / f"{name}-{self.llm_digest(name)}"

    def llm_digest(self, name: str) -> str | None:
        """Hash what a decoder from scratch is made of: its settings and the text."""
        scratch = self.grid.llms[name].scratch
        if scratch is None:
            return None
        text = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._texts()
            if path.is_file()
        }
        parts: dict[str, Any] = {"scratch": to_plain(scratch), "text": text}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def _texts(self) -> list[Path]:
        if self.data is None:
            raise ValueError(
                "scratch: an LLM from scratch learns from the grid's corpus; expected corpus, got none"
            )
        return [self.data / "pretrain.json", self.data / "instruct.json"]

    def _train_llm(self, name: str) -> None:
        from llavit.compare.small_llm import train_small_llm

        scratch, folder = self.grid.llms[name].scratch, self.llm(name)
        assert scratch is not None and folder is not None
        with progress_bar(f"{name}: training from scratch") as show:
            train_small_llm(self._texts(), folder, scratch, progress=show)


def _is_whole(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and bool(json.loads(manifest.read_text(encoding="utf-8")).get("complete"))


def _build(spec: Corpus, folder: Path) -> None:
    counts = {"pretrain": spec.pretrain, "instruct": spec.instruct, "val": spec.val, "seed": spec.seed}
    with progress_bar("drawing") as show:
        if spec.full:
            from llavit.starter.full import build_full_corpus

            build_full_corpus(folder, edition=spec.edition, progress=show, **counts)
        else:
            from llavit.starter.corpus import build_corpus

            build_corpus(
                folder,
                test=spec.test,
                kinds=spec.kinds or None,
                vocabulary=spec.vocabulary,
                brief=spec.brief,
                progress=show,
                **counts,
            )
