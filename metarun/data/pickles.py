"""Pickled image caches, read without trusting them: nothing that a pickle names is ever called.

An array in a pickle is a call of numpy functions. Here each of their names gets a stand-in that only keeps the bytes, shape and type, and
every other name is refused, so the file can build plain containers and numeric arrays and do nothing else.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError


class _Dtype:
    """Stands in for `numpy.dtype`: a code such as `u1`, and the byte order that the pickle sets afterwards."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def real(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[<>=|]?[bifuUS]\d+", self.order + self.code):
            raise pickle.UnpicklingError(f"arrays of {self.code} are not allowed")
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array:
    """Stands in for `numpy.ndarray`; `value` is the array once the pickle has set its state."""

    value: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._fill(raw, dtype, shape, "F" if fortran else "C")

    def _fill(self, raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> "_Array":
        data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 has no bytes
        self.value = np.frombuffer(data, dtype.real()).reshape(shape, order=order)
        return self


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    return _Array()._fill(raw, dtype, shape, order)


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return _from_buffer(raw, dtype, (1,), "C").value[0].item()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"the codec {codec} is not allowed")
    return text.encode("latin1")


STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": dict,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays and plain containers are allowed") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in the pickle `path`, its arrays (in inner dicts too) as read-only numpy arrays.

    Raises UserError for a broken or unsafe file.
    """
    try:
        with path.open("rb") as file:
            content = _plain(_Reader(file, encoding="latin1").load(), 2)
    except Exception as error:  # bytes that are no pickle raise nearly anything
        raise UserError(f"{path}: not a pickle that can be read safely ({str(error).split(chr(10))[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where a dict with the images should be")
    return content


def _plain(value: Any, depth: int) -> Any:
    """`value` with arrays for their stand-ins, in dicts too, `depth` deep: a pickle can hold itself."""
    if isinstance(value, dict) and depth:
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    return value.value if isinstance(value, _Array) else value
