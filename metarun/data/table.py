"""Images as one `uint8` array on disk: decoded once, memory-mapped ever after.

A table is a folder `<cache>/<name>-<key>/` with `images.npy` and `table.json`; it is made beside its place and renamed, so a
folder that is there is whole; one that was damaged since is built again. `key` hashes what went in (files with size and time of
change, preprocessing), so a changed source gives another table; `fingerprint` hashes what came out (pixels and class names), so it
is the same on every machine.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from metarun.errors import UserError

Item = TypeVar("Item")
FORMAT = 1
DRAFT = ".metarun-draft-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageTable:
    """Images grouped by class. Class `c` owns `images[starts[c] : starts[c] + counts[c]]`.

    images: (n, H, W, C) uint8; names: one per class, unique over all splits of a dataset; fingerprint: SHA-256 of the whole
    table on disk. `mean` and `std` (per channel, for pixels in [0, 1]) and `rotations` say how an episode presents the images:
    `none`; `classes`: every rotation by 90 degrees is a class of its own; `per_class`: each class of an episode is turned by a
    multiple of 90 degrees drawn for it; `per_episode`: one such turn for the whole episode.
    """

    images: np.ndarray
    names: tuple[str, ...]
    starts: np.ndarray
    counts: np.ndarray
    fingerprint: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    rotations: str = "none"

    def select(self, names: Collection[str]) -> "ImageTable":
        """The table of these classes only, in the table's own order; the images are shared, not copied."""
        wanted = set(names)
        keep = [i for i, name in enumerate(self.names) if name in wanted]
        missing = wanted.difference(self.names)
        if missing:
            raise UserError(f"{len(missing)} classes are missing from the data, {min(missing)} among them")
        return replace(self, names=tuple(self.names[i] for i in keep), starts=self.starts[keep], counts=self.counts[keep])


def cache_dir() -> Path:
    """Where tables are kept: `$METARUN_CACHE`, or `metarun` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("METARUN_CACHE") or Path(home) / "metarun")


def cached_table(
    name: str,
    key: Mapping[str, object],
    classes: Callable[[], Mapping[str, Sequence[Item]]],
    decode: Callable[[Item], np.ndarray],
    shape: tuple[int, int, int],
) -> ImageTable:
    """The table of `classes()` (class name -> its items, each decoded to a `shape` = (H, W, C) uint8 array), built unless cached.

    `key` must hold everything that decides pixels and names. Raises UserError if the cache cannot be written, and whatever `decode` raises.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, name, key], sort_keys=True, default=str).encode()).hexdigest()
    folder = cache_dir() / f"{name}-{digest[:16]}"
    damaged = folder.exists()  # unless it opens
    if damaged:
        try:
            return _open(folder, shape)
        except Exception as error:  # bytes that are no table raise nearly anything
            log.warning("%s: not a readable table (%s); it is built again", folder, str(error).split("\n")[0])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DRAFT) as draft:
            _build(Path(draft) / "table", name, classes(), decode, shape)
            if damaged:  # aside, to go with the draft
                os.rename(folder, Path(draft) / "damaged")
            if not folder.exists():  # another process may have finished first: the same bytes
                os.rename(Path(draft) / "table", folder)
    except OSError as error:
        if error.filename is None or str(folder.parent) not in str(error.filename):
            raise
        raise UserError(f"METARUN_CACHE: cannot write {error.filename}: {error.strerror}") from error
    return _open(folder, shape)


def _build(
    folder: Path, name: str, classes: Mapping[str, Sequence[Item]], decode: Callable[[Item], np.ndarray], shape: tuple[int, int, int]
) -> None:
    folder.mkdir()
    items = [item for members in classes.values() for item in members]
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(items), *shape))
    _reserve(folder / "images.npy")
    bar = tqdm(total=len(items), desc=f"{name}: images", unit="img", disable=None, leave=False)

    def store(index: int) -> None:
        images[index] = decode(items[index])
        bar.update()

    with bar, ThreadPoolExecutor() as pool:
        try:
            for _ in pool.map(store, range(len(items)), chunksize=64):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    counts = [len(members) for members in classes.values()]
    digest = hashlib.sha256(json.dumps([list(classes), counts]).encode())
    digest.update(images.data)
    images.flush()
    (folder / "table.json").write_text(json.dumps({"names": list(classes), "counts": counts, "fingerprint": digest.hexdigest()}))


def _reserve(path: Path) -> None:
    """Claims the space of a sparse file, where the system can: a full disk is an error here, and a crash of the process (SIGBUS) later."""
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _open(folder: Path, shape: tuple[int, int, int]) -> ImageTable:
    facts = json.loads((folder / "table.json").read_text())
    images = np.lib.format.open_memmap(folder / "images.npy", "c")  # copy on write: torch wants a writable array, the file stays as it is
    counts = np.asarray(facts["counts"], dtype=np.int64)
    if images.dtype != np.uint8 or images.shape != (counts.sum(), *shape) or len(counts) != len(facts["names"]):
        raise ValueError("images.npy and table.json do not fit")
    return ImageTable(images, tuple(facts["names"]), np.cumsum(counts) - counts, counts, facts["fingerprint"])


def _sweep(cache: Path) -> None:
    """Removes the drafts of builds that were killed: those older than a day."""
    for draft in cache.glob(f"{DRAFT}*"):
        with suppress(FileNotFoundError):  # another process may sweep too
            if time.time() - draft.stat().st_mtime > 24 * 60 * 60:
                shutil.rmtree(draft, ignore_errors=True)
