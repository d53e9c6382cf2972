"""Files that are whole or absent, and the lock that one process has."""

import subprocess
import sys
from pathlib import Path

import pytest

from metarun.runs.files import Lock, held, whole, whole_folder


def test_a_file_is_the_old_one_until_all_of_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError), whole(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_text() == "old"
    with whole(path, durable=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_there_once_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(ValueError), whole_folder(path) as draft:
        (draft / "part").touch()
        raise ValueError
    assert not list(tmp_path.iterdir())
    with whole_folder(path) as draft:
        (draft / "part").touch()
        assert not path.exists()
    assert (path / "part").exists()


def test_one_process_at_a_time_has_the_lock_and_it_falls_with_the_process(tmp_path: Path) -> None:
    assert not held(tmp_path)
    with Lock(tmp_path):
        assert held(tmp_path)
        with pytest.raises(BlockingIOError), Lock(tmp_path, timeout=0):
            pass
    assert not held(tmp_path)
    code = "import sys, time; from pathlib import Path; from metarun.runs.files import Lock\n"
    code += "with Lock(Path(sys.argv[1])): print('has it', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert held(tmp_path)
        process.kill()
    assert not held(tmp_path)


def test_nothing_else_writes_by_way_of_a_draft_or_locks() -> None:
    package = Path(__file__).parents[2] / "metarun"
    sources = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")}
    assert len(sources) > 100
    for sign in ("fcntl", "FileLock", ".tmp", "os.replace"):
        assert {name for name, text in sources.items() if sign in text} <= {"runs/files.py"}, sign
