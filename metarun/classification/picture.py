"""A picture of one episode: what the learner was shown, what it was asked, what it said."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from metarun.algorithms.base import FewShotLearner, testing
from metarun.nn.device import Device
from metarun.tasks import Episode

RIGHT, WRONG, GAP, SUPPORT, QUERIES = (40, 160, 70), (205, 50, 40), 4, 5, 10


@torch.no_grad()
def episode_figure(learner: FewShotLearner, episode: Episode, statistics: str, device: Device) -> np.ndarray:
    """The first task of `episode` as an RGB image (3, height, width) uint8.

    A row per class: its number, up to 5 support images, then up to 10 queries, framed green or red, with the predicted class.
    """
    with testing(learner), device.autocast():
        predicted = learner.adapt(episode.support, statistics)(episode.query.x)[0].argmax(-1).cpu()
    support, query = (_rows(part.x[0], episode.support.ways) for part in (episode.support, episode.query))
    answers = predicted.view(episode.support.ways, -1)
    support, query = support[:, :SUPPORT], query[:, :QUERIES]
    side = support.shape[-2] + GAP
    offset = 20 + support.shape[1] * side + 12
    canvas = Image.new("RGB", (offset + query.shape[1] * side, len(support) * (side + 12)), "white")
    pen = ImageDraw.Draw(canvas)
    for label in range(len(support)):
        top = label * (side + 12)
        pen.text((4, top + side // 2 - 6), str(label), fill="black")
        for column, image in enumerate(support[label]):
            canvas.paste(Image.fromarray(image), (20 + column * side, top + 2))
        for column, image in enumerate(query[label]):
            left, answer = offset + column * side, int(answers[label, column])
            colour = RIGHT if answer == label else WRONG
            pen.rectangle((left - 2, top, left + side - 3, top + side - 1), fill=colour)
            canvas.paste(Image.fromarray(image), (left, top + 2))
            pen.text((left + side // 2 - 6, top + side), str(answer), fill=colour)
    return np.asarray(canvas).transpose(2, 0, 1)


def _rows(images: torch.Tensor, ways: int) -> np.ndarray:
    """(N·K, C, H, W) of any range -> (N, K, H, W, 3) uint8."""
    x = images.float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)
    x = (255 * x).byte().permute(0, 2, 3, 1).unflatten(0, (ways, -1))
    return x.expand(*x.shape[:-1], 3).numpy()
