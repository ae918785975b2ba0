"""Exporters: torch modules and Hugging Face models -> ONNX, checked against the original's outputs."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir

from polycast.errors import InputError
from polycast.model import OPSET, graphs

from . import onnxfile

#: Input name -> array.
Feeds = dict[str, np.ndarray]


def from_torch(source: Any, example_inputs: tuple[Any, ...] | dict[str, Any] | None) -> tuple[ir.Model, str, Feeds]:
    """Export a torch module, in eval mode, or an exported program.

    Returns: the graph, memory-mapped, the name of the module's class, and inputs that it runs on.
    Raises: InputError where torch is missing or cannot export it, and where the export computes something else.
    """
    torch = _require("torch", "torch")
    if not isinstance(source, torch.nn.Module | torch.export.ExportedProgram):
        raise InputError(
            f"cannot load a {type(source).__name__}: expected a path, a Hugging Face id, a torch.nn.Module, "
            "a torch.export.ExportedProgram or an ONNX model"
        )
    is_program = isinstance(source, torch.export.ExportedProgram)
    kind = "ExportedProgram" if is_program else type(source).__name__
    if example_inputs is None and is_program and source.example_inputs is not None:
        args, kwargs = source.example_inputs
    elif example_inputs is None:
        raise InputError(f"{kind} needs example inputs to be exported", "Pass example_inputs=(tensor, …)")
    else:
        args, kwargs = ((), example_inputs) if isinstance(example_inputs, dict) else (tuple(example_inputs), {})
    module = source.module() if is_program else source
    with _eval_mode(module, skip=is_program), torch.no_grad(), _translated(f"torch cannot export {kind}"), _quiet():
        args, kwargs = _in_order(module, args, kwargs)
        expected = _named_tensors(module(*args, **kwargs))
        exported = torch.onnx.export(
            source, args, kwargs=kwargs, dynamo=True, output_names=list(expected), opset_version=OPSET, verbose=False
        )
        graph: ir.Model = exported.model
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        names = [value.name or "" for value in graph.graph.inputs]
        feeds = dict(zip(names, map(_array, given), strict=True))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph, path, external_data="model.data")
        _check_agreement(path, feeds, expected, kind)
        graph, _ = onnxfile.read(path)  # the module may go on training: the weights are those of the file
        _map_weights(graph)
    return graph, kind, feeds


def from_hugging_face(source: str, task: str, *, local: bool) -> tuple[ir.Model, str, Feeds]:
    """Export the transformers model in a folder (``local``, no network) or under an id, through optimum.

    task: optimum's name for it; "" infers it, and takes text-generation without past for a decoder.

    Returns: the graph, memory-mapped, the sha256 (hex) of the exported file, and inputs that the model runs on.
    Raises: InputError where optimum is missing, the model cannot be fetched or exported, or the export disagrees.
    """
    convert = _require("optimum.exporters.onnx.convert", "hf")
    hint = "Is the name right, and is it a safetensors model? The task can be named: ?task=image-classification"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with _translated(f"cannot export {source!r}", hint), _quiet():
            model, task, missing = _fetch(source, task, local)
            convert.onnx_export_from_model(model, folder, task=task, do_validation=False)
        files = sorted(Path(folder).glob("*.onnx"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files)
            raise InputError(
                f"{source!r} exports as several graphs for task {task!r}: expected one, found {found}",
                "Export the part that you need to ONNX, and load that file",
            )
        with _translated(f"cannot run {source!r}"), _quiet():
            feeds, expected = _reference_run(model, task)
        _check_agreement(files[0], feeds, expected, source)
        graph, sha256 = onnxfile.read(files[0])
        if random := sorted(missing & graph.graph.initializers.keys()):
            raise InputError(
                f"{source!r} has no weights for task {task!r}: {', '.join(random)} would be random",
                "Name the task that the model was trained for: ?task=…",
            )
        _map_weights(graph)
    return graph, sha256, feeds


def _infer_task(model_class: type, tasks: Any) -> str:
    """Give optimum's task for a transformers class; some that it can export it does not list, DeiT among them."""
    try:
        return str(tasks.infer_task_from_model(model_class))
    except ValueError:
        task = re.sub(r"(?<!^)(?=[A-Z])", "-", model_class.__name__.partition("For")[2]).lower()
        if task not in tasks.get_all_tasks():
            raise
        return task


def _fetch(source: str, task: str, local: bool) -> tuple[Any, str, set[str]]:
    """Load the transformers model, from safetensors only: give it, its task, and the weights that the files lack."""
    torch, transformers = _require("torch", "hf"), _require("transformers", "hf")
    tasks = _require("optimum.exporters.tasks", "hf").TasksManager
    config = transformers.AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if task:
        task = tasks.map_from_synonym(task)
    elif config.architectures:
        task = _infer_task(getattr(transformers, config.architectures[0]), tasks)
    else:
        task = "feature-extraction"
    kind = tasks.get_model_class_for_task(task, model_type=config.model_type, library="transformers")
    model, found = kind.from_pretrained(
        source,
        local_files_only=local,
        use_safetensors=True,
        trust_remote_code=False,
        torch_dtype=torch.float32,
        output_loading_info=True,
    )
    model.eval().config.use_cache = task.endswith("-with-past")
    return model, task, set(found["missing_keys"])


def _require(module: str, extra: str) -> ModuleType:
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(module)
    except ImportError as error:
        raise InputError(
            f"this model needs {module.split('.')[0]}: {error}", f'pip install "polycast[{extra}]"'
        ) from error


def _reference_run(model: Any, task: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run the original on small seeded inputs: its inputs and its outputs under the names of the exported graph."""
    import torch
    from optimum.exporters.tasks import TasksManager

    make = TasksManager.get_exporter_config_constructor("onnx", model=model, task=task, library_name="transformers")
    has_past = task.endswith("-with-past")
    config = make(model.config, **({"use_past": True, "use_past_in_inputs": True} if has_past else {}))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        feeds = config.generate_dummy_inputs(framework="pt", batch_size=2, sequence_length=16)
        # A past is a tuple in the graph and a cache object in the model: optimum's patch translates.
        with config.patch_model_for_export(model) if has_past else contextlib.nullcontext():
            outputs = model(**config.rename_ambiguous_inputs(dict(feeds)))
    names = {**config.torch_to_onnx_output_map, "past_key_values": "present"}
    return _flat(config, feeds), _flat(config, {names.get(name, name): value for name, value in outputs.items()})


def _flat(config: Any, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Give each tensor of a tuple the name that optimum gives it."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, tuple | list)
        flat |= config.flatten_output_collection_property(name, value) if nested else {name: value}
    return {name: _array(tensor) for name, tensor in flat.items()}


def _check_agreement(
    path: Path, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], source: str
) -> None:
    """Hold the exported graph at ``path`` against the original's outputs.

    The largest difference, over the largest output, may be sqrt(eps) of the dtype: half of its digits.
    Integers have to be equal.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        found = session.run(names, {name: array for name, array in feeds.items() if name in wanted})
    except Exception as error:  # onnxruntime raises a dozen unrelated kinds
        raise InputError(f"the export of {source} cannot be checked: onnxruntime: {_one_line(error)}") from error
    for name, got in zip(names, found, strict=True):
        want = expected.get(name)
        if want is None:
            raise InputError(f"the export of {source} has an output {name!r} that the original lacks")
        if got.shape != want.shape:
            raise InputError(f"the export of {source} gives {name!r} the shape {got.shape}: expected {want.shape}")
        difference, allowed = _difference(got, want)
        if not difference <= allowed:
            raise InputError(
                f"the export of {source} disagrees with the original: output {name!r} differs by {difference:.2g} of "
                f"its largest value, {allowed:.2g} is allowed"
            )


def _difference(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Largest difference over the largest finite value, and what is allowed for the dtype."""
    if not np.issubdtype(want.dtype, np.floating):
        return float(np.any(got != want)), 0.0
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0, np.abs(got.astype(np.float64) - want.astype(np.float64)))
    scale = np.max(np.abs(want), initial=0, where=np.isfinite(want))
    return float(difference.max(initial=0) / (scale or 1)), float(np.sqrt(np.finfo(want.dtype).eps))


def _in_order(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bring keyword inputs into the order of ``forward``, which is the order of the graph's inputs."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return bound.args, bound.kwargs


def _named_tensors(outputs: Any) -> dict[str, np.ndarray]:
    """Name each tensor in what a module gives: by its key where it has one, else by its position."""
    import torch

    found = {}
    for path, value in torch.utils._pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(value, torch.Tensor):
            keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
            name = "_".join(keys)
            found[name if name and not name[0].isdigit() else f"output_{name}".rstrip("_")] = _array(value)
    return found


def _array(value: Any) -> np.ndarray:
    return np.array(value.detach().cpu().numpy())


def _map_weights(graph: ir.Model) -> None:
    """Map the weights now, so that they outlive their file: it is freed with the last of them."""
    for inner in graphs(graph):
        if isinstance(inner, ir.Graph):
            for value in inner.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


@contextlib.contextmanager
def _eval_mode(module: Any, *, skip: bool) -> Iterator[None]:
    """Put every part of ``module`` in eval mode, and back; a program's mode is fixed."""
    training = [] if skip else [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what an exporter prints, logs and warns of from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _translated(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # an exporter raises whatever the model's code raises
        raise InputError(f"{what}: {_one_line(error)}", hint) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
