"""How fast training steps, tests and the loading of episodes are, beside few-shot learning as it is commonly written (scripts/plain.py)
and, where it has the method and is installed (`pip install "metarun[benchmark]"`), beside EasyFSL (scripts/rivals.py).

    python scripts/benchmark.py [--precision bf16] [--repeats 9] [--threads 2] [--only MAML]

Every case runs in one process a side, since the allocator is tuned for a whole process; the sides are timed in turn. The ratio of two
medians of one run means something even where the machine is noisy, the times themselves do not. All sides read the same image files:
glyphs of 28 pixels, 20 of each of 300 classes, and coloured ones of 84, 600 of each of 20, as many as miniImageNet tests on. They are
generated here. metarun's table of them is made once per data set, before the clock runs. A test of many episodes is timed in full for
metarun; the others do the first 50 of them each time, and the time is scaled up.

The floor of a gradient-based method is the time that the backbone alone would take for the image passes that the method needs: at the
rate at which the task-batched backbone of this package gets through the queries of all tasks, forward and backward (three passes an
image), an inner step costs three passes a support image, its share of the meta-gradient six more, and the queries three (a test: one).
"""

import argparse
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rivals
from PIL import Image

if TYPE_CHECKING:
    from metarun.classification.sources import EpisodeSource
    from metarun.nn.device import Device


@dataclass(frozen=True)
class Case:
    """kind: what is timed; steps: of the inner loop; part: of the tasks, what the other sides do; batch: images of a supervised step."""

    kind: str
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int = 0
    first_order: bool = False
    strides: bool = False
    size: int = 28
    net: str = "conv4"
    part: int = 0
    batch: int = 0

    @property
    def channels(self) -> int:
        return 1 if self.size == 28 else 3

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
    "step: ProtoNet, 84 px, 20-way 5-shot": Case("protonet", 20, 5, 15, 1, size=84),
    "step: ProtoNet, 84 px, 5-way 5-shot": Case("protonet", 5, 5, 15, 1, size=84),
    "step: ProtoNet, ResNet-12, 5-way 5-shot": Case("protonet", 5, 5, 15, 1, size=84, net="resnet12"),
    "step: 64 labelled images, ResNet-12": Case("supervised", 5, 1, 1, 1, size=84, net="resnet12", batch=64),
    "test: ProtoNet, 10,000 tasks": Case("evaluate", 5, 1, 15, 10_000, part=50),
    "test: ProtoNet, 10,000 tasks of 84 px": Case("evaluate", 5, 1, 15, 10_000, size=84, part=50),
    "step: FOMAML, K=1": Case("maml", 5, 1, 15, 16, 1, first_order=True),
    "step: FOMAML, K=5": Case("maml", 5, 1, 15, 16, 5, first_order=True),
    "step: MAML, K=1": Case("maml", 5, 1, 15, 16, 1),
    "step: MAML, K=5": Case("maml", 5, 1, 15, 16, 5),
    "test: MAML, K=10": Case("test", 5, 1, 15, 16, 10),
    "step: MAML, K=1, strides, 32 tasks, 1 query": Case("maml", 5, 1, 1, 32, 1, strides=True),
}
"""Where nothing else is said: Conv4-64 with pooling, 16 tasks of 5-way 1-shot with 15 queries a class.

ProtoNet is tested by running statistics.
"""

Run = Callable[[], object]


def ours(case: Case, root: Path, precision: str, threads: int) -> tuple[Run, Run | None]:
    """The case, and the backbone alone on its queries, forward and backward, where that is the case's floor."""
    import torch

    from metarun.algorithms.maml import MAML
    from metarun.algorithms.objectives import CrossEntropy
    from metarun.algorithms.protonet import ProtoNet
    from metarun.algorithms.supervised import SupervisedLearner
    from metarun.backbones.conv4 import Conv4
    from metarun.backbones.resnet12 import ResNet12
    from metarun.classification.evaluation import score
    from metarun.classification.sources import EpisodeSource, StagedSource
    from metarun.data.batches import Batches
    from metarun.data.episodes import Episodes, Pixels
    from metarun.data.folder import Folder
    from metarun.kinds import TaskSpec
    from metarun.nn.device import Device
    from metarun.training.learners import open_run

    device = Device("cpu", precision=precision, threads=threads)  # type: ignore[arg-type]
    device.set_up()
    table = Folder(root=root, image_size=case.size, in_channels=case.channels, split_fractions=(1, 0, 0)).load("train")
    split = EpisodeSource(Episodes(table, case.ways, case.shots, case.queries, 0, "train"), Pixels(table, device), "train")
    batches = Batches(table, case.batch, 0, "train")
    spec = TaskSpec(CrossEntropy(case.ways), {"classes": batches.classes}, open_run)
    first = iter(range(0, 10**9, case.tasks))
    if case.kind == "load":
        return lambda: split.draw(next(first), case.tasks), None
    if case.net == "resnet12":
        net = ResNet12(case.channels, case.size, features="mean", drop=0.0)
    else:
        shape = ("stride", "mean") if case.strides else ("pool", "flatten")
        net = Conv4(case.channels, case.size, downsample=shape[0], features=shape[1])  # type: ignore[arg-type]
    if case.kind == "supervised":
        return training(SupervisedLearner(net, spec), StagedSource(batches, None, split.pixels), first, case, device), None
    if case.kind == "protonet":
        return training(ProtoNet(net, spec), split, first, case, device), None
    if case.kind == "evaluate":
        learner = ProtoNet(net, spec)
        return lambda: score(learner, split, 0, case.tasks, "running", device), None
    maml = MAML(net, spec, 0.1, max(case.steps, 1), first_order=case.first_order)
    floor = backbone_alone(net, split, case, device)
    if case.kind == "maml":
        return training(maml, split, first, case, device), floor
    maml.eval()

    @torch.no_grad()
    def test() -> None:
        episode = split.draw(next(first), case.tasks)
        with device.autocast():
            maml.adapt(episode.support, "query")(episode.query.x).argmax(-1)

    return test, floor


def training(learner, split: "EpisodeSource", first, case: Case, device: "Device") -> Run:  # type: ignore[no-untyped-def]
    import torch

    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast():
            losses, _ = learner.meta_loss(split.draw(next(first), case.tasks))
        losses.mean().backward()
        optimizer.step()

    return step


def backbone_alone(net, split: "EpisodeSource", case: Case, device: "Device") -> Run:  # type: ignore[no-untyped-def]
    import torch
    from torch.func import functional_call

    from metarun.nn.batch_norm import normalise_by

    images = split.draw(0, case.tasks).query.x
    weights = {name: value.detach().expand(case.tasks, *value.shape).clone().requires_grad_() for name, value in net.named_parameters()}

    def run() -> None:
        with device.autocast(), normalise_by(net, "batch"):
            features = functional_call(net, weights, (images,))
        torch.autograd.grad(features.float().sum(), list(weights.values()))

    return run


def serve(side: str, case: Case, root: Path, precision: str, threads: int, pipe: Connection) -> None:
    """Times the case, or its floor, in seconds whenever it is asked; last it tells the peak memory in MB over that of an idle process."""
    from metarun.nn.device import Device

    process = Device("cpu")
    run, floor = ours(case, root, precision, threads) if side == "metarun" else (rivals.SIDES[side](case, root, threads), None)
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


def measure(case: Case, sides: Sequence[str], root: Path, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of the sides and of the floor, and peak memory of the sides in MB."""
    context, pipes, times = mp.get_context("spawn"), {}, {side: [] for side in (*sides, "floor")}  # type: ignore[var-annotated]
    for side in sides:
        pipes[side], there = context.Pipe()
        context.Process(target=serve, args=(side, case, root, options.precision, options.threads, there), daemon=True).start()
    memory = {}
    for what in ("case", "floor"):
        for _ in range(options.repeats + 2):
            for side in sides if what == "case" else ("metarun",):
                pipes[side].send(what)
                part = case.part if case.part and side != "metarun" else case.tasks
                times[side if what == "case" else "floor"].append(pipes[side].recv() * case.tasks / part)
    for side, pipe in pipes.items():
        pipe.send("end")
        memory[side] = pipe.recv()
    return {name: statistics.median(values[2:]) for name, values in times.items()}, memory


def write_images(root: Path) -> None:
    """The glyphs as image files in class folders, small and grey in `28`, large and coloured in `84`."""
    from metarun.data.glyphs import Glyphs

    table, colours = Glyphs().load("train"), np.random.default_rng(0)
    for name, start, count in zip(table.names, table.starts, table.counts, strict=True):
        folder = root / "28" / name.replace("/", "_")
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(table.images[start + i, :, :, 0]).save(folder / f"{i:02d}.png")
    for c in range(20):
        folder = root / "84" / f"{c:02d}"
        folder.mkdir(parents=True)
        for i in range(600):
            ink = Image.fromarray(table.images[table.starts[c] + i % table.counts[c], :, :, 0]).resize((84, 84))
            paper, pen = colours.integers(0, 256, (2, 3))
            share = np.asarray(ink, dtype=np.float32)[..., None] / 255
            Image.fromarray((paper * (1 - share) + pen * share).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)


def line(name: str, case: Case, sides: Sequence[str], seconds: dict[str, float], memory: dict[str, float]) -> str:
    alone = seconds["floor"] / (3 * case.tasks * case.ways * case.queries) * case.passes
    share = f"{alone / seconds['metarun']:.0%}" if case.kind in ("maml", "test") else ""
    rates = [f"{case.tasks / seconds['metarun']:10.1f}"]
    for side in ("plain", "easyfsl"):
        missing = "not installed" if side in rivals.has(case) else ""
        rates.append(f"{case.tasks / seconds[side]:8.1f}{seconds[side] / seconds['metarun']:7.1f}" if side in sides else f"{missing:>15}")
    return f"{name:44}{''.join(rates)}{share:>10}" + "".join(f"{memory.get(side, float('nan')):9.0f}" for side in sides)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times metarun beside few-shot learning as it is commonly written, and EasyFSL.")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    options = parser.parse_args()
    print(
        f"{options.precision}, {options.threads} threads; the others are fp32. Tasks or mini-batches per second, metarun's rate to theirs."
    )
    print(
        f"{'':44}{'metarun':>10}{'plain':>8}{'ratio':>7}{'EasyFSL':>8}{'ratio':>7}{'of floor':>10}{'peak MB: metarun, plain, EasyFSL':>35}"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        os.environ["METARUN_CACHE"] = f"{folder}/cache"  # where metarun's tables of these files go
        for name, case in CASES.items():
            if options.only in name:
                sides = ("metarun", *(side for side in rivals.has(case) if side != "easyfsl" or rivals.installed()))
                print(line(name, case, sides, *measure(case, sides, Path(folder) / str(case.size), options)), flush=True)


if __name__ == "__main__":
    main()
