"""Embeddings of many images, of which only some are in memory at once."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from metarun.algorithms.base import FewShotLearner, MetricLearner
from metarun.algorithms.objectives import full
from metarun.backbones.base import Backbone
from metarun.classification.evaluation import PIXELS_AT_ONCE
from metarun.commands.predict.images import Files, batches, label
from metarun.commands.predict.model import Model
from metarun.errors import UserError
from metarun.nn.batch_norm import normalise_by


@torch.no_grad()
def embedded(model: Model, files: Files) -> dict[str, np.ndarray]:
    """`features` (n, D) float32 by the first checkpoint, `files` (n,) and, if any image is in a folder, `labels` (n,), those folders.

    Raises UserError if no file can be read.
    """
    embed, found = embedder(model.members[0]), []
    for paths, x in batches(files, PIXELS_AT_ONCE // model.view.size**2, model.view, model.device):
        with model.device.autocast():
            found.append((paths, embed(x[None])[0].float().cpu().numpy()))
    if not found:
        raise UserError("images: no file in it can be read as an image")
    every = [path for paths, _ in found for path in paths]
    columns = {"features": np.concatenate([z for _, z in found]), "files": np.array([str(path) for path in every])}
    return {**columns, "labels": np.array([label(path) for path in every])} if any(map(label, every)) else columns


def embedder(learner: FewShotLearner) -> Callable[[Tensor], Tensor]:
    """From images (1, n, C, H, W) to (1, n, D), by running statistics: a metric learner's own embedding, of others their backbone's before
    any inner step.
    """
    if isinstance(learner, MetricLearner):
        return learner.embed
    backbone = next(module for module in learner.modules() if isinstance(module, Backbone))
    at_step = getattr(learner, "at_step", None)  # MAML++ has batch norm's scale and offset per inner step, in place of the backbone's
    first = at_step(0) if at_step else {}
    own = {name.removeprefix("backbone."): value for name, value in first.items() if name.startswith("backbone.")}

    def embed(x: Tensor) -> Tensor:
        with normalise_by(backbone, "running"):
            return full(functional_call(backbone, own, (x,)))

    return embed
