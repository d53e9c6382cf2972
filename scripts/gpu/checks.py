"""What has to hold on a device: every check answers with its figures, and with `ok`."""

import copy
import io
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from gpu.jobs import calm, distance, flat, made, moved, noisy, small
from metarun.nn.layers import BatchNorm2d, fold, unfold

Figures = dict[str, Any]
NOISE = re.compile(r"conv\d*\.bias$")
"""Biases before a batch norm, whose gradient is 0: what there is of it is rounding."""


def environment(device: str) -> Figures:
    """The card and the versions."""
    found: Figures = {"torch": torch.__version__, "python": platform.python_version(), "device": device}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "memory_mib": card.total_memory >> 20, "capability": f"{card.major}.{card.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "cards": torch.cuda.device_count()}
    return found


def gradient(device: str, name: str) -> Figures:
    """The meta-gradient of a step in float64 and float32 against float64 on the CPU: relative distances of the whole vector."""
    job = made([*small(name), "device=cpu"])
    tasks, found = noisy(job.tasks(4)), {}
    for place, dtype in (("cpu", torch.float64), ("cpu", torch.float32), (device, torch.float64), (device, torch.float32)):
        learner = copy.deepcopy(job.learner).to(place, dtype).train()
        calm(learner)
        learner.begin_step(0)
        learner.meta_loss(moved(tasks, place, dtype))[0].mean().backward()
        named = [(key, value.grad) for key, value in learner.named_parameters() if value.grad is not None]
        found[place, dtype] = flat(grad for key, grad in named if not NOISE.search(key))
    exact, cpu32 = found["cpu", torch.float64], distance(found["cpu", torch.float32], found["cpu", torch.float64])
    wide, narrow = (distance(found[device, dtype], exact) for dtype in (torch.float64, torch.float32))
    ok = bool(exact.norm() > 0) and wide < 1e-8 and narrow < max(1e-3, 5 * cpu32)
    return {"ok": ok, "float64": wide, "float32": narrow, "cpu_float32": cpu32, "norm": float(exact.norm())}


def steps(device: str, name: str, precision: str) -> Figures:
    """Three steps in a precision: finite weights, and on CUDA the third one's waits for the device, with their lines, and its memory."""
    job, found = made([*small(name), f"device={device}", f"device.precision={precision}"]), {}
    job.device.reset_peak_memory()
    job.trainer.advance()
    job.trainer.advance()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        try:
            job.trainer.advance()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    if device == "cuda":
        waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
        found["waits"] = len(waits)
        found["wait_lines"] = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits})
        found["peak_mib"] = job.device.peak_memory() / 2**20
    loss = job.trainer.averages.read()["loss"]
    finite = all(bool(value.isfinite().all()) for value in job.learner.parameters()) and loss == loss
    # fp16 reads the factor of the loss twice a step, to know whether the optimizer has moved.
    return {"ok": finite and (precision == "fp16" or not found.get("waits")), "loss": loss, **found}


def norm(device: str, dtype: str) -> Figures:
    """Channels-last batch norm of 130,000 values a channel: output, gradients and running statistics against float64 on the CPU."""
    torch.manual_seed(0)
    x, weight = 3 + torch.randn(2, 75, 8, 42, 42, dtype=torch.float64), torch.randn(2, 75, 8 * 42 * 42, dtype=torch.float64)

    def values(place: str, kind: torch.dtype) -> torch.Tensor:
        layer = BatchNorm2d(8).to(place, kind)
        images = x.to(place, kind, copy=True).requires_grad_()
        out = unfold(layer(fold(images)), 2)
        (out * weight.to(place, kind)).sum().backward()
        parts = [out, images.grad, layer.running_mean, layer.running_var, *(value.grad for value in layer.parameters())]
        return flat(value / value.detach().norm() for value in parts)

    apart = distance(values(device, getattr(torch, dtype)), values("cpu", torch.float64))
    return {"ok": apart < {"float64": 1e-10, "float32": 1e-4}[dtype], "distance": apart}


def residency(device: str) -> Figures:
    """The images of tasks are the same to the bit, wherever the table is kept."""
    kinds = ("disk", "ram", "device", "auto")
    jobs = [made([*small("protonet"), f"device={device}", f"dataset.residency={kind}"]) for kind in kinds]
    first, *others = [job.tasks(4).query.x for job in jobs]
    return {"ok": first.device.type == device and all(torch.equal(first, other) for other in others)}


def resume(device: str, name: str, precision: str) -> Figures:
    """Four steps, four once more, and two and two through a checkpoint: the same bits each time."""
    options, ends = [*small(name), f"device={device}", f"device.precision={precision}"], []
    for cut in (None, None, 2):
        job = made(options)
        for step in range(4):
            if step == cut:
                buffer = io.BytesIO()
                torch.save(job.trainer.state(), buffer)
                buffer.seek(0)
                job = made(options)
                job.trainer.load(torch.load(buffer, map_location="cpu", weights_only=True))
            job.trainer.advance()
        ends.append(flat(job.learner.parameters()))
    repeatable, resumed = torch.equal(ends[0], ends[1]), torch.equal(ends[0], ends[2])
    return {"ok": repeatable and resumed, "repeatable": repeatable, "resumed": resumed, "distance": distance(ends[2], ends[0])}


def memory(device: str, name: str) -> Figures:
    """With 60 % of the memory that a step takes, the step halves its tasks, for the same gradient.

    Off CUDA the memory of a process has no bound: there the step is told to halve them.
    """
    count = 32 if device == "cuda" else 8
    job = made([*small(name), f"device={device}", f"tasks_per_step={count}", "task.queries=10"])
    tasks, update = noisy(job.tasks(count)), job.trainer.update
    calm(job.learner)
    before = copy.deepcopy(job.learner.state_dict())

    def gradient_of_a_step() -> torch.Tensor:
        job.learner.load_state_dict(before)
        job.learner.begin_step(0)
        update.gradient(tasks, 0)
        found = flat(value.grad for key, value in job.learner.named_parameters() if value.grad is not None and not NOISE.search(key))
        job.learner.zero_grad(set_to_none=True)
        job.device.release_memory()
        return found

    gradient_of_a_step()  # what is made once is there from now on
    job.device.reset_peak_memory()
    least = job.device.used_memory()
    whole, peak = gradient_of_a_step(), job.device.peak_memory()
    if device == "cuda":
        bound = least + 0.6 * (peak - least)
        torch.cuda.set_per_process_memory_fraction(bound / torch.cuda.get_device_properties(0).total_memory)
    else:
        update.tasks_per_chunk = count // 2
    try:
        halved = gradient_of_a_step()
    finally:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    apart, chunk = distance(halved, whole), update.tasks_per_chunk
    return {"ok": chunk is not None and chunk < count and apart < 1e-4, "chunk": chunk, "distance": apart, "peak_mib": peak / 2**20}
