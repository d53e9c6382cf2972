"""What is looked at beside the accuracy, by hand; and the ensemble of a run's best checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, Metarun, random_episode, spec
from torch import Tensor, nn

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.ensemble import Ensemble
from metarun.algorithms.maml import MAML
from metarun.backbones.conv4 import Conv4
from metarun.classification.diagnostics import diagnose, scalars
from metarun.nn.batch_norm import MODES
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples, Predictor


class ClassZero(FewShotLearner):
    """Always answers with class 0."""

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        return lambda query: torch.eye(support.ways)[0].expand(*query.shape[:2], -1)


class Moody(FewShotLearner):
    """Answers with the nearest support image's class, if its brightest is of class 0; else with class 0."""

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        good = support.x.flatten(2).mean(2).argmax(1) == 0

        def predict(query: Tensor) -> Tensor:
            nearest = -torch.cdist(query.flatten(2), support.x.flatten(2))
            return torch.where(good[:, None, None], nearest, torch.eye(support.ways)[0])

        return predict


def test_inner_steps_and_batch_statistics_by_hand() -> None:
    torch.manual_seed(0)
    learner, episode, device = MAML(Conv4(1, 16, (4, 4)), spec(3), 0.5, 1, test_inner_steps=2), random_episode(4, 3, 2, 3), Device("cpu")
    learner.double()
    found = diagnose(learner, episode, "query", device)
    assert learner.training and len(found["inner_steps"]) == 3 and set(found["batch_norm"]) == set(MODES)
    learner.eval()
    with torch.no_grad():
        for mode in MODES:
            scores = learner.adapt(episode.support, mode)(episode.query.x)
            correct = [float(row.argmax() == label) for task, labels in zip(scores, episode.query.y, strict=True)
                       for row, label in zip(task, labels, strict=True)]  # fmt: skip
            assert found["batch_norm"][mode] == pytest.approx(100 * sum(correct) / len(correct))
        loss = nn.functional.cross_entropy(
            learner.adapt(episode.support, "query")(episode.query.x).flatten(0, 1), episode.query.y.flatten()
        )
    assert found["inner_steps"][2] == {"accuracy": found["batch_norm"]["query"], "loss": pytest.approx(float(loss))}
    assert scalars(found)["inner_accuracy/2"] == found["inner_steps"][2]["accuracy"]


def test_the_spread_over_orders_of_the_labels_by_hand() -> None:
    episode, device = random_episode(8, 5, 1, 1, dtype=torch.float32), Device("cpu")
    assert diagnose(ClassZero(spec()), episode, "query", device)["label_spread"] == 0  # right once, whichever class is number 0
    same = Episode(episode.support, episode.support)
    brightest = episode.support.x.flatten(2).mean(2).argmax(1).tolist()
    orders = [torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2, 3)]
    accuracies = [[100.0 if order[0] == image else 20.0 for order in ([0, 1, 2, 3, 4], *orders)] for image in brightest]
    spread = float(np.mean([np.std(task, ddof=1) for task in accuracies]))
    assert spread > 0 and diagnose(Moody(spec()), same, "query", device)["label_spread"] == pytest.approx(spread, rel=1e-4)


def test_an_ensemble_averages_scores() -> None:
    episode = random_episode(2, 3, 1, 2)
    members = [ClassZero(spec()), Moody(spec())]
    scores = Ensemble(members).adapt(episode.support)(episode.query.x)
    first, second = (member.adapt(episode.support)(episode.query.x) for member in members)
    torch.testing.assert_close(scores, (first + second) / 2)
    (last,) = Ensemble(members).trajectory(episode.support)
    assert torch.equal(last(episode.query.x), scores)


def test_the_best_checkpoints_of_a_run_are_kept_and_tested_together(metarun: Metarun, tmp_path: Path) -> None:
    line = f"train {TINY} steps=4 protocol.ensemble=2 protocol.diagnostics=2 hydra.run.dir=run"
    assert metarun(line).code == 0
    assert metarun(f"train {TINY} protocol.ensemble=3 hydra.run.dir=short").err.startswith("metarun: protocol.ensemble: 3 is not allowed")
    kept = sorted(path.stem for path in (tmp_path / "run" / "checkpoints").glob("val-*.pt"))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    ranking = last["ranking"]
    assert kept == sorted(f"val-{step}" for _, step in ranking) and len(kept) == 2
    (file,) = (tmp_path / "run" / "evaluations").iterdir()
    record = json.loads(file.read_text())
    assert record["checkpoint"] == "+".join(f"val-{step}.pt" for _, step in ranking)
    assert record["diagnostics"]["episodes"] == 2 and len(record["diagnostics"]["inner_steps"]) == 1
    assert metarun("evaluate run=run protocol.ensemble=1").code == 0
    outcome = metarun("evaluate run=run protocol.ensemble=3")
    assert outcome.code == 2 and "protocol.ensemble: 3 is not allowed; the run was trained with keep_best=2" in outcome.err
    outcome = metarun("evaluate run=run protocol.ensemble=2 protocol.selection=last")
    assert outcome.code == 2 and "protocol.ensemble: 2 is not allowed without" in outcome.err
