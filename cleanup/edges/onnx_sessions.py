"""Opens ONNX Runtime sessions on the device asked for, and refuses what would silently be slow or wrong.

That is a session that fell back to the CPU though CUDA was asked for, and two ONNX Runtime distributions in one
environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.errors import ModelError, ResourceError, find_shortage, first_line, raise_shortage

CPU = "CPUExecutionProvider"
PROVIDER_OF_DEVICE = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}
GPU_DEVICES = ("cuda", "tensorrt")
# Providers that compute in CUDA memory.
CUDA_PROVIDERS = tuple(PROVIDER_OF_DEVICE[device] for device in GPU_DEVICES)
# Processors on which ONNX Runtime keeps convolutions in a blocked layout, and the channels of its largest block.
_BLOCKED_MACHINES, _BLOCK = ("x86_64", "AMD64"), 16
KEEP_ONE = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --force-reinstall --no-deps onnxruntime-gpu "
    "(onnxruntime where it has no wheel)"
)


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
    needs_cuda = device in GPU_DEVICES or (device == "auto" and has_nvidia_driver())
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
        raise ModelError(f"device {device!r} is not one of auto, {', '.join(PROVIDER_OF_DEVICE)}")
    provider = PROVIDER_OF_DEVICE[device]
    if provider not in available:
        raise ModelError(
            f"device {device} was asked for but this ONNX Runtime has no {provider} (it has {', '.join(available)}); "
            "install onnxruntime-gpu or use --device cpu"
        )
    return [provider] if device == "cpu" else [provider, PROVIDER_OF_DEVICE["cpu"]]


def open_session(path: Path, device: str, n_threads: int) -> Any:
    """A session of a model.

    Args:
        path: The ONNX file.
        device: ``auto`` or a key of PROVIDER_OF_DEVICE.
        n_threads: Threads for one call.

    Raises:
        ModelError: The file does not load, or not on the device asked for.
    """
    import onnxruntime

    providers = _providers_for(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    # A thread that waits for its share of a call must not take the core of one that decodes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if providers[0] != CPU:
        onnxruntime.preload_dlls()
    try:
        is_blocked = providers == [CPU] and platform.machine() in _BLOCKED_MACHINES
        model = _replace_prelu(path) if is_blocked else str(path)
        session = onnxruntime.InferenceSession(
            model, options, providers=providers, provider_options=[_provider_options(p, path) for p in providers]
        )
    except Exception as error:
        raise_shortage(error, path)
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from error
    used = session.get_providers()[0]
    if device != "auto" and used != PROVIDER_OF_DEVICE[device]:
        raise ModelError(
            f"{path.name}: device {device} was asked for but the session runs on {used}; check the CUDA and cuDNN "
            "libraries (cleanup doctor), or use --device cpu"
        )
    return session


@contextlib.contextmanager
def inference_errors(name: str, provider: str) -> Iterator[None]:
    """Turns what ONNX Runtime raises while a model runs into a ModelError that says what to do."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        failure = f"{name}: {provider} failed ({first_line(error)})"
        if find_shortage(error) is not None:
            raise ResourceError(
                f"{failure}; its memory is full: run fewer actors per GPU (--gpus-per-actor 1), stop what else uses "
                "it, or take --device cpu"
            ) from error
        raise ModelError(f"{failure}; cleanup doctor checks models and devices") from error


class BoundSession:
    """Runs a model of one input and one output with its input in device memory that is kept for every batch shape.

    Saves an allocation on the device per call. For one thread; several may share the session.

    Args:
        session: The session.
        device: ``cuda``, or ``cpu``, where it works and gains nothing.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session, self._device = session, device
        self._kept: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def run(self, batch: NDArray[np.floating]) -> NDArray[np.floating]:
        """What the model gives for a batch."""
        import onnxruntime

        if batch.shape in self._kept:
            binding, value = self._kept[batch.shape]
            value.update_inplace(batch)
        else:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(batch, self._device, 0)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._session.get_inputs()[0].name, value)
            binding.bind_output(self._session.get_outputs()[0].name, self._device, 0)
            self._kept[batch.shape] = binding, value
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])


def _provider_options(provider: str, path: Path) -> dict[str, str]:
    if provider != PROVIDER_OF_DEVICE["tensorrt"]:
        return {}
    # Building an engine takes minutes; it is kept beside InsightFace's models for the next start.
    cache = Path("~/.insightface/tensorrt").expanduser() / path.stem
    return {"trt_fp16_enable": "1", "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}


def _replace_prelu(path: Path) -> bytes:
    """The model with every PRelu after a convolution written as Relu(x) - slope * Relu(-x); values stay to the bit.

    ONNX Runtime's PRelu decides number by number and knows only the plain memory layout, so that each costs a
    conversion from and to the blocked layout of the convolutions around it: together 40 % of an ArcFace network. Both
    multiplications are written as depthwise 1x1 convolutions, which stay in the blocked layout.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    slopes = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        slope = slopes.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is None or slope.ndim != 3 or slope.shape[0] % _BLOCK or slope.size != slope.shape[0]:
            nodes.append(node)
            continue
        x, y, n_channels = node.input[0], node.output[0], slope.size
        weights = {f"{y}/minus": np.full_like(slope, -1), f"{y}/slope": -slope}
        for name, values in weights.items():
            model.graph.initializer.append(numpy_helper.from_array(values.reshape(n_channels, 1, 1, 1), name))
        nodes += [
            helper.make_node("Relu", [x], [f"{y}/positive"]),
            helper.make_node("Conv", [x, f"{y}/minus"], [f"{y}/negated"], kernel_shape=[1, 1], group=n_channels),
            helper.make_node("Relu", [f"{y}/negated"], [f"{y}/negative"]),
            helper.make_node(
                "Conv", [f"{y}/negative", f"{y}/slope"], [f"{y}/scaled"], kernel_shape=[1, 1], group=n_channels
            ),
            helper.make_node("Add", [f"{y}/scaled", f"{y}/positive"], [y]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())
