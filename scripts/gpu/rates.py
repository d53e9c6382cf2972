"""Milliseconds a step, in the shapes of the recipes on made-up characters: the time does not depend on what is drawn."""

import time
from collections.abc import Callable

from gpu.checks import Figures
from gpu.jobs import made

OMNIGLOT = ("dataset=glyphs", "dataset.rotations.train=per_class", "val_every=0", "protocol.selection=last", "test=false")
MAML = ("backbone=conv4_maml_omniglot", "task.queries=1")
SHAPES = {
    "maml_5w1s": ("algorithm=maml", "algorithm.inner_steps=1", *MAML, "tasks_per_step=32"),
    "maml_5w1s_5_steps": ("algorithm=maml", "algorithm.inner_steps=5", *MAML, "tasks_per_step=32"),
    "maml_20w1s_5_steps": ("algorithm=maml", "algorithm.inner_steps=5", *MAML, "task.ways=20", "tasks_per_step=16"),
    "fomaml_5w1s": ("algorithm=fomaml", "algorithm.inner_steps=1", *MAML, "tasks_per_step=32"),
    "maml_plus_plus_5w1s": ("algorithm=maml_plus_plus", "backbone=conv4_maml_plus_plus", "task.queries=1", "tasks_per_step=8"),
    "protonet_5w1s": ("algorithm=protonet", "task.queries=15", "tasks_per_step=4"),
    "r2d2_5w1s": ("algorithm=r2d2", "task.queries=15", "tasks_per_step=4"),
}


def rate(device: str, shape: str, precision: str, part: str, seconds: float) -> Figures:
    """Median and range of five rounds of about `seconds` each.

    part: the whole `step`, its `update` of tasks that are there, or their `drawing`.
    """
    job = made([*SHAPES[shape], *OMNIGLOT, f"device={device}", f"device.precision={precision}"])
    trainer = job.trainer
    tasks = job.tasks(trainer.tasks_per_step)
    once: Callable[[], object] = {
        "step": trainer.advance,
        "update": lambda: trainer.update(tasks, 0),
        "drawing": lambda: job.tasks(trainer.tasks_per_step),
    }[part]

    def timed(count: int) -> float:
        job.device.synchronise()
        begin = time.perf_counter()
        for _ in range(count):
            once()
        job.device.synchronise()
        return (time.perf_counter() - begin) / count * 1e3

    timed(2)  # kernels are chosen and memory is taken
    count = max(1, min(200, int(1e3 * seconds / timed(1))))
    rounds = sorted(timed(count) for _ in range(5))
    return {"ms": rounds[2], "least": rounds[0], "most": rounds[4], "tasks_per_second": 1e3 * trainer.tasks_per_step / rounds[2]}
