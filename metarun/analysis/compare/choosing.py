"""Records of evaluations: finding them in run folders, and choosing those that were tested on the same episodes."""

from collections.abc import Sequence
from pathlib import Path

from metarun.config.schema import word
from metarun.errors import UserError
from metarun.runs.records import Record, read

EPISODES = ("split", "ways", "shots", "queries", "episodes", "seed")
"""The keys of a protocol that say which episodes it has."""


def found(run: str) -> list[Record]:
    """The records of a run folder, newest first, or the one in the file `run`. Raises UserError if there is none, or a damaged one."""
    path = Path(run)
    if not path.exists():
        raise UserError(f"{run}: no such folder; expected a run folder or the file of an evaluation")
    files = [path] if path.is_file() else list((path / "evaluations").glob("*.json"))
    if not files:
        hint = f"metarun evaluate {word('run', run)}" if (path / "checkpoints").is_dir() else "expected a run folder"
        raise UserError(f"{run}: no evaluation in it; {hint}")
    return [read(file, run) for file in sorted(files, key=lambda file: (-file.stat().st_mtime_ns, file.name))]


def chosen(candidates: Sequence[Sequence[Record]], prefix: str = "") -> tuple[list[Record], list[str]]:
    """One record of each run, all of the same episodes, and remarks on the choice.

    Of several lists of episodes that all have, the longest one whose hash begins with `prefix`; of several records of a run on it, one
    with settings that the others have too, the newest. Raises UserError if there is no such list.
    """
    common = set.intersection(*({record.tested for record in records} for records in candidates))
    lists = {record.tested: record for record in reversed(candidates[0]) if record.tested in common}
    if not lists:
        raise UserError(f"the runs were not tested on the same episodes: {_what_each_has(candidates)}; {_remedy(candidates)}")
    named = {tested: record for tested, record in lists.items() if tested[0].startswith(prefix)}
    if not named:
        raise UserError(
            f"--record: {prefix} begins none of the episodes that all runs have; allowed: {'; '.join(map(str, lists.values()))}"
        )
    tested = max(named, key=lambda key: named[key].values["episodes"])
    remarks = [
        f"all runs have {record} too; --record {key[0][:8]} takes them" for key, record in lists.items() if key != tested and not prefix
    ]
    same = [[record for record in records if record.tested == tested] for records in candidates]

    def shared(record: Record) -> int:
        return sum(any(other.protocol == record.protocol for other in others) for others in same[1:])

    first = max(same[0], key=shared)
    records = [first, *(max(others, key=lambda record: record.protocol == first.protocol) for others in same[1:])]
    for record, others in zip(records, same, strict=True):
        if len(others) > 1:
            remarks.append(
                f"{record.run} has {len(others)} records of these episodes; {record.file.name} is taken (a file can be named too)"
            )
    return records, remarks


def _what_each_has(candidates: Sequence[Sequence[Record]]) -> str:
    return "; ".join(f"{records[0].run} has {', '.join(sorted({str(record) for record in records}))}" for records in candidates)


def _remedy(candidates: Sequence[Sequence[Record]]) -> str:
    """The command that tests a run on the longest list of the first run, if the two have the same images at all."""
    wanted = max(candidates[0], key=lambda record: int(record.values["episodes"]))
    lacking = next(records for records in candidates[1:] if wanted.tested not in {record.tested for record in records})
    images = {record.tested[1][:8] for record in lacking}
    if wanted.tested[1][:8] not in images:
        return f"their images differ too ({wanted.tested[1][:8]} and {', '.join(sorted(images))}), so both need tests on the same dataset"
    protocol = wanted.values["config"]["protocol"]
    return " ".join(["metarun evaluate", word("run", lacking[0].run), *(f"protocol.{key}={protocol[key]}" for key in EPISODES)])
