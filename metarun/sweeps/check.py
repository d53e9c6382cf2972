"""All that can be refused of a training run without beginning it: cheap enough for every point of a sweep."""

import json
from typing import Any

from hydra.utils import instantiate

from metarun.config.schema import check
from metarun.config.targets import check_targets
from metarun.nn.device import Device
from metarun.training.build import Config, fitted, make_optimizer
from metarun.training.learners import make_kind, make_learner

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
        kind = make_kind(cfg, Device("cpu"), self.source(cfg["dataset"]))
        facts = kind.facts(cfg["train_split"]) if self.local else ANY
        learner = make_learner(cfg, kind, facts)
        make_optimizer(cfg, learner.parameters())
        if not self.local:
            return None
        Device(**cfg["device"])
        fitted(cfg, kind, learner, facts)
        return str(facts["fingerprint"])

    def source(self, node: Config) -> Any:
        """The source of images of a dataset node, whose splits are read once."""
        key = json.dumps(node, sort_keys=True)
        if key not in self.sources:
            self.sources[key] = instantiate(node)
        return self.sources[key]
