"""By what a cell is tested: which of a run's tests count, what else would have to be tested, and how to say it."""

from collections.abc import Mapping
from typing import Any

from metarun.analysis.tables.differences import Difference
from metarun.analysis.tables.recipe import Recipe, composed, text
from metarun.config.changes import completed
from metarun.config.schema import flat
from metarun.runs.catalogue import Found
from metarun.runs.records import Record

KEYS = ("split", "episodes", "seed", "ways", "shots", "queries", "batch_norm", "selection", "ensemble", "views")
TOGETHER = ("ways", "shots", "queries")  # one may follow another, so none is left to chance where one changes
NOT_OF_A_TEST = ("root", "residency", "download", "rotations.train", "augment")  # of a dataset: where it is, and what only training sees
STATISTICS = {
    "query": "normalised with the other queries",
    "running": "running statistics",
    "support": "normalised by the support set",
    "support+one": "each query normalised with the support set",
    None: "statistics of the method's own",
}


def images(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about test images."""
    return {key: value for key, value in flat(dataset).items() if key not in NOT_OF_A_TEST}


def tested_by(cell: Recipe) -> dict[str, Any]:
    """The protocol of a cell, as far as a number depends on it."""
    return {key: cell.values["protocol"][key] for key in KEYS}


def algorithm_of_test(run: Found, training: Recipe, test: Recipe) -> dict[str, Any]:
    """The run's own algorithm, but for what the cell changes for the test alone."""
    before, after = flat(training.values["algorithm"]), flat(test.values["algorithm"])
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return {**flat(run.config["algorithm"]), **changed}


def record_of(run: Found, training: Recipe, test: Recipe) -> Record | None:
    """The run's test by the cell's protocol: the newest, of those in the run's own precision if there are any. None if there is none."""
    found = [record for record in run.records if _matches(record.values, run, training, test)]
    precision = run.config["device"]["precision"]
    own = [record for record in found if record.values["config"]["device"]["precision"] == precision]
    return next(iter(reversed(own or found)), None)


def _matches(record: Mapping[str, Any], run: Found, training: Recipe, test: Recipe) -> bool:
    config, step = record["config"], record["checkpoint_step"]
    protocol = completed(config)["protocol"]
    if protocol["batch_norm"] is None and test.values["protocol"]["batch_norm"] is not None:
        protocol["batch_norm"] = record["batch_norm"]  # what null came to
    if protocol["selection"] == "last":
        stale = step < run.status.get("step", step)  # the status is written now and then, so it may lag behind too
    else:
        stale = step != (run.status.get("best") or {}).get("step", step)
    return (
        not stale  # a test of before the run went on
        and {key: protocol[key] for key in KEYS} == tested_by(test)
        and images(config["dataset"]) == images(test.values["dataset"])
        and flat(config["algorithm"]) == algorithm_of_test(run, training, test)
    )


def words_of_test(run: Found, training: Recipe, test: Recipe) -> list[str]:
    """The overrides with which `metarun evaluate` tests the run by the cell's protocol."""
    before, wanted = completed(run.config)["protocol"], tested_by(test)
    changed = {key for key in KEYS if before[key] != wanted[key]}
    if changed.intersection(TOGETHER):
        changed.update(TOGETHER)
    words = [f"protocol.{key}={text(wanted[key])}" for key in KEYS if key in changed]
    for group, there, asked in (
        ("dataset", images(run.config["dataset"]), images(test.values["dataset"])),
        ("algorithm", flat(run.config["algorithm"]), algorithm_of_test(run, training, test)),
    ):
        words += [f"{group}.{key}={text(value)}" for key, value in asked.items() if there.get(key) != value]
    return words


def departures(test: Recipe, published: Recipe) -> tuple[Difference, ...]:
    """How a test is not that of the published recipe; ways and shots are the column's."""
    ours, theirs = tested_by(test), tested_by(published)
    keys = [key for key in KEYS if key not in ("ways", "shots") and ours[key] != theirs[key]]
    return tuple(Difference(f"protocol.{key}", text(ours[key]), text(theirs[key])) for key in keys)


def described(cell: Recipe, config_dir: str | None = None) -> str:
    """The protocol in a line; of the images, what is not as the dataset's own file has it."""
    p = tested_by(cell)
    parts = [
        f"{p['episodes']:,} {p['split']} tasks" + f" of seed {p['seed']}" * bool(p["seed"]),
        f"{p['queries']} {'query' if p['queries'] == 1 else 'queries'} a class",
        STATISTICS[p["batch_norm"]],
        {"best_val": "best checkpoint on validation", "last": "last checkpoint"}[p["selection"]],
    ]
    if p["ensemble"] > 1:
        parts[-1] = f"mean scores of the {p['ensemble']} best checkpoints on validation"
    usual = images(composed((f"dataset={cell.choices['dataset']}",), config_dir).values["dataset"])
    own = [f"{key}={text(value)}" for key, value in images(cell.values["dataset"]).items() if usual.get(key) != value]
    return ", ".join(parts) + (f"; images with {' '.join(own)}" if own else "")
