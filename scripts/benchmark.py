"""How fast training steps, tests and the loading of episodes are, beside few-shot learning as it is commonly written (scripts/plain.py).

    python scripts/benchmark.py [--precision bf16] [--repeats 9] [--threads 2] [--only MAML]

Every case runs in two processes, one a side, since the allocator is tuned for a whole process; the sides are timed in turn. The ratio
of two medians of one run means something even where the machine is noisy, the times themselves do not.

The floor of a gradient-based method is the time that the backbone alone would take for the image passes that the method needs: at the
rate at which the task-batched backbone of this package gets through the queries of all tasks, forward and backward (three passes an
image), an inner step costs three passes a support image, its share of the meta-gradient six more, and the queries three (a test: one).
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from metarun.assembly import Split
    from metarun.device import Device


@dataclass(frozen=True)
class Case:
    """kind: what is timed; steps: of the inner loop."""

    kind: str
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int = 0
    first_order: bool = False
    strides: bool = False

    @property
    def passes(self) -> int:
        """Image passes of all tasks: 1 forward, 2 backward, 6 for second derivatives."""
        support, query = self.tasks * self.ways * self.shots, self.tasks * self.ways * self.queries
        if self.kind == "test":
            return 3 * self.steps * support + query
        return (3 if self.first_order else 9) * self.steps * support + 3 * query


CASES = {
    "load: 32 tasks, 5-way 1-shot, 1 query": Case("load", 5, 1, 1, 32),
    "load: 1 task, 60-way 1-shot, 5 queries": Case("load", 60, 1, 5, 1),
    "step: ProtoNet, 60-way 1-shot, 5 queries": Case("protonet", 60, 1, 5, 1),
    "step: FOMAML, K=1": Case("maml", 5, 1, 15, 16, 1, first_order=True),
    "step: FOMAML, K=5": Case("maml", 5, 1, 15, 16, 5, first_order=True),
    "step: MAML, K=1": Case("maml", 5, 1, 15, 16, 1),
    "step: MAML, K=5": Case("maml", 5, 1, 15, 16, 5),
    "test: MAML, K=10": Case("test", 5, 1, 15, 16, 10),
    "step: MAML, K=1, strides, 32 tasks, 1 query": Case("maml", 5, 1, 1, 32, 1, strides=True),
}
"""Where nothing else is said: Conv4-64 with pooling, 16 tasks of 5-way 1-shot with 15 queries a class."""

Run = Callable[[], object]


def ours(case: Case, precision: str, threads: int) -> tuple[Run, Run | None]:
    """The case, and the backbone alone on its queries, forward and backward, where that is the case's floor."""
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
    split, first = (
        Split(Episodes(table, case.ways, case.shots, case.queries, 0, "train"), Pixels(table, device)),
        iter(range(0, 10**9, case.tasks)),
    )
    if case.kind == "load":
        return lambda: split.tasks(next(first), case.tasks), None
    net = Conv4(1, 28, downsample="stride", features="mean") if case.strides else Conv4(1, 28)
    if case.kind == "protonet":
        return training(ProtoNet(net), split, first, case, device), None
    maml = MAML(net, case.ways, 0.1, max(case.steps, 1), first_order=case.first_order)
    floor = backbone_alone(net, split, case, device)
    if case.kind == "maml":
        return training(maml, split, first, case, device), floor
    maml.eval()

    @torch.no_grad()
    def test() -> None:
        episode = split.tasks(next(first), case.tasks)
        with device.autocast():
            maml.adapt(episode.support, "query")(episode.query.x).argmax(-1)

    return test, floor


def training(learner, split: "Split", first, case: Case, device: "Device") -> Run:  # type: ignore[no-untyped-def]
    import torch

    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast():
            loss, _ = learner.meta_loss(split.tasks(next(first), case.tasks))
        loss.backward()
        optimizer.step()

    return step


def backbone_alone(net, split: "Split", case: Case, device: "Device") -> Run:  # type: ignore[no-untyped-def]
    import torch
    from torch.func import functional_call

    from metarun.batch_statistics import normalise_by

    images = split.tasks(0, case.tasks).query.x
    weights = {name: value.detach().expand(case.tasks, *value.shape).clone().requires_grad_() for name, value in net.named_parameters()}

    def run() -> None:
        with device.autocast(), normalise_by(net, "batch"):
            features = functional_call(net, weights, (images,))
        torch.autograd.grad(features.float().sum(), list(weights.values()))

    return run


def plain(case: Case, root: Path, threads: int) -> Run:
    import torch
    from plain import MAML, Loader, ProtoNet

    torch.set_num_threads(threads)
    load = Loader(root, case.ways, case.shots, case.queries)
    if case.kind == "load":
        return lambda: [load() for _ in range(case.tasks)]
    if case.kind == "protonet":
        return ProtoNet(load)
    return MAML(load, case.tasks, case.strides, case.steps, case.first_order, case.kind == "test")


def serve(side: str, case: Case, root: Path, precision: str, threads: int, pipe: Connection) -> None:
    """Times the case, or its floor, in seconds whenever it is asked; last it tells the peak memory in MB over that of an idle process."""
    from metarun.device import Device

    process = Device("cpu")
    run, floor = ours(case, precision, threads) if side == "metarun" else (plain(case, root, threads), None)
    before = process.used_memory()
    while (what := pipe.recv()) in ("case", "floor"):
        timed = run if what == "case" else floor
        start = time.perf_counter()
        if timed is not None:
            timed()
        pipe.send(time.perf_counter() - start)
        if what == "case":
            peak = process.peak_memory()  # before the floor was ever run
    pipe.send((peak - before) / 2**20)


def measure(case: Case, root: Path, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of both sides and of the floor, and peak memory of both sides in MB."""
    context, pipes, times = mp.get_context("spawn"), {}, {"metarun": [], "plain": [], "floor": []}  # type: ignore[var-annotated]
    for side in ("metarun", "plain"):
        pipes[side], there = context.Pipe()
        context.Process(target=serve, args=(side, case, root, options.precision, options.threads, there), daemon=True).start()
    memory = {}
    for what in ("case", "floor"):
        for _ in range(options.repeats + 2):
            for side in ("metarun", "plain") if what == "case" else ("metarun",):
                pipes[side].send(what)
                times[side if what == "case" else "floor"].append(pipes[side].recv())
    for side, pipe in pipes.items():
        pipe.send("end")
        memory[side] = pipe.recv()
    return {name: statistics.median(values[2:]) for name, values in times.items()}, memory


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
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    options = parser.parse_args()
    print(f"{options.precision}, {options.threads} threads; plain is fp32")
    print(f"{'':46}{'tasks/s':>9}{'plain':>9}{'ratio':>7}{'of floor':>10}{'peak MB':>9}{'plain':>7}")
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for name, case in CASES.items():
            if options.only not in name:
                continue
            seconds, memory = measure(case, Path(folder), options)
            alone = seconds["floor"] / (3 * case.tasks * case.ways * case.queries) * case.passes
            share = f"{alone / seconds['metarun']:.0%}" if case.kind in ("maml", "test") else ""
            print(
                f"{name:46}{case.tasks / seconds['metarun']:9.1f}{case.tasks / seconds['plain']:9.1f}"
                f"{seconds['plain'] / seconds['metarun']:7.1f}{share:>10}{memory['metarun']:9.0f}{memory['plain']:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
