"""``export_onnx``: an image classifier as one ONNX graph, checked against onnxruntime.

Adapters are merged into the weights and attention is fused back, the class features of a text head are computed once
and become a constant, so the graph is an ordinary vision model::

    pixels (batch, 3, H, W) float32, prepared as the metadata says  ->  logits (batch, C) float32,  batch free

The file carries ``classes``, ``mean``, ``std``, ``size`` and ``interpolation`` as JSON in its metadata. Weights beyond
the two gigabytes that one ONNX file may hold go to ``NAME.onnx.data`` beside it.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attachment.merge import merge
from ..backbones.adapted import adapted, uncompiled
from ..errors import UserError
from ..files import temporary_folder
from .tensors import file_in

MODEL = "classifier.onnx"
OPSET = 18
LARGEST_FILE = 2_000_000_000  # bytes of weights
# Largest difference of the logits, relative to the largest logit.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: the file.
        opset: version of the ONNX operators.
        difference: largest absolute difference between onnxruntime's logits and PyTorch's on random pictures.
    """

    path: Path
    opset: int
    difference: float

    def __str__(self) -> str:
        return f"opset {self.opset}, logits of onnxruntime within {self.difference:.2g} of PyTorch's: {self.path}"


def export_onnx(classifier: nn.Module, out: str | os.PathLike, opset: int = OPSET) -> OnnxReport:
    """Write a classifier as ONNX and compare its logits with onnxruntime's, for one picture and for three.

    Args:
        classifier: an image classifier with ``backbone`` (attached or not), ``head``, ``classes`` and
            ``freeze_text()``; it stays as it is.
        out: an ``.onnx`` file, or a folder for ``classifier.onnx``.
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
    path = file_in(Path(out), MODEL, ".onnx")
    plain = _merged(classifier)
    with temporary_folder(path) as folder:
        new = folder / path.name
        _trace(plain, new, opset)
        _describe(plain, new)
        difference = _compare(plain, new)
        for file in sorted(folder.iterdir(), reverse=True):  # weights first, then the graph that needs them
            os.replace(file, path.parent / file.name)
    return OnnxReport(path, opset, difference)


def _merged(classifier: nn.Module) -> nn.Module:
    """Make a float32 copy on the CPU without adapters, its class features constant."""
    plain = uncompiled(copy.deepcopy(classifier)).cpu().float().eval()
    if adapted(plain.backbone):
        plain.backbone = merge(plain.backbone, in_place=True)
    plain.freeze_text()
    return plain.requires_grad_(False)


def _trace(plain: nn.Module, path: Path, opset: int) -> None:
    weights = sum(tensor.numel() * tensor.element_size() for tensor in plain.state_dict().values())
    try:
        torch.onnx.export(
            plain,
            (_pictures(plain, 2),),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            external_data=weights > LARGEST_FILE,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise UserError(
            f"'{plain.backbone.name}' cannot be exported to ONNX opset {opset}: {str(error).splitlines()[0]}"
        ) from error


def _describe(plain: nn.Module, path: Path) -> None:
    """Put the class names and the preprocessing into the file."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    about = {"classes": plain.classes, **plain.backbone.preprocess.to_dict()}
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in about.items()})
    onnx.save(graph, path)


@torch.no_grad()
def _compare(plain: nn.Module, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        pixels = _pictures(plain, count)
        expected = plain(pixels)
        (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
        difference = float((torch.from_numpy(logits) - expected).abs().max())
        if not difference <= TOLERANCE * float(expected.abs().max()):
            raise UserError(
                f"onnxruntime's logits differ from PyTorch's by {difference:.2g}: this model does not survive the "
                "export to ONNX; export merged weights instead."
            )
        worst = max(worst, difference)
    return worst


def _pictures(plain: nn.Module, count: int) -> Tensor:
    """Draw random pictures (count, 3, H, W), always the same."""
    size = plain.backbone.preprocess.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
