"""Rows: whether a model computes each row of its batch on its own, so that a runner may take them one by one.

Names and sizes cannot tell: a softmax, a mean or a recurrence along the first axis leaves both as they are. So the
original is run, on rows together and on each of them alone.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from .errors import InputError
from .golden import AMPLIFY, Golden, first_taken, own_rounding, rounding_tolerance
from .model import Model, most_of
from .reference import Original, open_original
from .seeded import seeded_feeds
from .verify import difference

#: So many rows are run together, where a batch may have as many.
ROWS = 3

#: How often numbers are drawn anew; and where no output is a float, since few of those change.
_DRAWS, _DRAWS_OF_CODES = 1, 6

#: Where rounding alone moves outputs by this share of their largest value, rows that mix could pass for rounding.
_TELLING = 0.05


def mixing(model: Model) -> str:
    """Say why the rows of the batch of ``model`` cannot be run one by one; nothing where they can.

    Rows are drawn apart from each other, and near to each other: an attention may look at what is near alone. Masks are
    ones, and then others in each row. Outputs have to agree within rounding.
    """
    ports = (*model.signature.inputs, *model.signature.outputs)
    symbol = model.signature.batch
    if symbol is None or any(port.dtype == "str" for port in ports):
        return "its inputs do not all begin with rows of numbers"
    rows = min(ROWS, most_of(symbol) or ROWS)
    in_codes = not any(port.dtype.startswith("float") for port in model.signature.outputs)
    try:
        original = open_original(model, optimized=False)
    except InputError as error:
        return error.message
    for seed, near in product(range(_DRAWS_OF_CODES if in_codes else _DRAWS), (False, True)):
        drawn = seeded_feeds(model, seed, {symbol: rows}, near=near)
        golden = first_taken(original, (("seeded", feeds) for feeds in drawn))
        if not golden.feeds:
            return f"it was not seen to run on {rows} rows"
        if found := _difference(model, original, golden, rows):
            return found
    return ""


def _difference(model: Model, original: Original, golden: Golden, rows: int) -> str:
    """Say which output is another one where each row is run alone, or nothing."""
    names = [port.name for port in model.signature.outputs]
    [feeds], [together] = golden.feeds, golden.outputs
    try:
        alone = [original.run({name: array[row : row + 1] for name, array in feeds.items()}) for row in range(rows)]
    except InputError:
        return "it does not run on one row"
    worst, output = 0.0, ""
    for name, whole, *parts in zip(names, together, *alone, strict=True):
        if {part.shape for part in parts} != {(1, *whole.shape[1:])} or len(whole) != rows:
            return f"output {name!r} does not have a row for each of its inputs"
        if not (gap := difference(whole, np.concatenate(parts))) <= worst:
            worst, output = gap, name
    if worst <= rounding_tolerance(model):
        return ""
    allowed = AMPLIFY * own_rounding(model, golden, names)
    if allowed > _TELLING:
        return f"rounding alone moves output {output!r} too far to tell whether its rows mix"
    return (
        f"its rows mix: alone, output {output!r} is off by {worst:.2g} of its largest value" if worst > allowed else ""
    )
