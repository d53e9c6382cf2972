"""Which runs stand in a cell: those of its experiment, the ones trained as it asks before all others, and never by their accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from metarun.analysis.tables.differences import Difference, differences
from metarun.analysis.tables.protocol import record_of
from metarun.analysis.tables.recipe import Recipe, composed
from metarun.runs.catalogue import Found
from metarun.runs.records import Record
from metarun.runs.status import FINISHED

SAME = ("experiment", "algorithm", "dataset", "backbone")


@dataclass(frozen=True)
class Filling:
    """A cell with what there is for it.

    training, test: its configuration, and that with the overrides for the test; recipe: the words of the published one alone, published:
    with the same test. chosen: a finished run for every seed, all trained alike; records: their tests, None where there is none; exact:
    whether they are trained as the cell asks, and deviations: how not; settings: how they differ from the recipe. others: how many finished
    runs are left out because they were trained otherwise, by their differences from the cell; repeated: how many because of another run
    with their seed; unfinished: runs without an end, and whether they are trained as the cell asks.
    """

    training: Recipe
    test: Recipe
    recipe: tuple[str, ...]
    published: tuple[str, ...]
    chosen: tuple[Found, ...] = ()
    records: tuple[Record | None, ...] = ()
    exact: bool = True
    settings: tuple[Difference, ...] = ()
    deviations: tuple[Difference, ...] = ()
    others: Mapping[tuple[Difference, ...], int] = field(default_factory=dict)
    repeated: int = 0
    unfinished: tuple[tuple[Found, bool], ...] = ()


def still_empty(experiment: str, train: Sequence[str], test: Sequence[str], config_dir: str | None) -> Filling:
    """A cell's configurations, from the overrides for its training and, after them, for its test. Raises UserError."""
    recipe = (f"experiment={experiment}",)
    training, tested = (composed(words, config_dir) for words in ((*recipe, *train), (*recipe, *train, *test)))
    return Filling(training, tested, recipe, (*recipe, *test))


def filled(empty: Filling, runs: Sequence[Found], seeds: Sequence[int] | None, config_dir: str | None) -> Filling:
    """The cell with the runs that belong to it; with `seeds`, only those."""
    training, test = empty.training, empty.test
    own = [run for run in runs if belongs(run, training) and (seeds is None or run.config["seed"] in seeds)]
    groups: dict[tuple[Difference, ...], list[Found]] = {}
    unfinished = []
    for run in own:
        apart = differences(run.config, run.choices, training.words, config_dir)
        if run.state == FINISHED:
            groups.setdefault(apart, []).append(run)
        else:
            unfinished.append((run, not apart))
    if not groups:
        return replace(empty, unfinished=tuple(unfinished))
    taken = () if () in groups else max(groups, key=lambda apart: (*_size(groups[apart]), sorted(map(str, apart))))
    chosen = one_for_every_seed(groups[taken], training, test)
    return replace(
        empty,
        chosen=tuple(chosen),
        records=tuple(record_of(run, training, test) for run in chosen),
        exact=not taken,
        settings=differences(chosen[0].config, chosen[0].choices, empty.recipe, config_dir),
        deviations=taken,
        others={apart: len(found) for apart, found in groups.items() if apart != taken},
        repeated=len(groups[taken]) - len(chosen),
        unfinished=tuple(unfinished),
    )


def belongs(run: Found, training: Recipe) -> bool:
    """Whether a run is one of the cell's experiment, by its choices and its training tasks."""
    tasks = (run.config.get("task", {}), training.values["task"])
    same_task = all(tasks[0].get(key) == tasks[1][key] for key in ("ways", "shots"))
    return same_task and all(run.choices.get(group) == training.choices.get(group) for group in SAME)


def _size(runs: Sequence[Found]) -> tuple[int, int]:
    """Seeds, and tasks that each run was trained on."""
    return len({run.config["seed"] for run in runs}), runs[0].config["steps"] * runs[0].config["tasks_per_step"]


def one_for_every_seed(runs: Sequence[Found], training: Recipe, test: Recipe) -> list[Found]:
    """Of several runs with one seed, one that was tested as the cell asks if there is one, and of those the newest."""

    def rank(run: Found) -> tuple[bool, str, str]:
        return record_of(run, training, test) is not None, run.status.get("updated") or "", str(run.folder)

    last = {run.config["seed"]: run for run in sorted(runs, key=rank)}
    return [last[seed] for seed in sorted(last)]
