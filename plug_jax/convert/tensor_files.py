"""Files of tensors: read lazily, one tensor in memory at a time, and written the same way.

PyTorch's files are pickles in a zip. They are only opened by `torch.load(weights_only=True)`, which
executes nothing, under a fake mode that reads shapes and offsets but no data. Data are then read or
written by plain file access at those offsets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.convert.arrange import DTYPES
from plug_jax.convert.whole_files import (
    CUT_SHORT,
    check_safetensors,
    check_safetensors_header,
    check_torch_file,
)
from plug_jax.errors import PlugError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    where: str  # file and offset, the same for two names of one tensor


def read_torch_file(path: Path) -> dict[str, Any]:
    """The content of a PyTorch file, with a `Tensor` for each tensor in nested dictionaries.

    A file from PyTorch before 1.6, which is not a zip, cannot be read in parts: it is read whole.

    Raises:
        PlugError: a missing, incomplete or damaged file, or a pickle that asks for more than
            tensors and plain values, which is how a file could execute arbitrary code.
    """
    check_torch_file(path)
    torch = import_torch()
    from torch._subclasses.fake_tensor import FakeTensorMode

    lazy = zipfile.is_zipfile(path)
    if not lazy:
        print(f"{path} is of PyTorch before 1.6: it is read whole into memory", file=sys.stderr)
    try:
        with (
            torch.serialization.safe_globals(_numpy_state()),
            FakeTensorMode() if lazy else contextlib.nullcontext(),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("Please file an issue")[0]
        raise PlugError(
            f"{path} is refused: its pickle asks for more than tensors and plain values, and "
            "opening it in full would run code that it brings. Have its author save the state dict "
            "alone. "
            f"({' '.join(reason.split())[:400]})"
        ) from error
    except Exception as error:  # on a damaged file the unpickler may raise anything
        if "unexpected EOF" in str(error):
            raise PlugError(f"{path} {CUT_SHORT}") from error
        raise PlugError(f"{path} is a damaged PyTorch file: {error!r}; fetch it again") from error
    if not isinstance(content, Mapping):
        raise PlugError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return {name: _lazily(path, lazy, value) for name, value in content.items()}


def _numpy_state() -> list[Any]:
    """The types in a pickled NumPy random state, which Megatron and DeepSpeed save too."""
    reconstruct = np.empty(0).__reduce__()[0]
    return [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ]


def _lazily(path: Path, lazy: bool, value: Any) -> Any:
    import torch

    if isinstance(value, Mapping):
        return {name: _lazily(path, lazy, each) for name, each in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    shape, strides = tuple(value.shape), value.stride()
    dtype = _numpy_dtype(str(value.dtype).removeprefix("torch."), path)
    storage = value.untyped_storage()
    start = int(value.storage_offset()) * dtype.itemsize
    if lazy:
        assert storage._checkpoint_offset is not None
        start += storage._checkpoint_offset
        where = f"{path}:{start}"
    else:
        where = f"{path}:{storage.data_ptr() + start}"
    # A transposed matrix has the same offset and other strides.
    count = (
        1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if value.numel() else 0
    )

    def read() -> np.ndarray:
        if lazy:
            flat = np.fromfile(path, dtype, count, offset=start)
        else:
            data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            flat = data[start : start + count * dtype.itemsize].view(dtype)
        if flat.size != count:
            raise PlugError(f"{path} is cut short; fetch it again")
        byte_strides = [s * dtype.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, byte_strides)

    return Tensor(shape, dtype, read, where)


_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. PlugError if it is not one, or incomplete."""
    check_safetensors_header(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        check_safetensors(
            path,
            max((8 + length + entry["data_offsets"][1] for entry in header.values()), default=0),
        )
        return {n: _safetensor(path, 8 + length, n, entry) for n, entry in header.items()}
    except PlugError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PlugError(
            f"{path} is a damaged safetensors file: {error!r}; fetch it again"
        ) from error


def _safetensor(path: Path, data: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    dtype = _numpy_dtype(_SAFETENSORS.get(entry["dtype"], entry["dtype"]), path, name)
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    count = math.prod(shape)
    if start < 0 or end - start != count * dtype.itemsize:
        raise ValueError(f"{name} has {end - start} bytes in it, and its shape is {shape}")

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, count, offset=data + start).reshape(shape)

    return Tensor(shape, dtype, read, f"{path}:{data + start}")


def _numpy_dtype(name: str, path: Path, tensor: str = "a tensor") -> np.dtype:
    try:
        return DTYPES.get(name) or np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        raise PlugError(f"{path}: {tensor} is of type {name}, which is not supported") from None


class TensorFileWriter:
    """A file with its header written, to which tensors are written in any order."""

    def __init__(self, path: Path, places: Mapping[str, int]) -> None:
        self._file, self._places = open(path, "r+b"), dict(places)  # noqa: SIM115

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a contiguous array of the shape and dtype that the header gives it."""
        self._file.seek(self._places.pop(name))
        self._file.write(array.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Close the file; every tensor must have been put."""
        assert not self._places, f"never written: {sorted(self._places)}"
        self._file.close()


Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # by name


def create_safetensors(path: Path, shapes: Shapes) -> TensorFileWriter:
    """Start a safetensors file of these shapes and dtypes, in this order."""
    codes = {name: code for code, name in _SAFETENSORS.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name, (shape, dtype) in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": codes[dtype.name],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        places[name] = start
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return TensorFileWriter(path, {name: 8 + len(text) + place for name, place in places.items()})


def create_torch_file(
    path: Path,
    shapes: Shapes,
    *,
    tied: Mapping[str, str],
    wrap: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> TensorFileWriter:
    """Start a PyTorch file of `wrap(state dict)`.

    Args:
        path: the file.
        shapes: the state dict's, in its order.
        tied: further names in it, and the tensors that they share.
        wrap: makes the saved object from the state dict, with that under the key "module".
    """
    torch = import_torch()
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = {
            name: torch.empty(shape, dtype=getattr(torch, dtype.name))
            for name, (shape, dtype) in shapes.items()
        }
    tensors |= {name: tensors[of] for name, of in tied.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(wrap(tensors), path)
    with FakeTensorMode():
        saved = torch.load(path, weights_only=True)["module"]
    return TensorFileWriter(
        path, {name: saved[name].untyped_storage()._checkpoint_offset for name in shapes}
    )


def import_torch() -> Any:
    """The module torch. PlugError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise PlugError(
            "PyTorch's own files need PyTorch: pip install 'plug-jax[convert]' (safetensors files "
            "do not)"
        ) from error
    return torch
