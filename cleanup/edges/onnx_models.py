"""The face detector and the face recogniser, loaded; InsightFace's classes do their pre- and postprocessing."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE
from cleanup.edges.model_files import FP16_SUFFIX, find_model_files, sha256_of_file
from cleanup.edges.onnx_sessions import (
    CPU,
    CUDA_PROVIDERS,
    GPU_DEVICES,
    BoundSession,
    check_onnxruntime_distribution,
    has_nvidia_driver,
    inference_errors,
    open_session,
)
from cleanup.errors import ModelError

# Of a picture longer than that for its width nothing would be left at the size that the detector looks at.
_MAX_ASPECT = 100


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
        device: Device of the detector: ``cpu``, ``cuda``, ``tensorrt``, ``mps`` or ``auto``.
        embed_device: Device of the recogniser, or ``same``.
        n_threads: Threads that a worker owns; 0 means all cores.
    """

    directory: str
    device: str = "auto"
    embed_device: str = "same"
    n_threads: int = 0


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
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        self._session = open_session(path, device, 1)
        self._model = ArcFaceONNX(str(path), self._session)
        self._n_threads = n_threads or os.cpu_count() or 1
        self.name = path.stem.removesuffix(FP16_SUFFIX)
        self.sha256 = sha256_of_file(path)
        entry = self._session.get_inputs()[0]
        self._fixed_batch = entry.shape[0] if isinstance(entry.shape[0], int) and entry.shape[0] > 0 else None
        self._of_thread = threading.local()
        self._dtype = np.float16 if entry.type == "tensor(float16)" else np.float32
        blank = np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8)
        self.dimension = int(self.embed(blank).shape[1])

    @property
    def provider(self) -> str:
        """The execution provider the session really uses."""
        return str(self._session.get_providers()[0])

    @property
    def batch_size(self) -> int:
        """Faces per call that this device handles fastest: a small batch stays in a CPU's caches."""
        return self._fixed_batch or (4 if self.provider == CPU else 64)

    @property
    def n_streams(self) -> int:
        """Calls of ``embed`` that should run side by side.

        On a CPU one per core, each with a single thread: that beats one call whose threads wait for each other. On a
        GPU two, so that the next batch is made ready while one is computed.
        """
        return self._n_threads if self.provider == CPU else 2

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds aligned crops; may be called by several threads at once.

        Args:
            crops: RGB images, shape (n, 112, 112, 3).

        Returns:
            Raw embeddings (not normalised), shape (n, dimension): the norm is kept because it may carry quality.
        """
        size = self._fixed_batch or self._bucket_of(len(crops))
        outputs = [self._run(crops[i : i + size], size) for i in range(0, len(crops), size)]
        return np.concatenate(outputs) if outputs else np.zeros((0, self.dimension), np.float32)

    def _bucket_of(self, n_faces: int) -> int:
        """Batch shape for so many faces: on a GPU a power of two, because every new shape costs a search of kernels."""
        if self.provider == CPU:
            return max(n_faces, 1)
        return min(1 << max(n_faces - 1, 0).bit_length(), self.batch_size)

    def _run(self, crops: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
        mean, scale = (self._model.input_mean,) * 3, 1 / self._model.input_std
        blob = np.zeros((size, 3, CROP_SIZE, CROP_SIZE), self._dtype)
        blob[: len(crops)] = cv2.dnn.blobFromImages(list(crops), scale, (CROP_SIZE, CROP_SIZE), mean)
        with inference_errors(self.name, self.provider):
            if self.provider in CUDA_PROVIDERS:
                if not hasattr(self._of_thread, "session"):
                    self._of_thread.session = BoundSession(self._session, "cuda")
                output = self._of_thread.session.run(blob)
            else:
                output = self._session.run(self._model.output_names, {self._model.input_name: blob})[0]
        return np.asarray(output, np.float32).reshape(size, -1)[: len(crops)]


class FaceDetector:
    """Finds faces and their five landmarks (SCRFD).

    Raises:
        ModelError: The file does not load, or not on the device asked for.
    """

    input_size = (640, 640)

    def __init__(self, path: Path, device: str = "auto", n_threads: int = 0) -> None:
        from insightface.model_zoo.scrfd import SCRFD

        self._session = open_session(path, device, n_threads or os.cpu_count() or 1)
        self._model = SCRFD(str(path), self._session)
        self.name = path.stem
        self.sha256 = sha256_of_file(path)
        self._model.prepare(0, input_size=self.input_size)

    @property
    def provider(self) -> str:
        """The execution provider the session really uses."""
        return str(self._session.get_providers()[0])

    def detect(self, image: NDArray[np.uint8], min_confidence: float) -> list[DetectedFace]:
        """Detects the faces of one RGB image of shape (height, width, 3), most confident first."""
        if max(image.shape[:2]) > _MAX_ASPECT * min(image.shape[:2]):
            return []
        with inference_errors(self.name, self.provider):
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
        if recogniser.provider == CPU and has_nvidia_driver():
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
    has_gpu = embed_device in GPU_DEVICES or (embed_device == "auto" and has_nvidia_driver())
    recogniser_file = files.recogniser_fp16 if has_gpu and files.recogniser_fp16 else files.recogniser
    recogniser = FaceRecogniser(recogniser_file, embed_device, spec.n_threads)
    detector = FaceDetector(files.detector, spec.device, spec.n_threads) if files.detector else None
    return FaceModels(recogniser, detector)
