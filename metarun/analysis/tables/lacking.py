"""What a table lacks, and the command that makes it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metarun.analysis.tables.matching import Filling
from metarun.analysis.tables.protocol import words_of_test
from metarun.analysis.tables.table import Cell, Missing
from metarun.config.schema import path_text
from metarun.runs.catalogue import Found
from metarun.runs.status import FAILED, RUNNING


class Lacking:
    """Gathers what is missing, each thing once, with all the cells that wait for it."""

    def __init__(self, root: Path, seeds: Sequence[int] | None, roots: Mapping[str, str], config_dir: str | None) -> None:
        self.root, self.seeds, self.roots = root, seeds, roots
        self.flags = ("--config-dir", config_dir) if config_dir else ()
        self.missing: dict[tuple[str, tuple[str, ...]], Missing] = {}

    def found(self) -> list[Missing]:
        return list(self.missing.values())

    def look_at(self, cell: Cell, filling: Filling) -> None:
        """Notes what this cell lacks: trainings as it asks, ends of its runs, and tests of those that are taken."""
        for one in (*self.trainings(filling), *self.tests(filling)):
            before = self.missing.setdefault((one.kind, one.words or (one.what,)), one)
            self.missing[one.kind, one.words or (one.what,)] = replace(before, cells=(*before.cells, (cell.row, cell.column)))

    def trainings(self, filling: Filling) -> Iterator[Missing]:
        done = {run.config["seed"] for run in filling.chosen} if filling.exact else set()
        wanted = self.seeds if self.seeds is not None else () if done else (0,)
        begun = {run.config["seed"]: run for run, exact in filling.unfinished if exact}
        for seed in sorted({*wanted, *begun} - done):
            yield self.training(filling, seed, begun.get(seed))
        for run, exact in filling.unfinished:
            if not exact:
                yield self.unfinished(run, "failed" if run.state == FAILED else "cut off")

    def training(self, filling: Filling, seed: int, begun: Found | None) -> Missing:
        """A training as the cell asks; the run that was begun of it, if one was, is gone on with."""
        if begun and begun.state != FAILED and (begun.state == RUNNING or not is_of_sweep(begun, self.root)):
            return self.unfinished(begun, "resume")
        words, rootless = (*filling.training.words, f"seed={seed}", *self.root_of(filling)), self.is_rootless(filling)
        unknown = ["dataset.root=DIR"] if rootless else []
        line = ["metarun", "train", *self.flags, "--multirun", f"hydra.sweep.dir={path_text(self.root)}", *words, *unknown]
        what = f"training, seed {seed}"
        if begun:
            error = begun.status.get("error")
            what += f", {begun.state} ({begun.folder})" + f": {error}" * bool(error)
        needs = (f"roots.{filling.training.choices['dataset']}",) if rootless else ()
        return Missing("training", (), what, shlex.join(line), words, needs)

    def unfinished(self, run: Found, kind: str) -> Missing:
        """A run without an end, of this kind unless it is running."""
        at = f" at step {run.status['step']} of {run.config['steps']}" if "step" in run.status else ""
        what = f"{run.folder} {'is running' if run.state == RUNNING else run.state}{at}"
        if run.state == RUNNING:
            return Missing("running", (), what, shlex.join(["metarun", "runs", str(run.folder)]))
        words = (f"resume={path_text(run.folder)}",)
        return Missing(kind, (), what, shlex.join(["metarun", "train", *words]), words)

    def tests(self, filling: Filling) -> Iterator[Missing]:
        for run, record in zip(filling.chosen, filling.records, strict=True):
            if record is None:
                words = (f"run={path_text(run.folder)}", *words_of_test(run, filling.training, filling.test), *self.root_of(filling))
                yield Missing("test", (), f"test of {run.folder}", shlex.join(["metarun", "evaluate", *words]), words)

    def root_of(self, filling: Filling) -> tuple[str, ...]:
        """The override that says where the cell's data are, if that was given."""
        folder = self.roots.get(filling.training.choices["dataset"])
        return (f"dataset.root={path_text(folder)}",) if folder and "root" in filling.training.values["dataset"] else ()

    def is_rootless(self, filling: Filling) -> bool:
        """Whether nobody said where the cell's data are."""
        return not self.root_of(filling) and filling.training.values["dataset"].get("root", "") is None


def is_of_sweep(run: Found, root: Path) -> bool:
    """Whether a sweep below `root` finds the run again, by its folder's name."""
    from metarun.sweeps.sweep import run_name  # imports torch

    return run.folder.parent == root and run.folder.name == run_name(run.config, run.choices)
