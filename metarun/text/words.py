"""Words and flags of the commands that Hydra has no part in."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from metarun.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaint is a UserError: one line like every other refusal."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def told_apart(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths and the `key=value` among the words; what exists is a path, since a folder may be named `lr=0.1`."""
    given = list(words)
    pairs = [word for word in given if "=" in word and not Path(word).exists()]
    return [word for word in given if word not in pairs], pairs


def taken(key: str, pairs: Iterable[str]) -> tuple[str | None, list[str]]:
    """The value of `key=value`, the last one if there are several and None without one, and the other pairs."""
    given = list(pairs)
    values = [value for name, _, value in (pair.partition("=") for pair in given) if name == key]
    return (values[-1] if values else None), [pair for pair in given if pair.partition("=")[0] != key]
