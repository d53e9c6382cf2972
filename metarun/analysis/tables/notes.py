"""What stands below a table: letters for protocols, numbers for how runs were trained, signs for published numbers."""

from collections.abc import Iterable, Iterator
from itertools import product
from string import ascii_lowercase

from metarun.analysis.tables.matching import Filling
from metarun.analysis.tables.protocol import described
from metarun.analysis.tables.table import Cell, Note

UNVERIFIED, OVER_SEEDS, UNSTATED = SIGNS = ("†", "‡", "§")
MEANING = {
    UNVERIFIED: "published number of which not every digit was seen in a source",
    OVER_SEEDS: "published ± is the standard deviation over seeds",
    UNSTATED: "it is not stated what the published ± is",
}
OURS = "ours: accuracy in percent ± half of its 95 % interval over test tasks; in parentheses what was published"
IMAGES = "test images are as conf/dataset/ has them, but for what is named with a letter"
SEVERAL = "; with several seeds of their mean, as all have the same tasks; sd is over the seeds"


class Notes:
    """Gathers the notes of a table; a text that is said already keeps its mark."""

    def __init__(self, config_dir: str | None) -> None:
        self.config_dir, self.protocols, self.trainings = config_dir, dict[str, str](), dict[str, str]()
        self.letters = ("".join(letters) for length in (1, 2) for letters in product(ascii_lowercase, repeat=length))

    def of_cell(self, cell: Cell, filling: Filling) -> tuple[str, ...]:
        """The marks of a cell with a recipe."""
        protocol, training = described(filling.test, self.config_dir), "; ".join(of_training(cell, filling))
        if protocol not in self.protocols:
            self.protocols[protocol] = next(self.letters)
        if not training:
            return (self.protocols[protocol],)
        return self.protocols[protocol], self.trainings.setdefault(training, str(len(self.trainings) + 1))

    def of_published(self, cell: Cell) -> tuple[str, ...]:
        """The signs of a published number."""
        states = (cell.verified is False, cell.published_kind == "std", cell.published_kind == "unstated")
        return tuple(sign for sign, holds in zip(SIGNS, states, strict=True) if holds)

    def all(self, cells: Iterable[Cell]) -> tuple[Note, ...]:
        """Every note, in the order of its kind and its mark; those that are of all numbers are the first and have no mark."""
        cells = list(cells)
        used = {mark for cell in cells for mark in cell.marks}
        several = any(len(cell.seeds) > 1 for cell in cells)
        first = [Note("", OURS + SEVERAL * several)] if any(cell.seeds for cell in cells) else []
        first += [Note("", IMAGES)] if self.protocols else []
        marked = [Note(mark, text) for texts in (self.protocols, self.trainings) for text, mark in texts.items()]
        return (*first, *marked, *(Note(sign, MEANING[sign]) for sign in SIGNS if sign in used))


def of_training(cell: Cell, filling: Filling) -> Iterator[str]:
    """How the runs of a cell were trained otherwise than the recipe, or than the table asks; and which runs it leaves out."""
    if cell.settings:
        yield f"with {', '.join(cell.settings)}"
    if cell.runs and filling.deviations and filling.training.words != filling.recipe:
        yield f"the table asks for {', '.join(f'{apart.key}={apart.recipe}' for apart in filling.deviations)}"
    if filling.others:
        yield "left out: " + ", ".join(f"{runs(count)} with {settings(apart)}" for apart, count in filling.others.items())
    if filling.repeated:
        yield f"left out: {runs(filling.repeated)} with the seed of another"


def settings(apart: Iterable[object]) -> str:
    return " ".join(map(str, apart)) or "the settings asked for"


def runs(count: int) -> str:
    return f"{count} run" + "s" * (count > 1)
