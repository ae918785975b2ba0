"""Fixed shapes: a batch that is the first dimension of everything becomes one row, and a runner goes row by row."""

from __future__ import annotations

from dataclasses import replace

from polycast.model import Model


def batch(model: Model) -> str | None:
    """Give the symbol that is the first dimension of every input and output, and no other dimension of any."""
    ports = (*model.signature.inputs, *model.signature.outputs)
    firsts = {port.shape[0] if port.shape else None for port in ports}
    symbol = firsts.pop() if len(firsts) == 1 else None
    if not isinstance(symbol, str) or symbol == "?":
        return None
    return None if any(symbol in (port.shape or ())[1:] for port in ports) else symbol


def fixed(model: Model) -> tuple[Model, bool]:
    """Give ``model`` with its batch, where it has one, fixed at one row. Returns: the model, and whether it was."""
    from polycast.reading.dims import fix_dims

    symbol = batch(model)
    if symbol is None:
        return model, False
    shapes = {
        port.name: tuple(1 if dim == symbol else dim for dim in port.shape or ()) for port in model.signature.inputs
    }
    if any(not isinstance(dim, int) for shape in shapes.values() for dim in shape):
        return model, False
    draft = model.draft()
    fix_dims(draft, shapes)  # type: ignore[arg-type]  # every symbol is gone
    return replace(model, graph=draft), True
