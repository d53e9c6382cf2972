"""What travels to a machine without a network, which has a Python and a torch of its own."""

from importlib.metadata import distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PYTHON = "3.12"
KEPT = ("torch", "torchvision")
"""What the machine has, built for its card, with all that these two need."""
SOURCE_ONLY = ("antlr4-python3-runtime",)
"""What PyPI has no wheel of; all of it is Python, so that a wheel made anywhere serves."""
THERE = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "platform_system": "Linux"}


def direct() -> list[Requirement]:
    """The dependencies of pyproject.toml that the machine does not have."""
    listed = map(Requirement, tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    return [needed for needed in listed if canonicalize_name(needed.name) not in KEPT]


def wheels() -> dict[str, str]:
    """Every package that has to travel, by name, in the version that is installed here: the dependencies and what they need in turn."""
    found: dict[str, str] = {}
    todo = direct()
    while todo:
        name = canonicalize_name(todo.pop().name)
        if name in found or name in KEPT:
            continue
        installed = distribution(name)
        found[name] = installed.version
        todo += [needed for needed in map(Requirement, installed.requires or ()) if applies(needed)]
    return dict(sorted(found.items()))


def applies(needed: Requirement) -> bool:
    """Whether the machine needs it; what an extra asks for it does not."""
    return needed.marker is None or needed.marker.evaluate({**THERE, "extra": ""})


def commands(folder: str = "wheels") -> list[str]:
    """The command lines that make the wheels in `folder`, and the one that installs them on the machine, beside its torch."""
    pins = {name: f"{name}=={version}" for name, version in wheels().items()}
    ready = " ".join(pin for name, pin in pins.items() if name not in SOURCE_ONLY)
    built = " ".join(pin for name, pin in pins.items() if name in SOURCE_ONLY)
    where = f"--no-deps --only-binary=:all: --python-version {PYTHON} --implementation cp"
    return [
        f"python -m pip download {where} --dest {folder} {ready}",
        f"python -m pip wheel --no-deps --wheel-dir {folder} {built}",
        f"python -m pip install --no-index --no-deps {folder}/*.whl   # on the machine",
    ]
