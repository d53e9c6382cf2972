"""`metarun embed`: what a trained network makes of images, a vector for each, in a file for other programs."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from metarun.commands.predict.settings import SHARED, refuse_out, settings, whole_out
from metarun.errors import UserError
from metarun.text.units import counted

if TYPE_CHECKING:
    import numpy as np

ABOUT = "Writes the embedding of every image: the features of the trained network, by its running batch statistics."
EPILOG = f"""key=value
  run=RUN_DIR         the run (needed)
  images=DIR          a folder of images, with or without folders in it, in any format that Pillow reads (needed)
  out=FILE            .npz or .parquet: features (n, D) float32, files, and labels where images are in folders (needed)
{SHARED}
examples
  metarun embed run=outputs/protonet-glyphs-5w1s/2026-01-31_12-00-00-0 images=mine out=mine.npz
"""
KINDS = (".npz", ".parquet")


def command(words: list[str]) -> None:
    """Writes the embeddings and says how many there are. Raises UserError."""
    values = settings("embed", ABOUT, EPILOG, words, ("run", "images", "out"), ("device", "checkpoint", "resample", "invert"))
    out = Path(values["out"])
    if out.suffix not in KINDS:
        raise UserError(f"out: {out} is not allowed; expected a file that ends in {' or '.join(KINDS)}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError("out: .parquet needs pyarrow; pip install 'metarun[parquet]', or write .npz")
    refuse_out(out)
    from metarun.commands.predict.features import embedded
    from metarun.commands.predict.images import files_in
    from metarun.commands.predict.model import trained

    files = files_in("images", values["images"])
    model = trained(values)
    columns = embedded(model, files)
    with whole_out(out) as file:
        write(file, columns, out.suffix)
    count, size = columns["features"].shape
    print(f"{out}: {counted(count, 'image')} of {len(files):,} files, {size} numbers each; images as {model.view}; {model.names[0]}")


def write(file: IO[bytes], columns: "Mapping[str, np.ndarray]", kind: str) -> None:
    """The arrays, all of the same length, as one file."""
    if kind == ".npz":
        import numpy as np

        np.savez(file, **columns)  # type: ignore[arg-type]
        return
    import pyarrow
    from pyarrow import parquet

    features = columns["features"]
    lists = pyarrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
    texts = {key: pyarrow.array(values.tolist(), pyarrow.string()) for key, values in columns.items() if key != "features"}
    parquet.write_table(pyarrow.table({**texts, "features": lists}), file)
