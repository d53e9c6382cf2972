"""Small copies of the published data sets, in each layout in which they circulate."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CHARACTERS = {
    "images_background": ["Greek/character01", "Greek/character02", "Hebrew/character01"],
    "images_evaluation": ["Keble/character01", "Tibetan/character01"],
}
MINI = {"train": ["n01532829", "n01558993"], "val": ["n01855672"], "test": ["n01930112"]}


def picture(number: int, mode: str, size: tuple[int, int], kind: str = "png") -> bytes:
    """A picture file with noise that depends on `number`."""
    channels = 3 if mode == "RGB" else 1
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.squeeze()).convert(mode).save(file, kind)
    return file.getvalue()


def omniglot_files(drawers: int = 3) -> dict[str, bytes]:
    """Path -> bytes of five characters, 1-bit as the real ones."""
    names = [f"{part}/{character}" for part, characters in CHARACTERS.items() for character in characters]
    return {
        f"{name}/{i:04d}_{d:02d}.png": picture(100 * i + d, "1", (105, 105)) for i, name in enumerate(names) for d in range(1, drawers + 1)
    }


def mini_images(images: int = 3, size: tuple[int, int] = (84, 84)) -> dict[str, dict[str, bytes]]:
    """Class -> file name -> bytes."""
    labels = [label for labels in MINI.values() for label in labels]
    return {
        label: {f"{label}{i:08d}.png": picture(100 * n + i, "RGB", size) for i in range(1, images + 1)} for n, label in enumerate(labels)
    }


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_omniglot(root: Path) -> Path:
    """As the two official zips."""
    for part in CHARACTERS:
        write_zip(root / f"{part}.zip", {name: content for name, content in omniglot_files().items() if name.startswith(part)})
    return root


def mini_list(split: str) -> bytes:
    rows = [f"{name},{label}" for label in MINI[split] for name in mini_images()[label]]
    return "\n".join(["filename,label", *rows]).encode()


def write_mini(root: Path, layout: str) -> Path:
    """Images and lists, zips of them, or class folders."""
    for split, labels in MINI.items():
        images = {name: content for label in labels for name, content in mini_images()[label].items()}
        listed = {f"images/{name}": content for name, content in images.items()} | {f"{split}.csv": mini_list(split)}
        if layout == "lists":
            write_files(root, listed)
        elif layout == "zips":
            write_zip(root / f"{split}.zip", listed)
        else:
            write_files(root, {f"{split}/{name[:9]}/{name}": content for name, content in images.items()})
    return root
