"""How fast a training step and the loading of episodes are, beside few-shot learning as it is commonly written (scripts/plain.py).

    python scripts/benchmark.py [--precision bf16] [--repeats 9] [--threads 2]

Both sides have a process of their own, since the allocator is tuned for a whole process, and are timed in turn: the ratio of
two medians of one run means something even where the machine is noisy, the times themselves do not.
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from metarun.assembly import Split

CASES = {
    "load: 32 tasks, 5-way 1-shot, 1 query": (5, 1, 1, 32),
    "load: 1 task, 60-way 1-shot, 5 queries": (60, 1, 5, 1),
    "step: ProtoNet Conv4-64, 60-way 1-shot, 5 queries": (60, 1, 5, 1),
    "step: MAML second order, K=1, 32 tasks 5-way 1-shot, 1 query": (5, 1, 1, 32),
}
"""(ways, shots, queries, tasks)"""


def ours(precision: str, threads: int) -> dict[str, Callable[[], object]]:
    import torch

    from metarun.algorithms.maml import MAML
    from metarun.algorithms.protonet import ProtoNet
    from metarun.assembly import Split
    from metarun.backbones.conv4 import Conv4
    from metarun.data.episodes import Episodes, Pixels
    from metarun.data.glyphs import Glyphs
    from metarun.device import Device

    device = Device("cpu", precision=precision, threads=threads)  # type: ignore[arg-type]
    device.set_up()
    table = Glyphs().load("train")

    def step(learner: torch.nn.Module, split: Split, tasks: int) -> Callable[[], object]:
        optimizer, first = torch.optim.Adam(learner.parameters(), lr=1e-3, fused=True), iter(range(0, 10**9, tasks))

        def run() -> None:
            optimizer.zero_grad()
            with device.autocast():
                loss, _ = learner.meta_loss(split.tasks(next(first), tasks))  # type: ignore[operator]
            loss.backward()
            optimizer.step()

        return run

    runs: dict[str, Callable[[], object]] = {}
    for name, (ways, shots, queries, tasks) in CASES.items():
        split = Split(Episodes(table, ways, shots, queries, 0, "train"), Pixels(table, device))
        if "ProtoNet" in name:
            runs[name] = step(ProtoNet(Conv4(1, 28)), split, tasks)
        elif "MAML" in name:
            runs[name] = step(MAML(Conv4(1, 28, downsample="stride", features="mean"), ways), split, tasks)
        else:
            runs[name] = loading(split, tasks)
    return runs


def loading(split: "Split", tasks: int) -> Callable[[], object]:
    first = iter(range(0, 10**9, tasks))
    return lambda: split.tasks(next(first), tasks)


def plain(root: Path, threads: int) -> dict[str, Callable[[], object]]:
    import torch
    from plain import MAML, Loader, ProtoNet

    torch.set_num_threads(threads)
    runs: dict[str, Callable[[], object]] = {}
    for name, (ways, shots, queries, tasks) in CASES.items():
        load = Loader(root, ways, shots, queries)
        if "ProtoNet" in name:
            runs[name] = ProtoNet(load)
        elif "MAML" in name:
            runs[name] = MAML(load, tasks)
        else:
            runs[name] = lambda load=load, tasks=tasks: [load() for _ in range(tasks)]  # type: ignore[misc]
    return runs


def serve(side: str, root: Path, precision: str, threads: int, pipe: Connection) -> None:
    """Times a case whenever its name comes through the pipe."""
    runs = ours(precision, threads) if side == "metarun" else plain(root, threads)
    while (name := pipe.recv()) is not None:
        start = time.perf_counter()
        runs[name]()
        pipe.send(time.perf_counter() - start)


def write_images(root: Path) -> None:
    """The glyphs as image files in class folders, as the plain side wants them."""
    from metarun.data.glyphs import Glyphs

    table = Glyphs().load("train")
    for name, start, count in zip(table.names, table.starts, table.counts, strict=True):
        folder = root / name.replace("/", "_")
        folder.mkdir()
        for i in range(count):
            Image.fromarray(table.images[start + i, :, :, 0]).save(folder / f"{i:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times metarun beside few-shot learning as it is commonly written.")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    context, sides = mp.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for side in ("metarun", "plain"):
            here, there = context.Pipe()
            context.Process(target=serve, args=(side, Path(folder), options.precision, options.threads, there), daemon=True).start()
            sides[side] = here
        print(f"{'':62}{'metarun ms':>12}{'plain ms':>12}{'ratio':>8}   ({options.precision}, {options.threads} threads)")
        for name in CASES:
            times: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(options.repeats + 2):
                for side, pipe in sides.items():
                    pipe.send(name)
                    times[side].append(1000 * pipe.recv())
            fast, slow = (statistics.median(times[side][2:]) for side in sides)
            print(f"{name:62}{fast:12.2f}{slow:12.2f}{slow / fast:8.2f}", flush=True)
        for pipe in sides.values():
            pipe.send(None)


if __name__ == "__main__":
    main()
