"""Optuna's study of a search: its storage, its sampler and pruner, and what it was begun with."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage

from metarun.config.keys import FREE_ON_RESUME, ROLES, differences, role
from metarun.config.refusals import one_line
from metarun.config.schema import flat, shown
from metarun.errors import UserError
from metarun.runs.files import Lock
from metarun.sweeps.tune.space import Space, described
from metarun.sweeps.tune.trials import put_back

HEARTBEAT, GRACE = 5, 20
"""Seconds between two signs of life of a trial; seconds without one after which another process goes on with it."""
Config = Mapping[str, Any]


@contextmanager
def opened(folder: Path, settings: Config, cfg: Config) -> Iterator[optuna.Study]:
    """The study in its storage, begun if it is not there. Raises UserError for a storage that cannot be opened.

    settings: the node `tune`; cfg: a trial's config.
    """
    url = settings["storage"] or f"sqlite:///{folder / 'study.db'}"
    patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # several processes write into one file
    try:
        if settings["storage"]:  # the folder is not made for nothing
            sqlalchemy.create_engine(url).connect().close()
        folder.mkdir(parents=True, exist_ok=True)
        with quiet(), Lock(folder):  # of two processes one makes the tables
            storage = RDBStorage(url, patience, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=put_back)
    except Exception as error:  # whatever a database's own driver raises
        raise UserError(f"tune.storage: cannot be opened ({one_line(str(error).split('(Background')[0])})") from error
    with quiet():
        try:
            name = folder.resolve().name
            study = optuna.create_study(
                storage=storage, pruner=pruner(settings, cfg), study_name=name, direction="maximize", load_if_exists=True
            )
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna as a part of this program: what it would say is said here, and what it calls experimental is used on purpose."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def pruner(settings: Config, cfg: Config) -> BasePruner:
    """Optuna's pruner. It counts in training steps, of which there are `val_every` from one validation to the next."""
    every, steps, name = cfg["val_every"], cfg["steps"], settings["pruner"]
    if name == "median":
        return MedianPruner(settings["startup_trials"], n_warmup_steps=settings["warmup"] * every)
    if name == "hyperband":
        return HyperbandPruner(min_resource=min(steps, (settings["warmup"] + 1) * every), max_resource=steps)
    return NopPruner()


def sampler(settings: Config, stream: int) -> BaseSampler:
    """Optuna's sampler. Every trial has a stream of its own, so that no process draws what another has drawn, nor the same again."""
    seed = int(np.random.SeedSequence([settings["seed"], stream]).generate_state(1)[0])
    if settings["sampler"] == "random":
        return RandomSampler(seed)
    return TPESampler(n_startup_trials=settings["startup_trials"], seed=seed)


def remember(study: optuna.Study, folder: Path, space: Space, cfg: Config) -> None:
    """Notes what the study searches and what is fixed. Raises UserError if it was begun with something else."""
    counted = ROLES - FREE_ON_RESUME
    searched = {key: described(distribution) for key, distribution in space.dimensions.items()}
    fixed = {key: value for key, value in flat(cfg).items() if key not in space.dimensions and role(key) in counted}
    with Lock(folder):
        for name, now in (("searched", searched), ("fixed", json.loads(json.dumps(fixed)))):
            if name not in study.user_attrs:
                study.set_user_attr(name, now)
            for key, (was, value) in differences(study.user_attrs[name], now, counted).items():
                verb = "searches" if name == "searched" else "was begun with"
                raise UserError(f"{key}: the study {folder} {verb} {shown(was)}, not {shown(value)}; choose another tune.dir")
