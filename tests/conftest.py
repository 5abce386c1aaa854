"""Shared fixtures: the tiny official checkpoints, and what the official code computed on them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import dynamic_module_utils

from llada_core.host import avoid_broken_amx
from modeling_llada import LLaDAConfig, LLaDAModelLM
from tests.helpers import REFERENCE


def pytest_configure(config: pytest.Config) -> None:
    """Where AMX does not work, switch it off before the first product, here and in what the tests start."""
    avoid_broken_amx()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With `--durations=N`, keep the N longest set-ups, calls and clean-ups in build/durations.txt."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "duration")]
    reports.sort(key=lambda report: report.duration, reverse=True)
    if count := config.getoption("durations"):
        target = config.rootpath / "build" / "durations.txt"
        target.parent.mkdir(exist_ok=True)
        lines = [f"{report.duration:8.2f} s {report.when:8} {report.nodeid}\n" for report in reports[:count]]
        target.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def own_remote_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep copies of remote code apart: test processes side by side would write the same files of the user's cache."""
    folder = str(tmp_path_factory.mktemp("remote-code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", folder)
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="session", params=["mha", "tied"])
def reference(request: pytest.FixtureRequest) -> tuple[LLaDAModelLM, dict]:
    """Each tiny official checkpoint in float32 with its recordings (`tests/reference/README.md`)."""
    model = LLaDAModelLM.from_pretrained(REFERENCE / "checkpoints" / request.param, dtype=torch.float32).eval()
    return model, torch.load(REFERENCE / "recorded" / f"{request.param}.pt", weights_only=True)


@pytest.fixture(scope="session")
def tiny_model() -> LLaDAModelLM:
    """The tiny official checkpoint `mha`: bos 480, eos = pad 481, mask 488, eot 491, vocabulary 512."""
    return LLaDAModelLM.from_pretrained(REFERENCE / "checkpoints" / "mha", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def toy_model() -> LLaDAModelLM:
    """A model over the tokens 0, 1, 2 and the mask 3, small enough to enumerate every text of a few tokens."""
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=16,
        n_layers=2,
        n_heads=2,
        mlp_hidden_size=32,
        vocab_size=4,
        mask_token_id=3,
        eos_token_id=None,
        pad_token_id=None,
        init_fn="normal",
        init_std=0.6,
    )
    return LLaDAModelLM(config).eval()
