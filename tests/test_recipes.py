"""Every published setting in conf/experiment: named and described as it should be, and it trains and is tested on generated images."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import composed

from metarun.config import check
from metarun.targets import check_targets
from metarun.train import train

RECIPES = sorted((Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml"))


def test_the_recipes_of_the_gradient_based_family_are_there() -> None:
    names = {path.stem for path in RECIPES}
    everywhere = ("maml", "fomaml", "reptile", "meta_sgd", "maml_plus_plus")
    expected = {f"{name}_omniglot_{task}" for name in everywhere for task in ("5w1s", "5w5s", "20w1s", "20w5s")}
    expected |= {"anil_omniglot_20w1s", "anil_omniglot_20w5s", "maml_mlp_omniglot_5w1s", "maml_mlp_omniglot_5w5s"}
    expected |= {f"{name}_miniimagenet_5w{shots}s" for name in (*everywhere, "anil", "boil", "cavia") for shots in (1, 5)}
    assert expected <= names


STATED: dict[str, Callable[[dict[str, Any]], int]] = {
    r"(\d+) tasks a step": lambda cfg: cfg["tasks_per_step"],
    r"([\d,]+) test (?:tasks|episodes)": lambda cfg: cfg["protocol"]["episodes"],
    r"tasks a step with (\d+) quer": lambda cfg: cfg["task"]["queries"],
    r"test tasks with (\d+) quer": lambda cfg: cfg["protocol"]["queries"],
}
"""What the comments say of the protocol, and where the config says it."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[1].startswith(f"# metarun train experiment={path.stem}")
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#")).replace(" one query", " 1 query")
    cfg = composed(f"experiment={path.stem}", "device=cpu", "device.keep_memory=false")
    named = re.fullmatch(r"(.+)_(\d+)w(\d+)s", path.stem)
    assert named and (cfg["protocol"]["ways"], cfg["protocol"]["shots"]) == (int(named[2]), int(named[3]))
    for pattern, value in STATED.items():
        for stated in re.findall(pattern, comment):
            assert int(stated.replace(",", "")) == value(cfg), (pattern, stated)
    assert re.search(r"Published: \d\d\.\d", comment) or "glyphs" in path.stem
    check(cfg)
    check_targets(cfg)
    record = train(shrunk(cfg), tmp_path / "run")
    assert record["episodes"] == 2 and record["ways"] == int(named[2]) and record["shots"] == int(named[3])


def shrunk(cfg: dict[str, Any]) -> dict[str, Any]:
    """The same method on the same kind of images, with as little to do as can be."""
    source = {key: cfg["dataset"][key] for key in ("image_size", "in_channels", "mean", "std", "rotations")}
    cfg["dataset"] = {"_target_": "helpers.RandomImages", "_convert_": "all", **source}
    cfg |= {"steps": 2, "tasks_per_step": 1, "log_every": 1, "checkpoint_every": 1, "val_every": min(cfg["val_every"], 2)}
    cfg["task"] |= {"ways": min(cfg["task"]["ways"], cfg["protocol"]["ways"]), "queries": 1}
    cfg["protocol"] |= {"episodes": 2, "val_episodes": 1, "queries": 1, "diagnostics": 0, "ensemble": 1}
    cfg["keep_best"] = 1
    return cfg
