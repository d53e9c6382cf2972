"""Image files, in a folder or in a zip, to `uint8` arrays; a file that is not what it should be is refused by name."""

import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metarun.errors import UserError

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Member:
    """One file, in a folder (`path` is the file) or in an open zip (`path` is the zip, `name` the file inside)."""

    path: Path
    name: str = ""
    archive: zipfile.ZipFile | None = None

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.name else str(self.path)

    def read(self) -> bytes:
        return self.archive.read(self.name) if self.archive else self.path.read_bytes()


def members(place: Path) -> dict[PurePosixPath, Member]:
    """The files in the folder or zip `place`, by their path inside it, sorted; hidden ones are left out. Raises UserError for a bad zip."""
    if place.is_dir():
        found = {PurePosixPath(path.relative_to(place).as_posix()): Member(path) for path in _walk(place)}
    else:
        archive = _open_zip(place)
        names = [name for name in archive.namelist() if not name.endswith("/")]
        found = {PurePosixPath(name): Member(place, name, archive) for name in names}
    return {path: found[path] for path in sorted(found) if not any(part.startswith((".", "__MACOSX")) for part in path.parts)}


def stamps(places: Sequence[Path]) -> list[object]:
    """What changes when anything in these folders, zips and files does. Raises UserError, naming the file, for a broken link."""
    return [
        [place.name, [_stamp(path.as_posix(), member.path) for path, member in members(place).items()]]
        if place.is_dir()
        else [place.name, _stamp(place.name, place)]
        for place in places
    ]


def _stamp(name: str, path: Path) -> list[object]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return [name, stat.st_size, stat.st_mtime_ns]


def _walk(folder: Path) -> list[Path]:
    return sorted(Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        start = path.read_bytes()[:200] if path.is_file() else b""
        what = "an HTML page saved as one" if start.lstrip().lower().startswith((b"<!doctype html", b"<html")) else f"{error}"
        raise UserError(f"{path}: not a zip archive ({what}); download it again") from error


def decode(item: Member | np.ndarray, image_size: int, in_channels: int, resample: Resample, upright: bool = False) -> np.ndarray:
    """The image as (image_size, image_size, in_channels) uint8, aspect not kept; one that has this size is not resampled.

    An array is (H, W) or (H, W, 3) uint8. upright: turned as its EXIF data say, as cameras want it; published datasets are read without.
    Raises UserError, naming the file, for a truncated or non-image file.
    """
    mode = "RGB" if in_channels == 3 else "L"
    image = _read(item, mode, upright) if isinstance(item, Member) else Image.fromarray(item).convert(mode)
    image = image.resize((image_size, image_size), Image.Resampling[resample.upper()])
    return np.asarray(image).reshape(image_size, image_size, in_channels)


def _read(file: Member, mode: str, upright: bool) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.read()))
        return _opaque(ImageOps.exif_transpose(image) if upright else image).convert(mode)
    except Exception as error:  # Pillow's and zipfile's decoders raise a dozen kinds for bad bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
        raise UserError(f"{file}: cannot be read as an image ({reason})") from error


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it is transparent, and 16-bit grey scaled to 8: Pillow would show hidden colours and clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
