"""The recogniser of a folder on another scale of similarities."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from cleanup.edges.model_files import find_model_files

SCALES = ("0.75", "2.4", "512")


def scale_models(source: Path, scale: str, target: Path) -> Path:
    """A folder with the same detector and the recogniser with something behind it.

    Args:
        source: Folder of both.
        scale: ``512``: a fixed orthonormal projection to so many dimensions, which keeps all cosines. Else the length
            of a fixed vector that is added to unit embeddings, which pushes the cosines of strangers up.
        target: The folder to make.
    """
    files = find_model_files(source)
    assert files.detector is not None
    target.mkdir()
    shutil.copyfile(files.detector, target / files.detector.name)
    model = onnx.load(str(files.recogniser))
    dimension = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    rng = np.random.default_rng(19)
    if scale == "512":
        projection = np.linalg.qr(rng.normal(size=(512, dimension)))[0].T
        nodes = [helper.make_node("MatMul", ["unscaled", "projection"], ["scaled"])]
        _append(model, nodes, {"projection": projection}, 512)
    else:
        constant = rng.normal(size=dimension)
        nodes = [
            helper.make_node("LpNormalization", ["unscaled"], ["unit"], axis=-1, p=2),
            helper.make_node("Add", ["unit", "constant"], ["scaled"]),
        ]
        _append(model, nodes, {"constant": float(scale) * constant / np.linalg.norm(constant)}, dimension)
    onnx.save(model, str(target / f"{files.recogniser.stem}-{scale}.onnx"))
    return target


def _append(
    model: ModelProto, nodes: list[NodeProto], constants: dict[str, NDArray[np.float64]], dimension: int
) -> None:
    """Puts nodes from ``unscaled`` to ``scaled`` between what the model gives and its output."""
    graph, output = model.graph, model.graph.output[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["unscaled" if name == output.name else name for name in names]
    graph.node.extend(nodes)
    graph.node[-1].output[0] = output.name
    graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items())
    output.type.tensor_type.shape.dim[-1].dim_value = dimension
    onnx.checker.check_model(model)
