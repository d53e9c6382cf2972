"""Runs of metarun inside the test's process, in a folder of their own, with a cache of their own."""

import logging
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import TINY, Metarun, Outcome

from metarun.cli import main
from metarun.nn.device import DTYPES

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background, and some send it
torch.set_num_threads(1)  # tests are small: on a busy machine several threads would wait for each other more than they compute


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's own cache of tables."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(folder))
        yield folder


@pytest.fixture
def metarun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metarun:
    """Runs one command line in `tmp_path`, as the console script would, without the start of a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["metarun"])

    def run(line: str) -> Outcome:
        capsys.readouterr()
        handlers = logging.root.handlers[:]
        try:
            code = main(shlex.split(line))
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        finally:
            for handler in set(logging.root.handlers).difference(handlers):
                handler.close()  # of this command line's log file and stdout
            logging.root.handlers[:] = handlers
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands compute in float64, images and weights: their numbers are then those of another way to them, on any processor."""
    monkeypatch.setitem(DTYPES, "fp32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def trained(metarun: Metarun, tmp_path: Path) -> Path:
    """The folder of a finished run: MAML, 3-way 1-shot, two steps."""
    outcome = metarun(f"train algorithm=maml {TINY} hydra.run.dir=trained")
    assert outcome.code == 0, outcome.err
    return tmp_path / "trained"
