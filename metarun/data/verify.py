"""What `metarun data verify` prints."""

from metarun.data.source import SPLITS, Source
from metarun.data.table import ImageTable


def verify(dataset: Source) -> list[str]:
    """Reads all of `dataset` and says what is in each split, what differs from the published data, and the fingerprint, a line each.

    Raises UserError, naming the file, for what no load would accept.
    """
    table = dataset.build()
    parts = dataset.assign(table.names)
    lines = [_split(split, table.select([name for name in table.names if parts.get(name) == split])) for split in SPLITS]
    if dataset.standard[0]:
        lines += [f"differs: {line}" for line in dataset.differences(table)] or ["complete: classes and images as published"]
    return [*lines, f"fingerprint: {table.fingerprint}"]


def _split(split: str, table: ImageTable) -> str:
    if not table.names:
        return f"{split}: no classes"
    counts = table.counts
    return f"{split}: {len(counts)} classes, {counts.sum()} images, {counts.min()} to {counts.max()} per class"
