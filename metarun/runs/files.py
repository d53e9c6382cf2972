"""Files that are whole at every moment, and the one lock: what several processes may do in a folder at once."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from filelock import FileLock, Timeout

GLANCE = 0.1
"""Seconds that an onlooker waits for a lock: another onlooker has it for less than a millisecond."""


@contextmanager
def whole(path: Path, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` once all went well, and is gone otherwise.

    durable: the bytes are on the disk before the place is taken. Raises OSError where the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_drafts(folder: Path) -> None:
    """Removes what killed processes were writing in a folder; only for a process that alone writes there."""
    for draft in folder.glob(".*.tmp"):
        draft.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is `path` once all went well, and is gone otherwise. Raises OSError if `path` exists by then."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # of a killed process that had this number
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class Lock:
    """The lock of a folder: at most one process has it, and it falls with the process that has it.

    timeout: seconds to wait for it, None for as long as it takes. Entering raises BlockingIOError when they are over.
    """

    def __init__(self, folder: Path, timeout: float | None = None) -> None:
        # Any thread may let go of it; two locks of one process exclude each other as those of two processes do.
        self._lock = FileLock(folder / ".lock", timeout=-1 if timeout is None else timeout, thread_local=False)

    def __enter__(self) -> "Lock":
        try:
            self._lock.acquire(poll_interval=0.02)
        except Timeout as error:
            raise BlockingIOError(f"{self._lock.lock_file}: another process has this lock") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Lets go of it; does nothing where it is not held."""
        self._lock.release()


def held(folder: Path) -> bool:
    """Whether a living process has the folder's lock; on another machine too, where the file system hands locks on.

    False where that cannot be told: the lock's file is not there or may not be opened, or the file system has no locks.
    """
    if not (folder / ".lock").exists():
        return False
    try:
        with Lock(folder, GLANCE):
            return False
    except BlockingIOError:
        return True
    except (OSError, NotImplementedError):
        return False
