"""The floors of the house: an import points down, between files and between folders, inside functions too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "metarun"
FLOORS = (
    ("errors", "version"),
    ("text", "nn"),
    ("tasks", "updates", "kinds"),
    ("config", "backbones", "data"),
    ("algorithms", "runs"),
    ("classification",),
    ("training",),
    ("sweeps", "analysis"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
UP = {
    ("metarun.analysis.compare.retest", "metarun.commands.main"),
    ("metarun.analysis.tables.making", "metarun.cli"),
    ("metarun.config.changes", "metarun.runs.checkpoint"),
}
"""Imports that still point up. This list only shrinks."""

MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The project's own modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def floor(module: str) -> int:
    return FLOOR[module.split(".")[1]]


def test_imports_point_down_but_for_those_that_are_known() -> None:
    assert len(GRAPH) > 100
    below = {name: others - {"metarun"} for name, others in GRAPH.items() if name != "metarun"}
    assert {(name, other) for name, others in below.items() for other in others if floor(other) > floor(name)} == UP


def test_nothing_imports_the_package_itself() -> None:
    assert not [name for name, others in GRAPH.items() if "metarun" in others]


def test_no_circle_of_files() -> None:
    left = {name: set(others) - {name} for name, others in GRAPH.items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert not left, sorted(left)


def test_no_circle_of_folders_once_the_known_ones_are_gone() -> None:
    rooms: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        for other in others:
            if (name, other) not in UP and "metarun" not in (name, other):
                rooms.setdefault(name.split(".")[1], set()).add(other.split(".")[1])
    left = {room: others - {room} for room, others in rooms.items()}
    while free := {room for room in {*left, *set().union(*left.values())} if not left.get(room)}:
        left = {room: others - free for room, others in left.items() if room not in free}
        if not any(others for others in left.values()):
            break
    assert not any(left.values()), left


GONE = (
    "cross_entropy(logits",
    "algorithm.ways",
    "trained_classes",
    "trained_learners",
    "class Data:",
    "training.origin",
    "class Result",
    "import prepare",
)
"""What went as its last user moved."""


def test_what_has_gone_is_nowhere() -> None:
    texts = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    assert not [(name, word) for name, text in texts.items() for word in GONE if word in text]
