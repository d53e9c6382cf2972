"""By which statistics batch normalisation treats the query images. This choice alone moves a number by points.

`query`        those of the query set itself: all queries are seen at once (transductive)
`running`      the averages of training
`support`      those of the task's support set (torch's own layers keep its unbiased variance, metarun's the batch's own)
`support+one`  each query alone, in one batch with the support set (Reptile's non-transductive test)

and, while training, `track`: those of the query set, which also move the running averages.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

MODES = ("query", "running", "support", "support+one")


@contextmanager
def normalise_by(module: nn.Module, how: Literal["track", "batch", "record", "running"]) -> Iterator[None]:
    """Every batch norm in `module`, torch's own too, uses the `batch`'s statistics or the `running` ones.

    `track` also moves the running averages, `record` replaces them by the batch's. Other layers are left alone.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.training, layer.momentum) for layer in layers]
    for layer in layers:
        layer.training = how != "running"
        layer.momentum = {"batch": 0.0, "record": 1.0}.get(how, layer.momentum)
    try:
        yield
    finally:
        for layer, (training, momentum) in zip(layers, before, strict=True):
            layer.training, layer.momentum = training, momentum


def scratch_buffers(module: nn.Module, tasks: int | None = None) -> dict[str, Tensor]:
    """Copies of the buffers, with a leading task axis if `tasks` is given, so that a forward pass leaves the module as it was."""
    axis = () if tasks is None else (tasks,)
    return {name: buffer.expand((*axis, *buffer.shape)).clone() for name, buffer in module.named_buffers()}


def query_outputs(
    module: nn.Module, weights: Mapping[str, Tensor], support: Tensor, query: Tensor, statistics: str, tasks: int | None = None
) -> Tensor:
    """Outputs (T, n, ·) of `module` for `query` (T, n, C, H, W), normalised by `statistics` (see the module's docstring).

    `weights` replace the module's parameters; `tasks` is their leading task axis, None if they have none.
    """

    def run(x: Tensor, how: Literal["batch", "record", "running"], buffers: Mapping[str, Tensor]) -> Tensor:
        with normalise_by(module, how):
            return functional_call(module, {**weights, **buffers}, (x,))

    if statistics == "track":
        with normalise_by(module, "track"):
            return functional_call(module, dict(weights), (query,))
    if statistics == "running":
        return run(query, "running", {})
    buffers = scratch_buffers(module, tasks)
    if statistics == "query":
        return run(query, "batch", buffers)
    if statistics == "support":
        run(support, "record", buffers)
        return run(query, "running", buffers)
    alone = [run(torch.cat([support, one], 1), "batch", buffers)[:, -1:] for one in query.split(1, 1)]
    return torch.cat(alone, 1)
