"""`metarun tune` from its words to the table at the end."""

import logging
import signal
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from metarun.config import compose
from metarun.config.keys import ROLES, differences
from metarun.config.schema import check, get, is_integer, is_number, refuse_unwritable, refused, shown
from metarun.errors import TrainingError, UserError
from metarun.sweeps.tune.outcome import command, outcome, ranking, table, write_recipe
from metarun.sweeps.tune.space import Space, described, read
from metarun.sweeps.tune.study import opened, remember, sampler
from metarun.sweeps.tune.trials import Worker

log = logging.getLogger("metarun")
AT_LEAST = {"trials": 1, "seed": 0, "startup_trials": 0, "warmup": 0}
CHOICES = {"sampler": ("tpe", "random"), "pruner": ("median", "hyperband", "none")}
COMPARED_ON = ("protocol", "dataset")
Config = Mapping[str, Any]


def tune(args: Namespace) -> None:
    """Begins the study that the command line describes, or goes on with it; says at the end what was best.

    Raises UserError before anything is written, TrainingError if no trial was finished, SystemExit(128 + signal) after Ctrl-C or SIGTERM.
    """
    space = read(args)
    cfg = whole(space, args)
    check_tune(cfg)
    if args.cfg:
        searched = {key: described(distribution) for key, distribution in space.dimensions.items()}
        print(OmegaConf.to_yaml(OmegaConf.create({**cfg, "searched": searched})), end="")
        return
    settings, folder = cfg["tune"], Path(cfg["tune"]["dir"])
    first = check_space(space, args, new=not (folder / ".lock").exists())
    refuse_unwritable("tune.dir", folder)
    with ending_on_signals(folder), opened(folder, settings, first) as study:
        remember(study, folder, space, first)
        flags = ["--config-dir", args.config_dir] if args.config_dir else []
        done = partial(report, study, folder, space, args)
        log.info("study %s: %d trials in all", folder, settings["trials"])
        Worker(study, folder, space, settings["trials"], partial(sampler, settings), flags, done).work(settings["timeout"])
        conclude(study, folder, space, args)


def whole(space: Space, args: Namespace) -> dict[str, Any]:
    """The config of the space's first point, the node `tune` included."""
    words = [*space.words(next(space.points())[1]), *space.tuned]
    config = compose.compose("tune", Namespace(overrides=words, config_dir=args.config_dir), with_hydra=True)
    HydraConfig.instance().set_config(config)  # the folder is named by choices of groups
    return compose.run_values(config, "tune")


def check_tune(cfg: Config) -> None:
    """Raises UserError for the first key of the node `tune` whose value makes no sense."""
    for name, low in AT_LEAST.items():
        value = get(cfg, f"tune.{name}")
        if not (is_integer(value) and value >= low):
            raise refused(f"tune.{name}", value, f"an integer of at least {low}")
    for name, allowed in CHOICES.items():
        if (value := get(cfg, f"tune.{name}")) not in allowed:
            raise refused(f"tune.{name}", value, f"one of {', '.join(allowed)}")
    timeout, folder, storage = (get(cfg, f"tune.{name}") for name in ("timeout", "dir", "storage"))
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise refused("tune.timeout", timeout, "a number of seconds above 0 or null")
    if not (isinstance(folder, str) and folder):
        raise refused("tune.dir", folder, "a folder")
    if storage is not None and not isinstance(storage, str):
        raise refused("tune.storage", storage, "the URL of a database or null")


def check_space(space: Space, args: Namespace, new: bool) -> dict[str, Any]:
    """Checks a trial at every end and choice of the space; if `new`, also by building it. Returns the first one's config."""
    points = [(key, trial_config(space.words(point), args)) for key, point in space.points()]
    _, first = points[0]
    for key, cfg in points:
        if get(cfg, "val_every") == 0:
            raise UserError("val_every: 0 is not allowed; trials are compared by their accuracy on validation")
        check(cfg)
        for name, (was, now) in differences(first, cfg, ROLES).items():
            if name.partition(".")[0] in COMPARED_ON:
                values = f"{shown(was)} or {shown(now)}"
                raise UserError(f"{key}: cannot be searched, {name} would be {values}; trials are compared on the same tasks")
    if new:
        from metarun.sweeps.check import PointCheck  # needs torch

        build = PointCheck(local=True)
        for _, cfg in points:
            build(cfg)
    return first


def trial_config(words: Sequence[str], args: Namespace) -> dict[str, Any]:
    """The config of `metarun train WORDS`, as a trial has it."""
    return compose.run_values(compose.compose("train", Namespace(overrides=[*words, "test=false"], config_dir=args.config_dir)))


@contextmanager
def ending_on_signals(folder: Path) -> Iterator[None]:
    """SIGTERM is a Ctrl-C; after either, this process says how to go on, and leaves."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as error:
        log.info("stopped; the same command goes on with the study %s", folder)
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def report(study: Study, folder: Path, space: Space, args: Namespace, number: int, trial: FrozenTrial) -> None:
    """Says what became of a trial, and writes the recipe of the best one so far."""
    first, best = ranking(study.get_trials(deepcopy=False))[0]
    finished = best.state == TrialState.COMPLETE
    if finished:
        write_recipe(folder, space, args, first, best)
    log.info("trial %d: %s%s", number, outcome(trial), " (best so far)" if finished and number == first else "")


def conclude(study: Study, folder: Path, space: Space, args: Namespace) -> None:
    """The table and what to do next. Raises TrainingError if there is no best trial."""
    trials = study.get_trials(deepcopy=False)
    for line in table(trials, space):
        log.info("%s", line)
    number, best = ranking(trials)[0]
    if best.state != TrialState.COMPLETE:
        raise TrainingError(f"{folder}: no trial was finished; trial {number}: {outcome(best)}")
    log.info("train and test the best one: %s", command(folder, space, args))
