"""What a sweep has to know of SLURM: its jobs outlive the process that submitted them, and are told before they are ended."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("metarun")
POLL = 10.0
"""Seconds between questions to the queue."""
PATIENCE = 60.0
"""Seconds that the launcher has to notice the end of the last job by itself."""
GRACE = 600.0
"""Seconds after SIGTERM by which SLURM should have ended a job."""


def submitted(folder: Path) -> set[str]:
    """The jobs that a sweep ever had in SLURM, arrays counting as one."""
    # Submitit keeps what it hands to sbatch by the number that it gets. Its local jobs have process ids instead, and no such file.
    return {path.parent.name for path in (folder / ".submitit").glob("[0-9]*/*_submission.sh")}


def in_queue(numbers: set[str]) -> list[str] | None:
    """Those of the jobs that SLURM still has, waiting or running, as `scancel` takes them; None if it does not answer."""
    if not numbers or not shutil.which("squeue"):
        return []
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(sorted(numbers, key=int))}"]
    answer = subprocess.run(command, capture_output=True, text=True)
    # An id that SLURM has forgotten is an error only if it is the only one.
    return None if answer.returncode and "Invalid job id" not in answer.stderr else answer.stdout.split()


def wait_for_jobs(folder: Path) -> None:
    """Returns when SLURM has no more jobs of the sweep, and nothing of submitit's local jobs is left."""
    while in_queue(submitted(folder)) != []:
        time.sleep(POLL)
    local = {path.name for path in (folder / ".submitit").glob("[0-9]*") if path.name.isdigit()} - submitted(folder)
    for process in local:
        with suppress(ChildProcessError):  # of an earlier sweep
            os.waitpid(int(process), 0)


def end_of(job: str) -> str:
    """What SLURM's accounting, if there is one, has of the end of a job, like CANCELLED or OUT_OF_MEMORY."""
    if not shutil.which("sacct"):
        return ""
    return subprocess.run(["sacct", "-nPX", "-o", "State", "-j", job], capture_output=True, text=True).stdout.strip()


@contextmanager
def ending_with_the_jobs(folder: Path) -> Iterator[None]:
    """Raises TimeoutError in a launcher that still waits when its jobs have long left the queue: without accounting it would for ever."""
    earlier, since = submitted(folder), time.monotonic()

    def look(number: int, frame: object) -> None:
        nonlocal since
        mine = submitted(folder) - earlier
        if not mine or in_queue(mine) != []:
            since = time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise TimeoutError("SLURM has none of the jobs any more")

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, POLL, POLL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def telling_what_goes_on(folder: Path) -> Iterator[None]:
    """On Ctrl-C says which jobs go on without this process, and how to stop them."""
    try:
        yield
    except KeyboardInterrupt:
        left = in_queue(submitted(folder))
        if left:
            arrays = sorted({job.partition("_")[0] for job in left}, key=int)
            log.info("%d jobs go on in SLURM (%s); stop them by: scancel %s", len(left), ", ".join(left[:8]), " ".join(arrays))
        elif left is None:
            log.info("SLURM does not answer; its jobs, if there are any left, go on")
        else:
            log.info("stopped; nothing of the sweep goes on")
        log.info("the same line again does what is still to do in %s", folder)
        raise


def await_the_end() -> None:
    """In a job, after SIGTERM: stays until SLURM ends it, because one that it preempts is only begun anew if it did not end by itself."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        log.info("saved; SLURM ends this job, or begins it anew")
        time.sleep(GRACE)
