"""The real process, killed: what it leaves must lead to the very bytes of a run that was never disturbed."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import TINY

LINE = f"{TINY} steps=40 val_every=4 checkpoint_every=3 log_every=5 algorithm=maml scheduler=cosine"


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """The real command, a process of its own, which prints into a file beside `folder`."""
    line = words or (*LINE.split(), f"hydra.run.dir={folder}")
    with open(printed(folder), "wb") as out:
        return subprocess.Popen([sys.executable, "-m", "metarun", "train", *line], stdout=out, stderr=subprocess.STDOUT)


def printed(folder: Path) -> Path:
    return folder.with_suffix(".txt")


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool], number: signal.Signals) -> int:
    """Sends the signal as soon as `reached`, and returns the exit code; a process that ends first is no test."""
    limit = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.0005)
    process.send_signal(number)
    return process.wait(timeout=60)


def lines(folder: Path) -> int:
    try:
        return (folder / "metrics.csv").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], bytes, list[str]]:
    weights = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    return weights, (folder / "metrics.csv").read_bytes(), [path.name for path in (folder / "evaluations").iterdir()]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    undisturbed = start(quiet)
    last, dice = killed / "checkpoints" / "last.pt", random.Random(0)
    process = start(killed)
    draft = last.with_name(f".last.pt.{process.pid}.tmp")
    assert kill_when(process, lambda: last.exists() and draft.exists(), signal.SIGKILL) == -signal.SIGKILL  # while it writes
    for _ in range(2):  # at any moment
        process, seen = start(killed, f"resume={killed}"), lines(killed) + dice.randint(1, 6)
        assert kill_when(process, lambda seen=seen: lines(killed) >= seen, signal.SIGKILL) == -signal.SIGKILL  # type: ignore[misc]
    assert undisturbed.wait(timeout=120) == 0
    assert start(killed, f"resume={killed}").wait(timeout=120) == 0, printed(killed).read_text()
    (ours, metrics, files), (theirs, expected, others) = outcome(killed), outcome(quiet)
    assert metrics == expected and files == others
    assert not list(last.parent.glob(".*.tmp"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = start(killed, f"resume={killed}")  # a finished run has nothing left to do, and nothing to lose
    assert again.wait(timeout=120) == 0 and outcome(killed)[1] == expected


def test_an_interrupted_run_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder = tmp_path / str(code)
        process = start(folder)
        assert kill_when(process, lambda folder=folder: lines(folder) > 4, number) == code  # type: ignore[misc]
        assert f"metarun train resume={folder}" in printed(folder).read_text()
        saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
        assert saved["step"] % 3 or saved["step"] < 40  # saved where it stood, not where a checkpoint was due
        assert json.loads((folder / "status.json").read_text())["step"] == saved["step"]
