"""What is done to a model before it runs changes its speed and not its values."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cleanup.edges import onnx_models, onnx_sessions
from cleanup.edges.onnx_models import FaceRecogniser
from cleanup.edges.onnx_sessions import BoundSession


def write_network(
    path: Path, n_channels: int, slope: NDArray[np.float32], batch: int | str = "n", *, ends_at_prelu: bool = False
) -> Path:
    """A convolution, a PRelu and the mean over the picture, or without the mean."""
    weights = np.random.default_rng(0).normal(size=(n_channels, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["c", "slope"], ["p"]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    name, shape = ("p", [batch, n_channels, 112, 112]) if ends_at_prelu else ("y", [batch, n_channels])
    graph = helper.make_graph(
        nodes[:2] if ends_at_prelu else nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(slope, "slope")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def run_model(model: str | bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": images})[0])


def test_replacing_prelu_keeps_every_bit(tmp_path: Path) -> None:
    # Slopes above one and below zero: neither a maximum nor a minimum would do.
    slope = np.linspace(-0.7, 1.9, 16, dtype=np.float32).reshape(16, 1, 1)
    path = write_network(tmp_path / "network.onnx", 16, slope, ends_at_prelu=True)
    images = np.random.default_rng(1).normal(size=(3, 3, 112, 112)).astype(np.float32)

    replaced = onnx_sessions._replace_prelu(path)

    assert "PRelu" not in Counter(node.op_type for node in onnx.load_from_string(replaced).graph.node)
    assert np.array_equal(run_model(replaced, images), run_model(str(path), images))


@pytest.mark.parametrize(
    ("n_channels", "slope"),
    [(12, np.full((12, 1, 1), 0.25, np.float32)), (16, np.full((1, 1, 1), 0.25, np.float32))],
)
def test_a_prelu_that_would_gain_nothing_stays(tmp_path: Path, n_channels: int, slope: NDArray[np.float32]) -> None:
    path = write_network(tmp_path / "network.onnx", n_channels, slope)

    assert onnx.load_from_string(onnx_sessions._replace_prelu(path)).graph == onnx.load(str(path)).graph


def test_a_model_of_fixed_batch_gets_full_batches(tmp_path: Path) -> None:
    slope = np.full((16, 1, 1), 0.25, np.float32)
    free = FaceRecogniser(write_network(tmp_path / "free.onnx", 16, slope), "cpu")
    fixed = FaceRecogniser(write_network(tmp_path / "fixed.onnx", 16, slope, batch=4), "cpu")
    crops = np.random.default_rng(2).integers(0, 256, (7, 112, 112, 3)).astype(np.uint8)

    assert fixed.batch_size == 4
    assert np.array_equal(fixed.embed(crops), free.embed(crops))


def test_batches_on_a_gpu_have_few_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches themselves run on the CPU here; that the device is a GPU is what is simulated."""
    recogniser = FaceRecogniser(write_network(tmp_path / "m.onnx", 16, np.full((16, 1, 1), 0.25, np.float32)), "cpu")
    crops = np.random.default_rng(2).integers(0, 256, (70, 112, 112, 3)).astype(np.uint8)
    expected = recogniser.embed(crops)
    monkeypatch.setattr(FaceRecogniser, "provider", "CUDAExecutionProvider")
    monkeypatch.setattr(onnx_models, "BoundSession", lambda session, _: BoundSession(session, "cpu"))
    shapes: list[int] = []
    run = recogniser._run
    monkeypatch.setattr(recogniser, "_run", lambda part, size: (shapes.append(size), run(part, size))[1])

    for n_faces in (1, 3, 5, 64, 70):
        assert np.array_equal(recogniser.embed(crops[:n_faces]), expected[:n_faces])

    assert shapes == [1, 4, 8, 64, 64, 64]


def test_a_gpu_takes_the_half_precision_file_of_a_pack(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file is opened is what is tested; the GPU that would run it is simulated."""
    [model] = (drawn / "models").glob("*.onnx")
    model.with_name(f"{model.stem}_fp16.onnx").write_bytes(model.read_bytes())
    opened: list[str] = []
    monkeypatch.setattr(
        onnx_models,
        "FaceRecogniser",
        lambda path, *_: (opened.append(path.name), FaceRecogniser(path, "cpu"))[1],
    )

    assert onnx_models.load_models(onnx_models.ModelSpec(str(drawn / "models"), "cpu")).recogniser.name == model.stem
    monkeypatch.setattr(onnx_models, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(onnx_models, "check_onnxruntime_distribution", lambda _: "")
    onnx_models.load_models(onnx_models.ModelSpec(str(drawn / "models"), "auto"))

    assert opened == [model.name, f"{model.stem}_fp16.onnx"]


def test_bound_sessions_of_two_threads_share_a_model(tmp_path: Path) -> None:
    """On the CPU; that the memory bound is a GPU's is what cannot be shown here."""
    path = write_network(tmp_path / "m.onnx", 16, np.full((16, 1, 1), 0.25, np.float32))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(3).normal(size=(8, 3, 112, 112)).astype(np.float32)
    batches = [images[:2], images[2:4], images[:8], images[4:6], images[6:7]]
    expected = [session.run(None, {"x": batch})[0] for batch in batches]

    def run_all(_: int) -> list[NDArray[np.floating]]:
        bound = BoundSession(session, "cpu")
        return [bound.run(batch.copy()) for batch in batches * 5]

    with ThreadPoolExecutor(2) as threads:
        for outcome in threads.map(run_all, range(2)):
            assert all(np.array_equal(a, b) for a, b in zip(outcome, expected * 5, strict=True))
