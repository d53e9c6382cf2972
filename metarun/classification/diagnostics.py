"""What a single accuracy hides: the worth of every inner step and of batch statistics, and how much the order of the labels matters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import FewShotLearner, testing
from metarun.algorithms.objectives import accuracies, task_losses
from metarun.nn.batch_norm import MODES
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples

PERMUTATIONS = 4
QUICK_MODES = tuple(mode for mode in MODES if mode != "support+one")
"""Without the mode that looks at every query in a batch of its own, which takes as long as all else together."""


@torch.no_grad()
def diagnose(learner: FewShotLearner, episode: Episode, statistics: str, device: Device, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """Accuracies in percent and mean cross-entropies over the tasks of `episode`.

    inner_steps: `accuracy` and `loss` after 0, 1, ... inner steps (methods without an inner loop have one entry); batch_norm: accuracy
    by each of `modes` (see `metarun.nn.batch_norm`); label_spread: the standard deviation of a task's accuracy over permutations of its
    labels, mean over tasks, in points.
    """
    query = episode.query
    with testing(learner), device.autocast():
        steps = [predictor(query.x) for predictor in learner.trajectory(episode.support, statistics)]
        by_mode = {mode: steps[-1] if mode == statistics else learner.adapt(episode.support, mode)(query.x) for mode in modes}
        permuted = [_permuted(learner, episode, statistics, seed) for seed in range(1, PERMUTATIONS)]
    spread = torch.stack([accuracies(steps[-1], query.y), *permuted]).std(0).mean()
    return {
        "inner_steps": [{"accuracy": _percent(scores, query.y), "loss": float(task_losses(scores, query.y).mean())} for scores in steps],
        "batch_norm": {mode: _percent(scores, query.y) for mode, scores in by_mode.items()},
        "label_spread": 100 * float(spread),
    }


def scalars(diagnosis: Mapping[str, Any]) -> dict[str, float]:
    """The same as TensorBoard shows it, under one name each."""
    inner = {f"inner_{key}/{step}": value for step, entry in enumerate(diagnosis["inner_steps"]) for key, value in entry.items()}
    modes = {f"batch_norm/{mode}": value for mode, value in diagnosis["batch_norm"].items()}
    return {**inner, **modes, "label_spread": diagnosis["label_spread"]}


def _permuted(learner: FewShotLearner, episode: Episode, statistics: str, seed: int) -> Tensor:
    """Accuracies of the same tasks with the labels handed out anew."""
    order = torch.randperm(episode.support.ways, generator=torch.Generator().manual_seed(seed))
    support, query = (_relabelled(part, order) for part in (episode.support, episode.query))
    return accuracies(learner.adapt(support, statistics)(query.x), query.y)


def _relabelled(part: Examples, order: Tensor) -> Examples:
    """Class `order[k]` becomes class k; the examples stay grouped by class."""
    blocks = part.x.unflatten(1, (part.ways, -1))
    return Examples(blocks[:, order.to(part.x.device)].flatten(1, 2), part.y, part.ways)


def _percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * float(accuracies(scores, labels).mean())
