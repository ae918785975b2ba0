"""Layer costs: what each layer of a build would take more, were it left in float."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from polycast.evaluating.worker import saved

from .build import Build
from .model import name_of
from .op_times import layer_times, load_graph
from .sensitivity import Sensitivity

if TYPE_CHECKING:
    from polycast.evaluating.worker import Feeds


def layer_costs(build: Build, floats: Build, feeds: Feeds) -> dict[str, float]:
    """Give the seconds a run that each layer takes more in ``floats`` than in ``build``, by its name.

    floats: a build of the same model that computes in float. feeds: what one run takes.
    Returns: nothing where no sensitivity says what the layers of ``build`` are, or its runtime does not tell.
    """
    path = build.path / "sensitivity.json"
    file = floats.path / str(floats.manifest["runtime"].get("model", ""))
    if not path.is_file() or file.suffix != ".onnx":
        return {}
    layers = Sensitivity.from_json(json.loads(path.read_text(encoding="utf-8")), str(path)).layers
    known = {name_of(node) for node in load_graph(file).all_nodes()}
    with saved(dict(feeds)) as given:
        plain, own = (layer_times(each, layers, known, given) for each in (floats, build))
    if plain is None or own is None:
        return {}
    return {layer.name: round(float(more), 9) for layer, more in zip(layers, plain - own, strict=True)}
