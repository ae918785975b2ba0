"""Fixed shapes: a batch whose rows are computed each on its own becomes one row, and a runner goes row by row.

Where the batch has a bound, there is a second set of kernels for so many rows at once.
"""

from __future__ import annotations

from dataclasses import replace

from polycast.model import Model, most_of


def fixed(model: Model, rows: int = 1, *, others_open: bool = False) -> tuple[Model, bool]:
    """Give ``model`` with its batch, where it has one, fixed at ``rows``. Returns: the model, and whether it was.

    others_open: whether it may be where other dimensions are open.
    """
    from polycast.reading.dims import fix_symbols

    others = {dim for port in model.signature.inputs for dim in port.shape or ()} - {model.signature.batch}
    if not others_open and any(not isinstance(dim, int) for dim in others):
        return model, False
    symbol = model.batch
    if symbol is None:
        return model, False
    draft = model.draft()
    fix_symbols(draft, {symbol: rows})
    return replace(model, graph=draft), True


def bound(model: Model) -> int | None:
    """Give the most rows that the batch of ``model`` is stated to have, where it is more than one."""
    symbol = model.signature.batch
    most = most_of(symbol) if symbol is not None else None
    return most if most is not None and most > 1 and fixed(model)[1] else None
