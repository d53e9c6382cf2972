"""A row of numbers for each of a fixed and hashed list of episodes."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metarun.algorithms.base import FewShotLearner, MetricLearner, testing
from metarun.algorithms.objectives import accuracies, full, task_losses
from metarun.classification.sources import EpisodeSource
from metarun.data.episodes import Draws, Episodes, Pixels
from metarun.kinds import Table
from metarun.nn.device import Device
from metarun.tasks import Examples

PIXELS_AT_ONCE = 2**20
"""Of the images that go through the network together: enough to keep a device busy, with less memory than training takes."""
EMBEDDINGS_AT_ONCE = 2**14
NUMBERS_AT_ONCE = 2**25
"""Of the embeddings that are compared together: some of them have ten thousand numbers each."""


@torch.no_grad()
def score(learner: FewShotLearner, source: EpisodeSource, first: int, count: int, statistics: str, device: Device, views: int = 1) -> Table:
    """Tests `learner` on `count` tasks from `first` on; queries are normalised by `statistics` (see `metarun.nn.batch_norm`).

    views: more than one averages the probabilities of the tasks as they are and of so many less one random changes of their images.
    Returns `accuracy` in percent and mean cross-entropy `loss` (count,); `classes`, the names of those drawn, and `right` answers to the
    queries of each, (count, N). A turned class of its own is `name@90` and so on.
    """
    episodes, span = source.episodes, range(first, first + count)
    seen = [source.pixels.seen(view) for view in range(views)]
    if isinstance(learner, MetricLearner) and statistics == "running":
        scored = _averaged(_by_embedding(learner, episodes, view, span, device) for view in seen)
    else:
        scored = _averaged(_by_task(learner, episodes, view, span, statistics, device) for view in seen)
    # Made before the loop: what small tensors it left behind would each split a large block that was freed, and memory would grow.
    correct, losses, done = torch.empty(count, device=device.torch), torch.empty(count, device=device.torch), 0
    right = torch.empty(count, episodes.ways, dtype=torch.int64, device=device.torch)
    names, turned = _names(episodes), np.empty((count, episodes.ways), dtype=np.int64)
    each = torch.arange(episodes.ways, device=device.torch).repeat_interleave(episodes.queries)
    with testing(learner), tqdm(total=count, desc=source.part, unit="task", disable=None, leave=False) as bar:
        for logits, draws in scored:
            labels = each.expand(len(logits), -1)
            some = slice(done, done + len(labels))
            correct[some], losses[some] = accuracies(logits, labels), task_losses(logits, labels)
            right[some] = (logits.argmax(-1) == labels).unflatten(1, (episodes.ways, -1)).sum(2)
            turned[some] = draws.classes * episodes.turned + draws.turns % episodes.turned
            done = some.stop
            bar.update(len(labels))
    percent = 100 * correct.cpu().double().numpy()
    return {"accuracy": percent, "loss": losses.cpu().double().numpy(), "classes": names[turned], "right": right.cpu().numpy()}


def _names(episodes: Episodes) -> np.ndarray:
    """Of all classes that can be drawn; a turn is a class of its own where the table says so."""
    names = [name + (f"@{90 * turn}" if turn else "") for name in episodes.table.names for turn in range(episodes.turned)]
    return np.array(names, dtype=object)


def _averaged(views: Iterable[Iterator[tuple[Tensor, Draws]]]) -> Iterator[tuple[Tensor, Draws]]:
    """Tasks with the logarithm of their mean probabilities over the views; a view alone as it is."""
    for same in zip(*views, strict=True):
        logits = [logits for logits, _ in same]
        together = logits[0] if len(logits) == 1 else torch.stack([full(each).softmax(-1) for each in logits]).mean(0).log()
        yield together, same[0][1]


def _batches(episodes: Episodes, span: range, images_at_once: int) -> Iterator[Draws]:
    size = max(1, images_at_once // (episodes.ways * (episodes.shots + episodes.queries)))
    for first in range(span.start, span.stop, size):
        yield episodes.draw(first, min(size, span.stop - first))


def _images_at_once(pixels: Pixels) -> int:
    return max(1, PIXELS_AT_ONCE // (pixels.shape[0] * pixels.shape[1]))


def _by_task(
    learner: FewShotLearner, episodes: Episodes, pixels: Pixels, span: range, statistics: str, device: Device
) -> Iterator[tuple[Tensor, Draws]]:
    """Drawn tasks and the logits (T, n, N) of their queries."""
    for draws in _batches(episodes, span, _images_at_once(pixels)):
        episode = pixels.episode(draws, episodes.shots)
        with device.autocast():
            yield learner.adapt(episode.support, statistics)(episode.query.x), draws


def _by_embedding(
    learner: MetricLearner, episodes: Episodes, pixels: Pixels, span: range, device: Device
) -> Iterator[tuple[Tensor, Draws]]:
    """The same for a learner whose embedding of an image depends on nothing else: every image once, then gathers."""
    table, turned = episodes.table, episodes.table.rotations != "none"
    owned = np.concatenate([np.arange(start, start + size) for start, size in zip(table.starts, table.counts, strict=True)])
    row = np.zeros(table.images.shape[0], dtype=np.int64)
    row[owned] = np.arange(len(owned))
    embedded = [_embed_all(learner, pixels, owned, turn, device) for turn in range(4 if turned else 1)]
    z = torch.stack(embedded)
    labels = torch.arange(episodes.ways, device=z.device)
    for draws in _batches(episodes, span, min(EMBEDDINGS_AT_ONCE, NUMBERS_AT_ONCE // z.shape[-1])):
        at = z[device.put(draws.turns[..., None]), device.put(row[draws.images])]
        support, query = at[:, :, : episodes.shots], at[:, :, episodes.shots :]
        y = labels.repeat_interleave(episodes.shots).expand(len(at), -1)
        yield learner.classify(Examples(support.flatten(1, 2), y, episodes.ways))(query.flatten(1, 2)), draws


def _embed_all(learner: MetricLearner, pixels: Pixels, images: np.ndarray, turn: int, device: Device) -> Tensor:
    parts = []
    for chunk in np.array_split(images, -(-len(images) // _images_at_once(pixels))):
        x = pixels.gather(chunk, np.full(len(chunk), turn))
        with device.autocast():
            parts.append(learner.embed(x[None])[0])
    return torch.cat(parts)
