"""Shared fixtures: a converted folder, a LoRA adapter of it, exports, and a Hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from llada_conversion import convert_official, export_model
from modeling_llada import LLaDAModelLM
from tests.helpers import REFERENCE
from tests.hub_server import HubServer


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A converted folder, its weights in one file (which the server wants in parts)."""
    return convert_official(REFERENCE / "checkpoints" / "mha", tmp_path_factory.mktemp("converted") / "tiny")


@pytest.fixture(scope="module")
def adapter(converted, tmp_path_factory) -> Path:
    """A LoRA adapter of that folder that changes the answers."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "ff_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(LLaDAModelLM.from_pretrained(converted, dtype=torch.float32), config)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def own(converted, tmp_path) -> Path:
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(converted, tmp_path / "own"))


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A Hub that the client in this process uses."""
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture(scope="session", params=["onnx", "openvino"])
def exported_report(request, tmp_path_factory):
    """The runtime, and the report of an export of `mha` to it."""
    pytest.importorskip("onnxruntime" if request.param == "onnx" else request.param)
    source, target = REFERENCE / "checkpoints" / "mha", tmp_path_factory.mktemp("export") / "model"
    return request.param, export_model(source, target, request.param)
