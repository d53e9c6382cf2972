"""`metarun predict`: a trained model adapts to the user's own classes and answers for the user's own images."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metarun.commands.predict.settings import SHARED, refuse_out, settings, whole_out
from metarun.errors import UserError

if TYPE_CHECKING:  # torch is imported once the line is found to be good
    from metarun.commands.predict.prediction import Answer

ABOUT = "Adapts a trained model to classes of your own, a few images each, and writes what it takes other images for."
EPILOG = f"""key=value
  run=RUN_DIR         the run (needed)
  support=DIR         a folder with one folder of images per class, in any format that Pillow reads (needed)
  query=DIR           the images to answer for; those in a folder named like a class are counted as right or wrong (needed)
  out=FILE.csv        a line per image: file, prediction, its class if known, a probability per class (default: printed)
  batch_norm=MODE     query | running | support | support+one (default: as the run is tested); query takes all images as one batch
{SHARED}
examples
  metarun predict run=outputs/protonet-glyphs-5w1s/2026-01-31_12-00-00-0 support=mine/known query=mine/new
  metarun predict run=RUN_DIR support=known query=new out=answers.csv device=cpu batch_norm=running
"""


def command(words: list[str]) -> None:
    """Writes or prints the predictions, and says how many are right where that is known. Raises UserError."""
    more = ("out", "batch_norm", "device", "checkpoint", "resample", "invert")
    values = settings("predict", ABOUT, EPILOG, words, ("run", "support", "query"), more)
    out = Path(values["out"]) if "out" in values else None
    if out:
        refuse_out(out)
    from metarun.commands.predict.images import files_in
    from metarun.commands.predict.model import trained
    from metarun.commands.predict.prediction import Score, answers, refuse_shown, summary, support_of

    known, asked = (files_in(key, values[key]) for key in ("support", "query"))
    refuse_shown(asked, known)
    model = trained(values)
    support, score = support_of(known, Path(values["support"]), model), Score()
    lines = table(support.names, score.counted(answers(model, support, asked)))
    if out:
        with whole_out(out) as file:
            file.writelines(line.encode("utf-8", "surrogateescape") for line in lines)  # a name that is no UTF-8 stays as it is
    else:
        for line in lines:
            print(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), end="")
    print("\n".join(summary(model, support, score)), file=sys.stdout if out else sys.stderr, flush=True)


def table(names: Sequence[str], answers: "Iterable[Answer]") -> Iterator[str]:
    """The lines of the CSV, the header with the first answer. Raises UserError if there is none."""
    empty = True
    for answer in answers:
        if empty:
            yield row("file", "predicted", "class", *(f"p({name})" for name in names))
        empty = False
        yield row(answer.file, answer.predicted, answer.known, *map(str, answer.probabilities))
    if empty:
        raise UserError("query: no file in it can be read as an image")


def row(*cells: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
