"""Every key has one role, and each question counts the roles that it should."""

from pathlib import Path
from typing import Any

import pytest
from helpers import CONF, composed

from metarun.config.aliases import of_before, renamed
from metarun.config.keys import ROLES, differences, idle, role, same, selects
from metarun.config.schema import flat

CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name not in ("experiment", "table"))
NEEDED = {"backbone=timm": ["backbone.module.name=resnet18"], "backbone=torchvision": ["backbone.module.name=resnet18"]}


def test_there_are_choices() -> None:
    assert len(CHOICES) > 60 and Path(CONF / "train.yaml").is_file()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_leaf_of_every_choice_has_a_role(choice: str) -> None:
    without = [key for key in flat(composed(choice, *NEEDED.get(choice, []))) if role(key) is None]
    assert not without


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("seed", "seed"), ("steps", "method"), ("algorithm.inner_lr", "method"), ("algorithm.recompute", "compute"),
        ("algorithm.teacher.run", "link"), ("algorithm.teacher.temperature", "method"), ("dataset.root", "compute"),
        ("dataset.download", "compute"), ("dataset.image_size", "data"), ("dataset.rotations.train", "method"),
        ("dataset.rotations.test", "data"), ("environment.workers", "compute"), ("environment.arms", "data"),
        ("device.precision", "method"), ("device.threads", "compute"), ("protocol.ways", "evaluation"), ("protocol.episodes", "test"),
        ("protocol.val_episodes", "selection"), ("protocol.diagnostics", "logging"), ("log_every", "logging"), ("test", "logging"),
        ("optimizer.fused", "compute"), ("optimizer.lr", "method"), ("mine.key", None), ("root", None), ("seeds", None),
    ],
)  # fmt: skip
def test_the_longest_prefix_decides_and_the_names_of_places_before_it(key: str, expected: str | None) -> None:
    assert role(key) == expected


def config(**values: Any) -> dict[str, Any]:
    base = {"seed": 0, "steps": 4, "log_every": 1, "val_every": 2, "protocol": {"selection": "best_val", "episodes": 3}}
    return {**base, "algorithm": {"_target_": "metarun.algorithms.maml.MAML", "inner_lr": 1}, **values}


def test_differences_are_those_of_the_roles_that_are_asked_for() -> None:
    ours, theirs = config(), config(seed=1, steps=5, log_every=2)
    assert differences(ours, theirs, ROLES) == {"log_every": (1, 2), "seed": (0, 1), "steps": (4, 5)}
    assert differences(ours, theirs, {"method", "data"}) == {"steps": (4, 5)}
    assert differences(ours, config(algorithm={"_target_": "metarun.algorithms.maml.MAML", "inner_lr": 1.0}), ROLES) == {}


def test_a_class_counts_by_its_name_of_today_and_conversion_not_at_all() -> None:
    before = {"algorithm": {"teacher": {"_target_": "metarun.teacher.Teacher", "_convert_": "all"}}}
    now = {"algorithm": {"teacher": {"_target_": "metarun.algorithms.teacher.Teacher"}}}
    assert differences(before, now, ROLES) == {}


def test_values_that_are_one() -> None:
    assert same(1, 1.0) and same([1, 2], (1.0, 2)) and same(None, None)
    assert not same(True, 1) and not same(None, 0) and not same([1], [1, 2])


def test_what_counts_only_sometimes() -> None:
    assert selects(config()) and not selects(config(protocol={"selection": "last"}))
    assert selects(config(protocol={"selection": "last"}, patience=3))
    assert idle(config()) == {"dataset.augment"}
    assert idle(config(task={"augment": True}, val_every=0)) == {"protocol.val_episodes"}


def test_a_key_that_has_gone_stays_in_the_names_of_before() -> None:
    old = {"task": {"ways": 7}, "algorithm": {"_target_": "metarun.algorithms.maml.MAML", "ways": 7, "inner_lr": 0.4}}
    assert renamed(old)["algorithm"].keys() == {"_target_", "inner_lr"}
    assert of_before(renamed(old)) == of_before(old) == old
    other = {"task": {"ways": 7}, "algorithm": {"_target_": "metarun.algorithms.protonet.ProtoNet"}}
    assert of_before(renamed(other)) == other
