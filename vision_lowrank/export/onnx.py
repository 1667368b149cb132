"""``export_onnx``: a saved model's network as one ONNX graph, checked against onnxruntime.

Adapters are merged into the weights and attention is fused back, so the graph is an ordinary vision model. What goes in
and comes out, the model says (:mod:`.onnx_graph`); the batch is free. A classifier has its class features as a
constant::

    pixels (batch, 3, H, W) float32, prepared as the metadata says  ->  logits (batch, C) float32

The file's metadata says the rest as JSON: a classifier's ``classes``, ``mean``, ``std``, ``size``, ``interpolation``.
Weights beyond the two gigabytes that one ONNX file may hold go to ``NAME.onnx.data`` beside it.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..attachment.merge import merge
from ..backbones.adapted import adapted, uncompiled
from ..errors import UserError
from ..files import temporary_folder
from .onnx_graph import OnnxGraph
from .tensors import file_in

OPSET = 18
LARGEST_FILE = 2_000_000_000  # bytes of weights
# Largest difference of an output, relative to its largest value.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: the file.
        opset: version of the ONNX operators.
        outputs: names of what it computes.
        difference: largest absolute difference between onnxruntime's outputs and PyTorch's on random pictures.
    """

    path: Path
    opset: int
    outputs: tuple[str, ...]
    difference: float

    def __str__(self) -> str:
        what = " and ".join(self.outputs)
        return f"opset {self.opset}, {what} of onnxruntime within {self.difference:.2g} of PyTorch's: {self.path}"


def export_onnx(model: nn.Module, out: str | os.PathLike, opset: int = OPSET) -> OnnxReport:
    """Write a saved model's network as ONNX; compare its outputs with onnxruntime's, for a batch of one and of three.

    Args:
        model: has a ``backbone`` (attached or not), and ``onnx_graph()`` that gives an :class:`OnnxGraph`; it stays as
            it is.
        out: an ``.onnx`` file, or a folder for one.
        opset: version of the ONNX operators, 18 or above.

    Raises:
        UserError: the packages for ONNX are missing, the model cannot be merged or exported, or onnxruntime computes
            something else; nothing is left then.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"ONNX export needs {package}: pip install 'vision-lowrank[onnx]'.") from error
    plain = _merged(model)
    graph = plain.onnx_graph()
    path = file_in(Path(out), graph.file, ".onnx")
    with temporary_folder(path) as folder:
        new = folder / path.name
        _trace(plain, graph, new, opset)
        _describe(graph, new)
        difference = _compare(plain, graph, new)
        for file in sorted(folder.iterdir(), reverse=True):  # weights first, then the graph that needs them
            os.replace(file, path.parent / file.name)
    return OnnxReport(path, opset, graph.outputs, difference)


def _merged(model: nn.Module) -> nn.Module:
    """Make a float32 copy on the CPU without adapters."""
    plain = uncompiled(copy.deepcopy(model)).cpu().float().eval()
    if adapted(plain.backbone):
        plain.backbone = merge(plain.backbone, in_place=True)
    return plain.requires_grad_(False)


def _trace(plain: nn.Module, graph: OnnxGraph, path: Path, opset: int) -> None:
    weights = sum(tensor.numel() * tensor.element_size() for tensor in plain.state_dict().values())
    batch = torch.export.Dim("batch")
    try:
        torch.onnx.export(
            plain,
            graph.draw(2),
            path,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            opset_version=opset,
            dynamo=True,
            external_data=weights > LARGEST_FILE,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise UserError(
            f"'{plain.backbone.name}' cannot be exported to ONNX opset {opset}: {str(error).splitlines()[0]}"
        ) from error


def _describe(graph: OnnxGraph, path: Path) -> None:
    """Put the metadata into the file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in graph.about.items()})
    onnx.save(model, path)


@torch.no_grad()
def _compare(plain: nn.Module, graph: OnnxGraph, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        arguments = graph.draw(count)
        answer = plain(*arguments)
        given = {name: value.numpy() for name, value in zip(graph.inputs, arguments, strict=True)}
        found = session.run(list(graph.outputs), given)
        expected = answer if isinstance(answer, tuple) else (answer,)
        for name, one, other in zip(graph.outputs, found, expected, strict=True):
            difference = float((torch.from_numpy(one) - other).abs().max())
            if not difference <= TOLERANCE * float(other.abs().max()):
                raise UserError(
                    f"onnxruntime's {name} differ from PyTorch's by {difference:.2g}: this model does not survive the "
                    "export to ONNX; export merged weights instead."
                )
            worst = max(worst, difference)
    return worst
