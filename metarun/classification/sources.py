"""Where the tasks of classification come from: numbered episodes, and mini-batches before them where a method has a supervised stage."""

from dataclasses import dataclass

from metarun.data.batches import Batches
from metarun.data.episodes import Episodes, Pixels
from metarun.tasks import Episode, Examples, TaskSource


@dataclass(frozen=True)
class EpisodeSource(TaskSource):
    """Numbered episodes of a part and the images to make them of."""

    episodes: Episodes
    pixels: Pixels
    part: str

    def draw(self, first: int, count: int) -> Episode:
        return self.pixels.episode(self.episodes.draw(first, count), self.episodes.shots)

    def sha256(self, count: int) -> str:
        return self.episodes.sha256(count)


@dataclass(frozen=True)
class StagedSource(TaskSource):
    """Mini-batches up to the number `first`, and from there episodes, if there are any."""

    batches: Batches
    tasks: EpisodeSource | None
    pixels: Pixels
    first: int = 0

    def draw(self, first: int, count: int) -> Episode | Examples:
        if self.tasks is not None and first >= self.first:
            return self.tasks.draw(first, count)
        draws, labels = self.batches.draw(first, count)
        return self.pixels.batch(draws, labels, self.batches.classes)

    def sha256(self, count: int) -> str:
        if self.tasks is None:
            return self.batches.sha256(count)
        tasks = self.tasks.sha256(count)
        return f"{self.batches.sha256(min(count, self.first))}+{tasks}" if self.first else tasks
