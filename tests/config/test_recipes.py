"""Every published setting in conf/experiment: named and described as it should be, and it trains and is tested on generated images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import RandomImages, composed

from metarun.commands.train import train
from metarun.config.schema import check
from metarun.config.targets import check_targets

RECIPES = sorted((Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))


def test_the_recipes_of_the_gradient_based_family_are_there() -> None:
    names = {path.stem for path in RECIPES}
    everywhere = ("maml", "fomaml", "reptile", "meta_sgd", "maml_plus_plus")
    expected = {f"{name}_omniglot_{task}" for name in everywhere for task in ("5w1s", "5w5s", "20w1s", "20w5s")}
    expected |= {"anil_omniglot_20w1s", "anil_omniglot_20w5s", "maml_mlp_omniglot_5w1s", "maml_mlp_omniglot_5w5s"}
    expected |= {f"{name}_miniimagenet_5w{shots}s" for name in (*everywhere, "anil", "boil", "cavia") for shots in (1, 5)}
    assert expected <= names


def test_the_recipes_of_metric_learners_and_of_transfer_are_there() -> None:
    names = {path.stem for path in RECIPES}
    tasks = ("5w1s", "5w5s", "20w1s", "20w5s")
    expected = {f"{name}_omniglot_{task}" for name in ("matching_net", "relation_net", "siamese") for task in tasks}
    expected |= {f"{name}_omniglot_5w{shots}s" for name in ("r2d2", "r2d2_64") for shots in (1, 5)}
    for_each = ["matching_net", "matching_net_fce", "matching_net_chen", "relation_net", "relation_net_chen", "r2d2", "r2d2_64", "siamese"]
    for_each += ["protonet_lee", "protonet_resnet12", "meta_baseline"]
    expected |= {f"{name}_miniimagenet_5w{shots}s" for name in for_each for shots in (1, 5)}
    for_both = ["matching_net_snell", "matching_net_snell_euclidean"]
    for_both += [f"meta_opt_net{name}" for name in ("", "_ridge", "_conv4", "_ridge_conv4", "_trainval")]
    for_both += ["baseline", "baseline_plus_plus", "baseline_resnet18", "baseline_plus_plus_resnet18", "meta_baseline_classifier"]
    for_both += ["logistic_regression", "nearest_neighbour", "fine_tune"]
    expected |= {f"{name}_miniimagenet_5w5s" for name in for_both}
    expected |= {"simple_shot_miniimagenet_5w1s", "simple_shot_resnet18_miniimagenet_5w1s"}
    assert expected <= names and len(expected) == 55


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
    words = (f"experiment={path.stem}", "device=cpu", "device.keep_memory=false")
    cfg = composed(*words)
    named = re.fullmatch(r"(.+)_(\d+)w(\d+)s", path.stem)
    assert named and (cfg["protocol"]["ways"], cfg["protocol"]["shots"]) == (int(named[2]), int(named[3]))
    for pattern, value in STATED.items():
        for stated in re.findall(pattern, comment):
            assert int(stated.replace(",", "")) == value(cfg), (pattern, stated)
    assert re.search(r"Published: (\d\d\.\d|nothing)", comment)
    check(cfg)
    check_targets(cfg)
    small = ("backbone=torchvision", "backbone.module.name=shufflenet_v2_x0_5", "dataset.image_size=32")
    whole_model = "module" in cfg["backbone"]  # and so without widths to make less of
    record = train(shrunk(composed(*words, *small) if whole_model else cfg), tmp_path / "run")
    assert record["episodes"] == 2 and record["ways"] == int(named[2]) and record["shots"] == int(named[3])


@dataclass(kw_only=True)
class Noise(RandomImages):
    """Noise that is augmented as the recipe's images are."""

    augment: Sequence[Callable[..., Any]]


def shrunk(cfg: dict[str, Any]) -> dict[str, Any]:
    """The same method on the same kind of images, with as little to do as can be."""
    source = {key: cfg["dataset"][key] for key in ("image_size", "in_channels", "mean", "std", "rotations", "augment")}
    cfg["dataset"] = {"_target_": "test_recipes.Noise", "_convert_": "all", **source}
    cfg |= {"steps": 2, "tasks_per_step": 1, "log_every": 1, "checkpoint_every": 1, "val_every": min(cfg["val_every"], 2)}
    images = cfg["task"]["shots"] + cfg["task"]["queries"]
    cfg["task"] |= {"ways": min(cfg["task"]["ways"], cfg["protocol"]["ways"]), "queries": 1, "batch": 4}
    cfg["protocol"] |= {"episodes": 2, "val_episodes": 1, "queries": 1, "diagnostics": 0, "ensemble": 1}
    cfg["keep_best"] = 1
    if "widths" in cfg["backbone"]:
        cfg["backbone"]["widths"] = [min(width, 8) for width in cfg["backbone"]["widths"]]
    algorithm = cfg["algorithm"]
    if algorithm.get("random_shots"):  # which divides all images of a class
        cfg["task"]["queries"] = images - cfg["task"]["shots"]
    if algorithm.get("pretrain_steps"):
        algorithm["pretrain_steps"] = 1  # so that both stages have a step
    if "head" in algorithm and "epochs" in algorithm["head"]:
        algorithm["head"]["epochs"] = 2
    if "steps" in algorithm:
        algorithm["steps"] = 2
    return cfg
