"""Kernels that read bytes, for a language whose storage has none: four packed in a word, or each widened to a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: What a WGSL storage buffer does not hold, and the word that stands for it.
WORDS = {"bool": "int32", "int8": "int32", "uint8": "uint32"}


@dataclass
class Words:
    """One kernel, whose parameters of bytes become parameters of words.

    packed: positions of those parameters that hold four bytes a word, the earliest in the low bits; they are only
    read. Each byte of the others takes a word of its own.
    """

    function: Any
    packed: set[int]
    buffers: dict[Any, tuple[Any, bool]] = field(default_factory=dict)

    def rewritten(self) -> Any:
        """Give the kernel over words; the kernel itself where it reads no bytes."""
        from tvm import ir, tirx
        from tvm_ffi import structural_map, structural_walk

        swapped: dict[Any, tuple[Any, bool]] = {}
        parameters = []
        for position, parameter in enumerate(self.function.params):
            kind = parameter.ty
            if isinstance(kind, ir.PointerType) and (word := WORDS.get(str(kind.element_type.dtype))):
                packed = position in self.packed
                word = "uint32" if packed else word
                swapped[parameter] = (tirx.Var(parameter.name, ir.PointerType(ir.PrimType(word), "global")), packed)
            parameters.append(swapped[parameter][0] if parameter in swapped else parameter)
        if not swapped:
            return self.function

        def declare(statement: Any) -> None:
            if statement.data in swapped:
                pointer, packed = swapped[statement.data]
                old = statement.buffer
                shape = [(int(old.shape[0]) + 3) // 4] if packed else list(old.shape)
                word = tirx.decl_buffer(shape, str(pointer.ty.element_type.dtype), old.name)
                self.buffers[old] = (word, packed)

        structural_walk(self.function.body, (tirx.DeclBuffer, declare))

        def declared(statement: Any) -> Any:
            if statement.buffer not in self.buffers:
                return statement
            return tirx.DeclBuffer(self.buffers[statement.buffer][0], data=swapped[statement.data][0])

        # Each node is matched before its parts are, while it still reads the old buffer.
        body = structural_map(
            self.function.body,
            [
                (tirx.DeclBuffer, declared),
                (ir.TensorLoad, self._load),
                (tirx.BufferStore, self._store),
                (tirx.Cast, _cast),
            ],
        )
        return tirx.PrimFunc(parameters, body, self.function.ret_type, attrs=self.function.attrs)

    def _load(self, load: Any) -> Any:
        from tvm import tirx

        if load.source not in self.buffers:
            return load
        buffer, packed = self.buffers[load.source]
        [index] = load.indices
        dtype = str(load.ty.dtype)
        if not packed:
            word = tirx.BufferLoad(buffer, [index])
            return word != tirx.const(0, word.ty.dtype) if dtype == "bool" else word
        word = tirx.BufferLoad(buffer, [tirx.shift_right(index, tirx.const(2, "int32"))])
        low = tirx.bitwise_and(index, tirx.const(3, "int32")) * 8
        byte = tirx.bitwise_and(tirx.shift_right(word, low.astype("uint32")), tirx.const(255, "uint32"))
        if dtype == "int8":
            return _signed(byte.astype("int32"))
        return byte != tirx.const(0, "uint32") if dtype == "bool" else byte

    def _store(self, store: Any) -> Any:
        from tvm import tirx

        if store.buffer not in self.buffers:
            return store
        buffer, _ = self.buffers[store.buffer]
        return tirx.BufferStore(buffer, store.value.astype(str(buffer.dtype)), store.indices)


def _cast(cast: Any) -> Any:
    """Keep the low eight bits of what is brought to a byte."""
    from tvm import tirx

    dtype = str(cast.ty.dtype)
    if dtype == "uint8":
        return tirx.bitwise_and(cast.value.astype("uint32"), tirx.const(255, "uint32"))
    if dtype == "int8":
        return _signed(tirx.bitwise_and(cast.value.astype("int32"), tirx.const(255, "int32")))
    return cast


def _signed(byte: Any) -> Any:
    """Read an int32 from 0 to 255 as a signed byte."""
    from tvm import tirx

    return tirx.bitwise_xor(byte, tirx.const(128, "int32")) - tirx.const(128, "int32")
