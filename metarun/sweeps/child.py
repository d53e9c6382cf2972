"""Trainings in processes of their own, which end when the process that began them does: saved, to be gone on with."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

WATCH = "METARUN_ENDS_WITH_ITS_STDIN"


def start(words: Sequence[str], console: Path) -> subprocess.Popen[bytes]:
    """`metarun train WORDS` in a process of its own, which saves and ends (SIGTERM) when this one ends, however it ends.

    console: the file that takes what it prints.
    """
    command = [sys.executable, "-m", "metarun", "train", *words]
    with open(console, "ab") as output:
        # Of its own group, so that Ctrl-C in a terminal reaches it through the process that waits for it, once.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, WATCH: "1"}, start_new_session=True
        )


def stop(child: subprocess.Popen[bytes]) -> int:
    """Has the training save and end, unless it has ended; waits for it. Returns its exit code."""
    # Not SIGTERM: SLURM sends that to every process of a job, and a second one would end the training unsaved.
    child.send_signal(signal.SIGINT)  # nothing, to one that has ended
    with child:  # closes the pipe
        return child.wait()


def is_below(process: int) -> bool:
    """Whether this process began another, or one that did; no, where there is no `ps` to tell."""
    while shutil.which("ps") and process > 1 and process != os.getpid():
        process = int(subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True).stdout or 0)
    return process == os.getpid()


def watch_parent() -> None:
    """In a training that `start` began: its stdin is a pipe that nothing is written to, and that ends with the process behind it."""
    if os.environ.pop(WATCH, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell started the sweep in the background it is ignored
        for warning in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(warning, signal.SIG_IGN)  # SLURM warns every process of a job; the one that waits for this one answers
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
