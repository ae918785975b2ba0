"""Fixed shapes: a batch that is the first dimension of everything becomes one row, and a runner goes row by row.

Where the batch has a bound, there is a second set of kernels for so many rows at once.
"""

from __future__ import annotations

from dataclasses import replace

from polycast.model import Model, most_of


def batch(model: Model) -> str | None:
    """Give the symbol that is the first dimension of every input and output, and no other dimension of any."""
    ports = (*model.signature.inputs, *model.signature.outputs)
    firsts = {port.shape[0] if port.shape else None for port in ports}
    symbol = firsts.pop() if len(firsts) == 1 else None
    if not isinstance(symbol, str) or symbol == "?":
        return None
    return None if any(symbol in (port.shape or ())[1:] for port in ports) else symbol


def fixed(model: Model, rows: int = 1, *, others_open: bool = False) -> tuple[Model, bool]:
    """Give ``model`` with its batch, where it has one, fixed at ``rows``. Returns: the model, and whether it was.

    others_open: whether it may be where other dimensions are open.
    """
    from polycast.reading.dims import fix_symbols

    symbol = batch(model)
    if symbol is None:
        return model, False
    others = {dim for port in model.signature.inputs for dim in port.shape or ()} - {symbol}
    if not others_open and any(not isinstance(dim, int) for dim in others):
        return model, False
    draft = model.draft()
    fix_symbols(draft, {symbol: rows})
    return replace(model, graph=draft), True


def bound(model: Model) -> int | None:
    """Give the most rows that the batch of ``model`` is stated to have, where it is more than one."""
    symbol = batch(model)
    most = most_of(symbol) if symbol is not None else None
    return most if most is not None and most > 1 and fixed(model)[1] else None
