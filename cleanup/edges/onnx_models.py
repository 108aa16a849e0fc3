"""Loads the face detector and the face recogniser (ONNX) and says which device really runs them.

InsightFace's model zoo classes do the pre- and postprocessing of the models; this module finds the files, builds the
sessions, and refuses what would silently be slow or wrong: a session that fell back to the CPU though CUDA was asked
for, two ONNX Runtime distributions in one environment, a folder with two recognisers.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE
from cleanup.errors import ModelError, first_line

PROVIDER_OF_DEVICE = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}
MODEL_SUFFIX = ".onnx"
_MIN_DETECTOR_OUTPUTS = 5
KEEP_ONE = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --force-reinstall --no-deps onnxruntime-gpu "
    "(onnxruntime where it has no wheel)"
)


@dataclass(frozen=True)
class DetectedFace:
    """One detection: ``bbox`` (4,) and ``landmarks`` (5, 2) in pixels of the image given, ``confidence`` 0..1."""

    bbox: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    confidence: float


@dataclass(frozen=True)
class ModelSpec:
    """Plain values a worker loads models from; safe to send to another process.

    Attributes:
        directory: Folder that holds the ONNX files, or its URL.
        device: Device of the detector: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        embed_device: Device of the recogniser, or ``same``.
        n_threads: Threads for one session; 0 means all cores.
    """

    directory: str
    device: str = "auto"
    embed_device: str = "same"
    n_threads: int = 0


@dataclass(frozen=True)
class ModelFiles:
    """The models found in a folder. ``detector`` is None where the folder holds none."""

    recogniser: Path
    detector: Path | None


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
        raise ModelError(
            f"model pack {name_or_dir!r} is neither a folder nor in {root}/models and could not be downloaded "
            f"({first_line(error)}); give --models a folder that holds a detector and a recogniser"
        ) from error


def find_model_files(directory: Path) -> ModelFiles:
    """Tells detector and recogniser apart by their graphs, as InsightFace does.

    Raises:
        ModelError: The folder holds no recogniser, or more than one of a kind, or a broken file.
    """
    detectors, recognisers = [], []
    for path in sorted(directory.glob(f"*{MODEL_SUFFIX}")):
        kind = _kind_of_model(path)
        if kind == "detector":
            detectors.append(path)
        elif kind == "recogniser":
            recognisers.append(path)
    if len(recognisers) != 1 or len(detectors) > 1:
        raise ModelError(
            f"{directory}: needs one recogniser and at most one detector (*.onnx), found "
            f"{len(recognisers)} and {len(detectors)}: {[p.name for p in recognisers + detectors]}"
        )
    return ModelFiles(recognisers[0], detectors[0] if detectors else None)


def _kind_of_model(path: Path) -> str | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable ONNX file ({first_line(error)})") from error
    if not graph.input:
        raise ModelError(f"{path}: not a readable ONNX file (it has no input)")
    if len(graph.output) >= _MIN_DETECTOR_OUTPUTS:
        return "detector"
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    n_pixels = shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0
    is_recogniser = len(graph.input) == 1 and n_pixels >= CROP_SIZE and n_pixels % 16 == 0 and n_pixels != 192
    return "recogniser" if is_recogniser else None


def find_onnxruntime_distributions() -> list[str]:
    """Names and versions of the installed ONNX Runtime distributions; more than one overwrite each other's files."""
    found = []
    for name in ("onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def check_onnxruntime_distribution(device: str) -> str:
    """Returns the ONNX Runtime distribution that is installed.

    Two of them do no harm on the CPU; where CUDA is asked for or there to be had, it may silently be gone.

    Args:
        device: Device asked for.

    Raises:
        ModelError: There is none, or there are two and CUDA matters.
    """
    found = find_onnxruntime_distributions()
    needs_cuda = device == "cuda" or (device == "auto" and has_nvidia_driver())
    if not found or (len(found) > 1 and needs_cuda):
        wanted = "both " + " and ".join(found) + " are" if found else "no ONNX Runtime is"
        raise ModelError(f"{wanted} installed; keep exactly one: {KEEP_ONE}")
    return " and ".join(found)


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver; the CUDA provider is listed by ONNX Runtime even where none is."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _providers_for(device: str) -> list[str]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if has_nvidia_driver() else "mps" if PROVIDER_OF_DEVICE["mps"] in available else "cpu"
        provider = PROVIDER_OF_DEVICE[device]
        return (
            list(dict.fromkeys([provider, PROVIDER_OF_DEVICE["cpu"]]))
            if provider in available
            else ["CPUExecutionProvider"]
        )
    if device not in PROVIDER_OF_DEVICE:
        raise ModelError(f"device {device!r} is not one of auto, cpu, cuda, mps")
    provider = PROVIDER_OF_DEVICE[device]
    if provider not in available:
        raise ModelError(
            f"device {device} was asked for but this ONNX Runtime has no {provider} (it has {', '.join(available)}); "
            "install onnxruntime-gpu or use --device cpu"
        )
    return [provider] if device == "cpu" else [provider, PROVIDER_OF_DEVICE["cpu"]]


def _load(path: Path, device: str, n_threads: int) -> Any:
    import onnxruntime
    from insightface.model_zoo import get_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads or (os.cpu_count() or 1)
    options.log_severity_level = 3
    try:
        model = get_model(str(path), providers=_providers_for(device), sess_options=options)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from error
    if model is None:
        raise ModelError(f"{path}: neither a face detector nor a face recogniser that InsightFace knows")
    used = model.session.get_providers()[0]
    if device != "auto" and used != PROVIDER_OF_DEVICE[device]:
        raise ModelError(
            f"{path.name}: device {device} was asked for but the session runs on {used}; check the CUDA and cuDNN "
            "libraries (cleanup doctor), or use --device cpu"
        )
    return model


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class FaceRecogniser:
    """Embeds aligned faces. ``dimension`` is read from the model by running it once.

    Args:
        path: The ONNX file.
        device: As in ModelSpec.
        n_threads: As in ModelSpec.

    Raises:
        ModelError: The file does not load, or not on the device asked for.
    """

    def __init__(self, path: Path, device: str = "auto", n_threads: int = 0) -> None:
        self._model = _load(path, device, n_threads)
        self.name = path.stem
        self.sha256 = sha256_of_file(path)
        batch = self._model.session.get_inputs()[0].shape[0]
        self._fixed_batch = batch if isinstance(batch, int) and batch > 0 else None
        blank = np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8)
        self.dimension = int(self.embed(blank).shape[1])

    @property
    def provider(self) -> str:
        """The execution provider the session really uses."""
        return str(self._model.session.get_providers()[0])

    @property
    def batch_size(self) -> int:
        """Faces per call that this device handles fastest: a small batch stays in a CPU's caches."""
        return self._fixed_batch or (8 if self.provider == PROVIDER_OF_DEVICE["cpu"] else 64)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds aligned crops.

        Args:
            crops: RGB images, shape (n, 112, 112, 3).

        Returns:
            Raw embeddings (not normalised), shape (n, dimension): the norm is kept because it may carry quality.
        """
        blob = (crops.transpose(0, 3, 1, 2).astype(np.float32) - self._model.input_mean) / self._model.input_std
        blob = np.ascontiguousarray(blob, dtype=np.float32)
        size = self._fixed_batch or len(blob)
        outputs = [self._run(blob[i : i + size], size) for i in range(0, len(blob), max(size, 1))]
        return np.concatenate(outputs) if outputs else np.zeros((0, self.dimension), np.float32)

    def _run(self, blob: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        n_faces = len(blob)
        if n_faces < size:
            blob = np.concatenate([blob, np.zeros((size - n_faces, *blob.shape[1:]), np.float32)])
        output = self._model.session.run(self._model.output_names, {self._model.input_name: blob})[0]
        return np.asarray(output, np.float32).reshape(size, -1)[:n_faces]


class FaceDetector:
    """Finds faces and their five landmarks (SCRFD).

    Raises:
        ModelError: The file does not load, or not on the device asked for.
    """

    input_size = (640, 640)

    def __init__(self, path: Path, device: str = "auto", n_threads: int = 0) -> None:
        self._model = _load(path, device, n_threads)
        self.name = path.stem
        self.sha256 = sha256_of_file(path)
        self._model.prepare(0, input_size=self.input_size)

    @property
    def provider(self) -> str:
        """The execution provider the session really uses."""
        return str(self._model.session.get_providers()[0])

    def detect(self, image: NDArray[np.uint8], min_confidence: float) -> list[DetectedFace]:
        """Detects the faces of one RGB image of shape (height, width, 3), most confident first."""
        boxes, landmarks = self._model.detect(np.ascontiguousarray(image[..., ::-1]), det_thresh=min_confidence)
        if landmarks is None:
            raise ModelError(f"{self.name}: this detector gives no landmarks; use one with five keypoints (kps)")
        return [DetectedFace(b[:4], k, float(b[4])) for b, k in zip(boxes, landmarks, strict=True)]


@dataclass(frozen=True)
class FaceModels:
    """The loaded models of one worker. ``detector`` is None where the folder holds none."""

    recogniser: FaceRecogniser
    detector: FaceDetector | None

    def describe(self) -> dict[str, dict[str, object]]:
        """What the report says about the models: name, digest, dimension, provider really used."""
        recogniser = self.recogniser
        described: dict[str, dict[str, object]] = {
            "recogniser": {
                "name": recogniser.name,
                "sha256": recogniser.sha256,
                "dimension": recogniser.dimension,
                "provider": recogniser.provider,
            }
        }
        if recogniser.provider == PROVIDER_OF_DEVICE["cpu"] and has_nvidia_driver():
            described["recogniser"]["note"] = (
                "there is an NVIDIA driver but ONNX Runtime runs on the CPU; cleanup doctor says what is missing"
            )
        if self.detector is not None:
            detector = self.detector
            described["detector"] = {
                "name": detector.name,
                "sha256": detector.sha256,
                "provider": detector.provider,
            }
        return described


def load_models(spec: ModelSpec) -> FaceModels:
    """Loads the models of a folder onto a device.

    Raises:
        ModelError: See ``find_model_files`` and the two model classes.
    """
    embed_device = spec.device if spec.embed_device == "same" else spec.embed_device
    for device in {spec.device, embed_device}:
        check_onnxruntime_distribution(device)
    files = find_model_files(Path(spec.directory))
    recogniser = FaceRecogniser(files.recogniser, embed_device, spec.n_threads)
    detector = FaceDetector(files.detector, spec.device, spec.n_threads) if files.detector else None
    return FaceModels(recogniser, detector)
