"""Several runs tested anew on the same episodes, as `metarun evaluate` does it with one."""

import logging
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.analysis.compare.choosing import EPISODES
from metarun.commands.main import log_to
from metarun.config import changes, compose
from metarun.config.refusals import in_one_line
from metarun.config.schema import check, quoted, refused, shown
from metarun.config.targets import check_targets
from metarun.errors import UserError
from metarun.runs.records import Record


def retested(runs: Sequence[str], overrides: Sequence[str]) -> list[Record]:
    """The records of every run's test with these overrides. Raises UserError; what the configurations show, before any test begins."""
    for run in runs:
        if not Path(run).is_dir():
            raise UserError(f"{run}: is no folder; {overrides[0]} has every run tested anew, and that takes run folders")
    lines = [Namespace(overrides=[f"run={quoted(run)}", *overrides], config_dir=None) for run in runs]
    with in_one_line(lambda without: compose.known_keys("evaluate", lines[0], without)):
        configs = [changes.evaluated(line) for line in lines]
        for cfg, _ in configs:
            check(cfg)
            check_targets(cfg)
        _refuse_different_episodes(runs, [cfg["protocol"] for cfg, _ in configs])
        from metarun.training.testing import evaluate

        log_to(logging.StreamHandler(sys.stderr))  # stdout is for the comparison
        return [Record(run, folder, evaluate(cfg, folder)) for run, (cfg, folder) in zip(runs, configs, strict=True)]


def _refuse_different_episodes(runs: Sequence[str], protocols: Sequence[Mapping[str, Any]]) -> None:
    for key in EPISODES:
        first = protocols[0][key]
        for run, protocol in zip(runs, protocols, strict=True):
            if protocol[key] != first:
                both = f"{shown(first)} in {runs[0]}, {shown(protocol[key])} in {run}"
                raise UserError(f"protocol.{key}: {both}; expected one value for all, like protocol.{key}={shown(first)}")
    if protocols[0]["episodes"] < 2:
        raise refused("protocol.episodes", protocols[0]["episodes"], "at least 2 to compare")
