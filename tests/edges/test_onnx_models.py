"""Models are told apart, run where they were asked to, and broken ones are named."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
import pytest

from cleanup.edges import onnx_sessions
from cleanup.edges.model_files import find_model_files, resolve_model_directory
from cleanup.edges.onnx_models import ModelSpec, load_models
from cleanup.errors import ModelError


@pytest.mark.shared
def test_detector_and_recogniser_are_told_apart(shared: Path) -> None:
    files = find_model_files(shared / "models")

    assert files.recogniser.stem == "mobilefacenet_y1"
    assert files.detector is not None and files.detector.stem == "scrfd_500m_kps"


@pytest.mark.shared
def test_an_embedding_does_not_depend_on_its_batch(shared: Path) -> None:
    recogniser = load_models(ModelSpec(str(shared / "models"), "cpu")).recogniser
    crops = np.random.default_rng(0).integers(0, 255, (9, 112, 112, 3)).astype(np.uint8)

    one_by_one = np.concatenate([recogniser.embed(crop[None]) for crop in crops])

    assert recogniser.dimension == 128
    assert np.array_equal(recogniser.embed(crops), one_by_one)


@pytest.mark.shared
def test_the_recogniser_agrees_with_insightface(shared: Path) -> None:
    from insightface.model_zoo import get_model

    path = shared / "models" / "mobilefacenet_y1.onnx"
    theirs = get_model(str(path), providers=["CPUExecutionProvider"])
    crop = np.random.default_rng(0).integers(0, 255, (112, 112, 3)).astype(np.uint8)

    ours = load_models(ModelSpec(str(shared / "models"), "cpu")).recogniser.embed(crop[None])[0]

    assert ours == pytest.approx(theirs.get_feat(crop[..., ::-1]).ravel(), abs=1e-5)


def test_a_folder_without_a_detector_is_taken(drawn: Path) -> None:
    models = load_models(ModelSpec(str(drawn / "models"), "cpu"))

    assert models.detector is None
    assert models.describe()["recogniser"]["provider"] == "CPUExecutionProvider"


def test_two_recognisers_are_refused(drawn: Path) -> None:
    [model] = (drawn / "models").glob("*.onnx")
    shutil.copy(model, model.with_name("second.onnx"))

    with pytest.raises(ModelError, match="one recogniser and at most one detector.*found 2"):
        find_model_files(drawn / "models")


def test_a_model_cut_short_is_named(drawn: Path) -> None:
    [model] = (drawn / "models").glob("*.onnx")
    model.write_bytes(model.read_bytes()[:1000])

    with pytest.raises(ModelError, match=model.name):
        load_models(ModelSpec(str(drawn / "models"), "cpu"))


def test_an_empty_folder_and_a_missing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs one recogniser"):
        find_model_files(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model_directory(str(tmp_path / "none"))


@pytest.mark.skipif(onnx_sessions.has_nvidia_driver(), reason="this machine has a GPU")
def test_cuda_asked_for_and_not_there_is_an_error(drawn: Path) -> None:
    with pytest.raises(ModelError, match="device cuda was asked for"):
        load_models(ModelSpec(str(drawn / "models"), "cuda"))


def test_two_onnxruntime_distributions_are_an_error_where_cuda_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installation itself cannot be broken here, so its listing is."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")

    with pytest.raises(
        ModelError, match="both onnxruntime-gpu 1.0 and onnxruntime 1.0 are installed; keep exactly one"
    ):
        onnx_sessions.check_onnxruntime_distribution("cuda")
    assert onnx_sessions.check_onnxruntime_distribution("cpu") == "onnxruntime-gpu 1.0 and onnxruntime 1.0"
