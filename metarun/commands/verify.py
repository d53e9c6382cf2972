"""What `metarun data verify` prints."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from metarun.data.episodes import Episodes
from metarun.data.source import SPLITS, Source
from metarun.data.table import ImageTable


def verify(dataset: Source, task: Mapping[str, int] | None = None) -> Iterator[str]:
    """Says what is in each split of `dataset`, what differs from the published data, and the fingerprint, a line each.

    Raises UserError, naming the file, for what no load would accept; and after the lines, naming the class or the split, where there are
    fewer images or classes than `task` (ways, shots, queries) takes.
    """
    table = dataset.build()
    parts = dataset.assign(table.names)
    splits = {split: table.select([name for name in table.names if parts.get(name) == split]) for split in SPLITS}
    for split, part in splits.items():
        yield _line(split, part)
    if dataset.standard[0]:
        yield from [f"differs: {line}" for line in dataset.differences(table)] or ["complete: classes and images as published"]
    yield f"fingerprint: {table.fingerprint}"
    for split, part in splits.items():
        if task and part.names:
            Episodes(replace(part, rotations=dataset.turns(split)), task["ways"], task["shots"], task["queries"], 0, split)


def _line(split: str, table: ImageTable) -> str:
    if not table.names:
        return f"{split}: no classes"
    counts = table.counts
    return f"{split}: {len(counts)} classes, {counts.sum()} images, {counts.min()} to {counts.max()} per class"
