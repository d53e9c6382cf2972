"""What a sweep has to know of SLURM: its jobs outlive the process that submitted them."""

import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("metarun")
POLL = 5.0
"""Seconds between questions to the queue."""


def jobs(folder: Path) -> list[str]:
    """The jobs of a sweep that SLURM still has, waiting or running, as `scancel` takes them."""
    # Submitit keeps a folder for every job, named by its id (of an array: ARRAY_TASK).
    arrays = sorted({path.name.partition("_")[0] for path in (folder / ".submitit").glob("[0-9]*")}, key=int)
    if not arrays or not shutil.which("squeue"):
        return []
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    # An id that SLURM has forgotten is an error only if it is the only one.
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def wait_for_jobs(folder: Path) -> None:
    """Returns when SLURM has no more jobs of the sweep."""
    while jobs(folder):
        time.sleep(POLL)


@contextmanager
def telling_what_goes_on(folder: Path) -> Iterator[None]:
    """On Ctrl-C says which jobs go on without this process, and how to stop them."""
    try:
        yield
    except KeyboardInterrupt:
        left = jobs(folder)
        if left:
            arrays = sorted({job.partition("_")[0] for job in left}, key=int)
            log.info("%d jobs go on in SLURM (%s); stop them by: scancel %s", len(left), ", ".join(left[:8]), " ".join(arrays))
        else:
            log.info("stopped; nothing of the sweep goes on")
        log.info("the same line again does what is still to do in %s", folder)
        raise
