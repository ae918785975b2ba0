"""Spilling: what a pass makes of a large model goes to a temporary file at once, not into memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir

from polycast.model import INLINE_BYTES, weights

#: Arrays below this many bytes stay in memory.
SMALL = 1 << 16


class Spill:
    """Where a pass puts the arrays that it makes: in memory for a small model, in a file for a large one.

    The file lives as long as one of the tensors in it.
    """

    def __init__(self, large: bool) -> None:
        self._folder = _Folder() if large else None

    @classmethod
    def of(cls, model: ir.Model) -> Spill:
        """Look at how large ``model`` is."""
        return cls(sum({id(tensor): tensor.nbytes for tensor in weights(model)}.values()) > INLINE_BYTES)

    def tensor(
        self, array: np.ndarray, name: str, dtype: ir.DataType | None = None, shape: tuple[int, ...] = ()
    ) -> ir.TensorProtocol:
        """Make a tensor of ``array``; of ``dtype`` and ``shape`` where its bytes are packed numbers of that dtype."""
        dims = ir.Shape(shape if dtype is not None else array.shape)
        if self._folder is not None and array.nbytes >= SMALL:
            return _Spilled(self._folder, array, dtype or ir.DataType.from_numpy(array.dtype), dims, name)
        return ir.tensor(array, name=name) if dtype is None else ir.PackedTensor(array, dtype, shape=dims, name=name)


_FILE = "spilled"


class _Folder:
    """A temporary folder that is deleted with the last reference to it, or when the interpreter ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="polycast-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _Spilled(ir.ExternalTensor):
    """A tensor in a temporary file, which it keeps alive."""

    def __init__(self, folder: _Folder, array: np.ndarray, dtype: ir.DataType, shape: ir.Shape, name: str) -> None:
        with open(folder.path / _FILE, "ab") as file:
            offset = file.tell()
            file.write(np.ascontiguousarray(array).data)
        super().__init__(_FILE, offset, array.nbytes, dtype, shape=shape, name=name, base_dir=folder.path)
        self._folder = folder
