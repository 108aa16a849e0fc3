"""Finds the face detector and the face recogniser (ONNX) in a folder or in InsightFace's model zoo."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.algorithms.face_alignment import CROP_SIZE
from cleanup.errors import ModelError, first_line, raise_shortage

MODEL_SUFFIX = ".onnx"
FP16_SUFFIX = "_fp16"
_MIN_DETECTOR_OUTPUTS = 5


@dataclass(frozen=True)
class ModelFiles:
    """The models found in a folder.

    Attributes:
        recogniser: The recogniser; its stem is the model's name, whichever file runs.
        recogniser_fp16: The same model in half precision (``NAME_fp16.onnx``), for GPUs; None where there is none.
        detector: None where the folder holds none.
    """

    recogniser: Path
    recogniser_fp16: Path | None
    detector: Path | None

    @property
    def paths(self) -> list[Path]:
        """All files that may be loaded."""
        return [p for p in (self.recogniser, self.recogniser_fp16, self.detector) if p is not None]


def resolve_model_directory(name_or_dir: str) -> Path:
    """Turns ``--models`` into a folder, downloading a pack of InsightFace's model zoo on first use.

    Raises:
        ModelError: The folder does not exist and no pack of that name can be had.
    """
    given = Path(name_or_dir).expanduser()
    if given.is_dir():
        return given.resolve()
    if os.sep in name_or_dir or name_or_dir.startswith("."):
        raise ModelError(f"--models {name_or_dir}: no such folder")
    root = Path("~/.insightface").expanduser()
    pack = root / "models" / name_or_dir
    if any(pack.glob(f"*{MODEL_SUFFIX}")):
        return pack
    from insightface.utils import ensure_available

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return Path(ensure_available("models", name_or_dir, root=str(root)))
    except Exception as error:
        raise_shortage(error, f"model pack {name_or_dir!r}")
        raise ModelError(
            f"model pack {name_or_dir!r} is neither a folder nor in {root}/models and could not be downloaded "
            f"({first_line(error)}); give --models a folder that holds a detector and a recogniser"
        ) from error


def find_model_files(directory: Path) -> ModelFiles:
    """Tells detector and recogniser apart by their graphs, as InsightFace does.

    Raises:
        ModelError: The folder holds no recogniser, or more than one of a kind, or a broken file, or one that leads out
            of the folder: a link, or a model that names files elsewhere.
    """
    detectors, recognisers = [], []
    for path in sorted(directory.glob(f"*{MODEL_SUFFIX}")):
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ModelError(
                f"{path}: a link to {path.resolve()}, outside the model folder; give --models the folder it lies in"
            )
        kind = _kind_of_model(path)
        if kind == "detector":
            detectors.append(path)
        elif kind == "recogniser":
            recognisers.append(path)
    halves = {
        p
        for p in recognisers
        if p.with_stem(p.stem.removesuffix(FP16_SUFFIX)) in recognisers and p.stem.endswith(FP16_SUFFIX)
    }
    recognisers = [p for p in recognisers if p not in halves]
    if len(recognisers) != 1 or len(detectors) > 1:
        raise ModelError(
            f"{directory}: needs one recogniser and at most one detector (*.onnx), found "
            f"{len(recognisers)} and {len(detectors)}: {[p.name for p in recognisers + detectors]}"
        )
    return ModelFiles(recognisers[0], next(iter(halves), None), detectors[0] if detectors else None)


def _kind_of_model(path: Path) -> str | None:
    graph = _load_graph(path)
    if not graph.input:
        raise ModelError(f"{path}: not a readable ONNX file (it has no input)")
    if len(graph.output) >= _MIN_DETECTOR_OUTPUTS:
        return "detector"
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    n_pixels = shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0
    is_recogniser = len(graph.input) == 1 and n_pixels >= CROP_SIZE and n_pixels % 16 == 0 and n_pixels != 192
    return "recogniser" if is_recogniser else None


def _load_graph(path: Path) -> Any:
    """The graph of a model, without the data it keeps in other files; those have to lie beside it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable ONNX file ({first_line(error)})") from error
    folder = path.parent.resolve()
    for tensor in _tensors_of(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not location or not (folder / location).resolve().is_relative_to(folder):
                raise ModelError(f"{path}: keeps data in {location!r}, which is not beside it; refused")
            if not (folder / location).is_file():
                raise ModelError(f"{path}: keeps data in {location}, which is missing; put it beside the model")
    return graph


def _tensors_of(graph: Any) -> Iterator[Any]:
    """All tensors of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors_of(inner)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
