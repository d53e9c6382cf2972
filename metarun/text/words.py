"""Flags of the commands that Hydra has no part in."""

import argparse
from typing import NoReturn

from metarun.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaint is a UserError: one line like every other refusal."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
