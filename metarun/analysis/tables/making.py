"""Makes what a table lacks: the trainings as one sweep, then the tests one by one. Says on stderr what goes on; stdout is the table's."""

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from metarun import cli
from metarun.analysis.tables.cells import Order, made
from metarun.config.schema import path_text, quoted
from metarun.errors import TrainingError, UserError


def make(order: Order, trainings: bool, more: Sequence[str] = ()) -> list[str]:
    """Trains and tests, or only tests, what is missing, and says what failed. more: words for the sweep, like a launcher. Raises UserError
    if a training could not even begin; then nothing is done.
    """
    flags = ["--config-dir", order.config_dir] if order.config_dir else []
    failed: list[str] = []
    with redirect_stdout(sys.stderr):
        if trainings:
            failed += train(order, flags, more)
        for test in made(order).missing:
            if test.kind == "test":
                failed += attempt(test.what, lambda test=test: cli.run("evaluate", [*flags, *test.words]))  # type: ignore[misc]
    return failed


def train(order: Order, flags: Sequence[str], more: Sequence[str]) -> list[str]:
    """The trainings that are missing, in a sweep, which goes on with those it has begun; then those that were cut off elsewhere."""
    missing = made(order).missing
    needs = sorted({key for one in missing if one.kind == "training" for key in one.needs})
    if needs:
        raise UserError(f"{needs[0]}: a folder is needed for the trainings; {needs[0]}=DIR")
    failed = []
    points = [f"[{','.join(map(quoted, one.words))}]" for one in missing if one.kind == "training"]
    if points:
        word = f"hydra.sweeper.points=[{','.join(points)}]"
        line = [*flags, "--multirun", f"hydra.sweep.dir={path_text(order.root)}", word, *more]
        failed += attempt("training", lambda: cli.run("train", line), UserError)
    for one in missing:
        if one.kind == "resume":
            failed += attempt(one.what, lambda one=one: cli.run("train", [*flags, *one.words]))  # type: ignore[misc]
    return failed


def attempt(what: str, call: Callable[[], object], but: type[Exception] | tuple[()] = ()) -> list[str]:
    """What went wrong with a call, if anything did: one failure must not cost what else there is. Raises exceptions of the type `but`."""
    try:
        call()
    except but:
        raise
    except (TrainingError, UserError) as error:
        return [f"{what}: {error}"]
    except SystemExit as left:
        if left.code in (130, 143):  # told to stop
            raise
        return [f"{what}: exit code {left.code}"] if left.code else []
    except Exception as error:
        traceback.print_exception(error)
        return [f"{what}: {type(error).__name__}: {error}"]
    return []
