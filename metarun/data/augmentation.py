"""Random changes to training images: torchvision's v2 transforms on bytes, on the device where the images are.

What is done to an image is a function of a 64-bit word given with it, so that an augmented task is addressed like any other; torch's
generator, which the transforms draw from, is afterwards as it was. The transforms draw on the host, so a device is never waited for.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError

Transform = Callable[[Tensor], Tensor]


def augmented(images: Tensor, transforms: Sequence[Transform], words: Iterable[int]) -> Tensor:
    """Images (n, C, H, W) uint8, each changed by itself, since a transform treats all images of a tensor alike."""
    with torch.random.fork_rng(devices=()):
        return torch.stack([_one(image, transforms, int(word)) for image, word in zip(images, words, strict=True)])


def _one(image: Tensor, transforms: Sequence[Transform], word: int) -> Tensor:
    torch.default_generator.manual_seed(word)  # torch.manual_seed would reseed the device's generators too
    for transform in transforms:
        image = transform(image)
    return image


def refuse_unfit(transforms: Sequence[Transform], channels: int, size: int) -> None:
    """Raises UserError, naming `dataset.augment`, unless the transforms make images of the same size and kind."""
    image = torch.zeros(1, channels, size, size, dtype=torch.uint8)
    try:
        after = augmented(image, transforms, [0])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"dataset.augment: cannot be applied to an image ({str(error).splitlines()[0]})") from error
    if after.shape != image.shape or after.dtype != torch.uint8:
        raise UserError(
            f"dataset.augment: makes {after.dtype} {tuple(after.shape[1:])} of uint8 {tuple(image.shape[1:])}; kind and size have to stay"
        )


def view_words(images: np.ndarray, view: int) -> np.ndarray:
    """The words (n,) of one view of the images with these numbers: the same in every episode."""
    return np.random.Philox(key=[view, 0x76696577]).random_raw(int(images.max(initial=0)) + 1)[images]
