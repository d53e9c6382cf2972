"""All that can be refused of a training run without beginning it: cheap enough for every point of a sweep."""

import json
from typing import Any

from hydra.utils import instantiate

from metarun.config.schema import check
from metarun.config.targets import check_targets
from metarun.nn.device import Device
from metarun.training.build import Config, facts_of, make_optimizer, refuse_unfit, training_batches
from metarun.training.learners import make_learner

ANY = {"classes": 2, "names": ["one", "other"], "shape": None}
"""Stand-in facts, where the data lie elsewhere."""


class PointCheck:
    """Raises UserError for a configuration that `train` would refuse.

    local: the runs are done on this machine, so its data are looked at too; each dataset is loaded once, however many points have it.
    """

    def __init__(self, local: bool) -> None:
        self.local, self.sources = local, dict[str, Any]()

    def __call__(self, cfg: Config) -> str | None:
        """Returns the fingerprint of the images that are trained on, where they are looked at."""
        check(cfg)
        check_targets(cfg)
        source = self.source(cfg["dataset"])
        batches = training_batches(cfg, source, augment=False) if self.local else None
        learner = make_learner(cfg, Device("cpu"), facts_of(batches) if batches else ANY)
        make_optimizer(cfg, learner.parameters())
        if batches is None:
            return None
        Device(**cfg["device"])
        refuse_unfit(cfg, learner, source)
        return batches.table.fingerprint

    def source(self, node: Config) -> Any:
        """The source of images of a dataset node, whose splits are read once."""
        key = json.dumps(node, sort_keys=True)
        if key not in self.sources:
            self.sources[key] = instantiate(node)
        return self.sources[key]
