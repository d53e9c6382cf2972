"""`metarun COMMAND ...`: picks the command, and turns refusals into one line. Imports nothing heavy: `metarun --help` answers at once."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from metarun.config.schema import near
from metarun.errors import TrainingError, UserError
from metarun.sweeps.child import watch_parent
from metarun.version import __version__

USAGE = """metarun: meta-learning experiments from configuration

  metarun train [group=choice] [key=value]          train a learner, then test it by its protocol
  metarun train resume=RUN_DIR                      go on with an interrupted run
  metarun train --multirun seed=0,1,2               one run for every combination
  metarun plan [group=choice] [key=value]           what that would take: memory and time, measured on a few steps
  metarun evaluate run=RUN_DIR [key=value]          test the checkpoint of a run
  metarun predict run=RUN_DIR support=DIR query=DIR  classes of your own, from a few images of each
  metarun embed run=RUN_DIR images=DIR out=FILE     a vector for every image, by the trained network
  metarun tune 'KEY=interval(A,B)' [key=value]       search for the best values, by accuracy on validation
  metarun runs [DIR]                                all runs below a folder: state, rate, accuracy
  metarun table NAME [DIR]                          a paper's table: published numbers beside those of the runs
  metarun compare RUN_A RUN_B                       whether two runs differ, on the same episodes
  metarun report DIR                                one HTML page of tables, curves and episodes
  metarun data verify dataset=NAME [key=value]      what is there of a dataset, what is missing
  metarun COMMAND --help                            groups, main keys and examples of a command
  metarun -sc install=bash                          print tab completion, for eval "$(metarun -sc install=bash)"
  metarun --version
"""
HYDRAS = ("train", "plan", "evaluate", "tune", "data")  # composed of groups
READERS = {
    "predict": "metarun.commands.predict.command",
    "embed": "metarun.commands.predict.embedding",
    "runs": "metarun.analysis.listing.command",
    "table": "metarun.analysis.tables.command",
    "compare": "metarun.analysis.compare.command",
    "report": "metarun.analysis.report.command",
}
COMMANDS = (*HYDRAS, *READERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 1 for a training that failed, 2 for what the user can mend; a bug raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    watch_parent()
    try:
        return dispatch(arguments)
    except (UserError, TrainingError) as error:
        print(f"metarun: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # whoever reads, `head` perhaps, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # while composing or building; a training run saves and leaves by itself
        return 130


def dispatch(arguments: list[str]) -> int:
    """Calls the command that the first word names."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"metarun {__version__}")
        return 0
    if arguments[0] in ("-sc", "--shell-completion", "--shell_completion"):
        return complete(arguments)
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UserError(f"{command}: no such command; {near(command, COMMANDS)}expected one of {', '.join(COMMANDS)}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a `_target_` may name a module beside the user's own groups; last, so it hides nothing
    if command in READERS:
        import_module(READERS[command]).command(rest)
        return 0
    if command == "data":
        command, rest = data_command(rest)
    return run(command, rest)


def data_command(rest: list[str]) -> tuple[str, list[str]]:
    """`metarun data verify ...` is the command `verify`."""
    if rest[:1] == ["verify"]:
        return "verify", rest[1:]
    if not rest or rest[0] in ("-h", "--help"):
        return "verify", ["--help"]
    raise UserError(f"data {rest[0]}: no such command; expected data verify")


def run(command: str, rest: list[str]) -> int:
    """Hands the rest of the line to the command. Hydra reads `sys.argv`, so it has to see a line without the command's name."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what went wrong instead of printing its own page and leaving
    from metarun.commands import main as commands

    kept = sys.argv
    sys.argv = [kept[0], *rest]
    try:
        commands.run(command, rest)
    finally:
        sys.argv = kept
    return 0


def complete(arguments: list[str]) -> int:
    """Shell completion. Hydra completes `metarun group=...`, so the command is taken out of the line that it is shown."""
    line = os.environ.get("COMP_LINE", "")
    program, *words = line.split(" ")
    words = [word for word in words if word]
    command = next(iter(words[:1]), "")
    if "install" in arguments[-1]:  # install=bash and uninstall=bash only print a script
        return run("train", arguments)
    if command in READERS and (len(words) > 1 or line.endswith(" ")):
        return 0  # files, which the shell knows
    if command not in COMMANDS or (len(words) == 1 and not line.endswith(" ")):
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
        return 0
    words = words[1:]
    if command == "data":
        if not words or (words == ["verify"[: len(words[0])]] and not line.endswith(" ")):
            print("verify")
            return 0
        command, words = "verify", words[1:]
    os.environ["COMP_LINE"] = " ".join([program, *words]) + (" " if line.endswith(" ") else "")
    return run(command, arguments)
