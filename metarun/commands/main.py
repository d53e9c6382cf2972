"""The commands behind `metarun`. No DictConfig leaves this module, `compose` and `changes`: all else gets plain dicts and paths."""

import logging
import sys
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.config import changes, compose
from metarun.config.refusals import in_one_line, refusal
from metarun.config.schema import check, check_integers, refuse_unwritable
from metarun.config.targets import check_targets
from metarun.errors import TrainingError, UserError

log = logging.getLogger("metarun")


def run(command: str, words: list[str]) -> None:
    """Runs `train`, `plan`, `evaluate`, `tune` or `verify`; raises UserError for whatever the user can mend."""
    args = parse(words)
    begins = command == "train" and not resumed_from(args)
    own_cfg = args.cfg == "job" and not begins and command in (*changes.RUN_KEY, "tune")  # Hydra knows of no earlier run or space
    only_shown = args.help or args.hydra_help or (args.cfg and not own_cfg) or args.info or args.shell_completion
    with in_one_line(lambda without: compose.known_keys(command, args, without)):
        compose.require_choices(command, args)
        if only_shown or begins:
            flags = [word for word in words if word not in args.overrides]
            overrides = compose.unswept(args.overrides) if command == "tune" else args.overrides
            sys.argv[1:] = [*flags, *overrides]  # what Hydra itself reads; it wants the overrides in one place
            hydra.main(config_path=str(compose.conf_dir()), config_name=command, **compose.VERSION)(job)()
        elif args.multirun:
            raise UserError(f"--multirun: {command} takes one run at a time")
        else:
            {"train": resume, "plan": plan, "evaluate": evaluate, "tune": tune, "verify": verify}[command](args)


def parse(words: list[str]) -> Namespace:
    """Hydra's own flags and overrides, with a wrong flag refused in one line."""

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    parser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(words)  # overrides may stand before and after a flag
    if args.run + args.multirun + args.shell_completion + (args.cfg is not None) + (args.info is not None) > 1:
        error("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    return args


def resumed_from(args: Namespace) -> str | None:
    """The value of `resume=`."""
    values = [word.partition("=")[2] for word in args.overrides if word.startswith("resume=")]
    return values[-1] if values and values[-1] not in ("", "null") else None


class CheckBeforeRun(Callback):
    """Refuses a run before Hydra makes its folder: this is the last moment at which nothing is written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        logging.disable(logging.WARNING)  # the job says it all again, into its log too
        try:
            check_and_prepare(*new_run(config))
        except Exception as error:  # Hydra turns a callback's exceptions into warnings; only SystemExit stops it
            raise SystemExit(report(error)) from None
        finally:
            logging.disable(logging.NOTSET)


def new_run(config: DictConfig) -> tuple[dict[str, Any], Path]:
    """The values and the folder of a run that is still to begin, from a config with Hydra's node. Raises UserError for the folder."""
    HydraConfig.instance().set_config(config)  # Hydra does it only later, and `${hydra:...}` may stand in a value
    cfg = compose.run_values(config)
    run_dir = Path(str(config.hydra.run.dir))
    refuse_unwritable("hydra.run.dir", run_dir)
    return cfg, run_dir


def check_and_prepare(cfg: dict[str, Any], run_dir: Path) -> None:
    """Everything that can refuse a training run, in the order of its cost; writes nothing into the run folder."""
    check(cfg)
    check_targets(cfg)
    from metarun.training.build import build

    build(cfg, run_dir)


def report(error: Exception) -> int:
    """Prints one line for what the user can mend and for a failed training, a traceback for a bug; returns the exit code."""
    line = refusal(error)
    if line is None:
        traceback.print_exception(error)
        return 1
    print(f"metarun: {line}", file=sys.stderr)
    return 1 if isinstance(error, TrainingError) else 2


def job(cfg: DictConfig) -> float:
    """One training run inside its folder; the tested accuracy is what a sweeper gets."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        return job_of_sweep(cfg, settings, folder)
    choices = {str(group): choice for group, choice in settings.runtime.choices.items() if not str(group).startswith("hydra/")}
    try:
        from metarun.commands.train import train

        return float(train(compose.run_values(cfg), folder, choices)["accuracy"])
    except Exception as error:
        raise SystemExit(report(error)) from None


def job_of_sweep(cfg: DictConfig, settings: Any, folder: Path) -> float:
    """A run of a sweep, in a process of its own; the launcher gets its accuracy or, as a TrainingError, why there is none."""
    from metarun.sweeps.job import run_point

    places = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
    flags = [word for place in places for word in ("--config-dir", place)]
    if settings.job.config_name != "train":
        flags += ["--config-name", settings.job.config_name]
    try:
        return run_point(folder, [*settings.overrides.hydra, *settings.overrides.task], flags, cfg.sweep.retry)
    except Exception as error:
        log.error("%s: %s", folder.name, error if isinstance(error, TrainingError) else traceback.format_exc())
        raise


def resume(args: Namespace) -> None:
    """`metarun train resume=RUN_DIR`: the run's own configuration in its own folder."""
    cfg, choices, run_dir = changes.resumed(args)
    if args.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        return
    check_and_prepare(cfg, run_dir)
    from metarun.commands.train import train

    log_to(logging.StreamHandler(sys.stdout), logging.FileHandler(run_dir / "train.log"))
    train(cfg, run_dir, choices)


def plan(args: Namespace) -> None:
    """`metarun plan`: what the same line after `train` would take."""
    if resumed_from(args):
        raise UserError("resume: not allowed here; plan measures a run that is still to begin")
    cfg, run_dir = new_run(compose.compose("plan", args, with_hydra=True))
    check(cfg)
    check_targets(cfg)
    from metarun.commands.plan import plan as lines

    log_to(logging.StreamHandler(sys.stdout))
    for line in lines(cfg, run_dir):
        print(line, flush=True)


def evaluate(args: Namespace) -> None:
    """`metarun evaluate run=RUN_DIR`: the run's own configuration, changed only where the line says so."""
    cfg, run_dir = changes.evaluated(args)
    if args.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        return
    check(cfg)
    check_targets(cfg)
    from metarun.training.testing import evaluate

    log_to(logging.StreamHandler(sys.stdout))
    evaluate(cfg, run_dir)


def tune(args: Namespace) -> None:
    """`metarun tune`: runs of the same line after `train`, with values searched for."""
    try:
        from metarun.sweeps.tune.command import tune as search
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("tune needs Optuna; pip install 'metarun[tune]'") from error
    log_to(logging.StreamHandler(sys.stdout))
    search(args)


def verify(args: Namespace) -> None:
    """`metarun data verify`: what is there of a dataset, what is missing."""
    cfg = compose.values(compose.compose("verify", args))
    check_integers(cfg, "task.")
    check_targets(cfg)
    from hydra.utils import instantiate

    from metarun.commands.verify import verify as lines

    for line in lines(instantiate(cfg["dataset"]), cfg["task"]):
        print(line)


def log_to(*handlers: logging.Handler) -> None:
    """Plain lines to the given places, as Hydra sets it up for the runs that it starts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
