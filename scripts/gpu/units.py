"""Checks and rates one after another in a process of their own: one that fails, hangs or spoils its context costs itself alone."""

import json
import multiprocessing as mp
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Unit = tuple[str, ...]
CORE = ("maml", "reptile", "protonet", "maml_plus_plus", "relation_net", "matching_net", "fomaml", "r2d2")
"""The algorithms that are checked first."""


def units(device: str, only: Sequence[str], quick: bool) -> list[Unit]:
    """The names of the checks with their arguments, in the order of their worth. only: algorithms; none: all, but on a quick run three."""
    from gpu.jobs import algorithms
    from gpu.rates import SHAPES

    names = only or (CORE[:3] if quick else [*CORE, *(name for name in algorithms() if name not in CORE)])
    core = [name for name in names if name in CORE] or names
    precisions = ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16")
    shapes = [shape for shape in SHAPES if any(shape.startswith(f"{name}_5w") for name in names)][: 1 if quick else None]
    parts = [("fp32", "step")] if quick else [("fp32", "step"), ("bf16", "step"), ("fp32", "update"), ("fp32", "drawing")]
    return [
        ("environment",),
        *(("norm", dtype) for dtype in ("float64", "float32")),
        *(("gradient", name) for name in names),
        *(("steps", name, precision) for name in names for precision in precisions),
        ("residency",),
        *(("resume", name, precision) for name in core[: 1 if quick else 4] for precision in precisions[: 1 if quick else 3]),
        *(("memory", name) for name in core[: 1 if quick else 3]),
        *(("rate", shape, *part) for shape in shapes for part in parts),
    ]


def serve(ours: Connection, device: str, quick: bool) -> None:
    """The process that computes: takes a unit, answers with its figures."""
    import torch

    from gpu import checks, rates

    torch.set_num_threads(1)  # the host of a card has little to do, and a rehearsal shares its cores with others
    while (unit := ours.recv()) is not None:
        name, *rest = unit
        begin = time.perf_counter()
        try:
            check = partial(rates.rate, seconds=0.02 if quick else 0.4) if name == "rate" else getattr(checks, name)
            found = check(device, *rest)
        except Exception as error:
            where = [line.strip() for line in traceback.format_exc().splitlines() if line.strip().startswith("File")]
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:300], "at": where[-3:]}
        ours.send({**found, "seconds": round(time.perf_counter() - begin, 2)})


def run(todo: Sequence[Unit], device: str, quick: bool, until: float, most: float) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """The figures of every unit, until the clock shows `until` (of time.monotonic). most: seconds that a unit may take."""
    process = None
    try:
        for unit in todo:
            if time.monotonic() >= until:
                return
            if process is None:
                theirs, ours = mp.Pipe()
                process = mp.get_context("spawn").Process(target=serve, args=(theirs, device, quick), daemon=True)
                process.start()
                theirs.close()
            found = asked(ours, unit, min(until, time.monotonic() + most))
            yield unit, found
            if "error" in found:  # what it has spoilt may reach the next unit
                end(process, ours)
                process = None
    finally:
        if process is not None:
            end(process, ours)


def end(process: Any, ours: Connection) -> None:
    """Lets the process end by itself, if it still listens."""
    with suppress(OSError):
        ours.send(None)
    process.join(3)
    process.kill()
    process.join()


def asked(ours: Connection, unit: Unit, until: float) -> dict[str, Any]:
    try:
        ours.send(unit)
        if ours.poll(max(0.0, until - time.monotonic())):
            return ours.recv()
        return {"ok": False, "error": "it took too long"}
    except (EOFError, OSError):
        return {"ok": False, "error": "its process died"}


class Report:
    """`report.json` in a folder, written anew with every unit, so that a cut costs what comes after it alone."""

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.device, self.results = folder / "report.json", device, []
        self.begin = time.monotonic()

    def add(self, unit: Unit, found: dict[str, Any]) -> None:
        self.results.append({"unit": " ".join(unit), **found})
        seconds = round(time.monotonic() - self.begin, 1)
        self.path.write_text(json.dumps({"device": self.device, "seconds": seconds, "results": self.results}, indent=1) + "\n")
        mark = {True: "ok ", False: "BAD", None: "   "}[found.get("ok")]
        figures = [f"{key} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in found.items() if key != "ok"]
        print(mark, f"{' '.join(unit):36}", "  ".join(figures), flush=True)

    @property
    def bad(self) -> list[str]:
        return [entry["unit"] for entry in self.results if entry.get("ok") is False]
