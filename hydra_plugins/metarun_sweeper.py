"""Hydra's door to `metarun.sweeps.sweep`, since Hydra takes sweepers from this namespace only.

Hydra reads it at every start, so it imports nothing heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SweeperConfig:
    """`hydra.sweeper`: `params` are sweeps as on the command line, `points` lists of overrides that are jobs by themselves."""

    _target_: str = "hydra_plugins.metarun_sweeper.MetarunSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    points: list[Any] | None = None
    max_batch_size: int | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="metarun", node=SweeperConfig, provider="metarun")


class MetarunSweeper(Sweeper):
    """A grid whose jobs have folders by their configuration: done once, gone on with where it was cut off."""

    def __init__(self, params: Mapping[str, Any], points: Sequence[Sequence[str]] | None, max_batch_size: int | None) -> None:
        self.fixed = [f"{key}={value}" for key, value in params.items()]
        self.points, self.batch_size = points or [[]], max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Raises UserError for a bad point, TrainingError if not every job finished."""
        from metarun.errors import UserError
        from metarun.sweeps.sweep import Sweep

        if not all(isinstance(point, Sequence) and all(isinstance(word, str) for word in point) for point in self.points):
            raise UserError("hydra.sweeper.points: expected a list of lists of overrides, like [['seed=0'],['seed=1']]")
        words = [[*self.fixed, *arguments, *point] for point in self.points]
        assert self.config is not None and self.context is not None  # after `setup`
        return Sweep(self.config, self.context, self.task_function).run(words, self.batch_size)
