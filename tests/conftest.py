"""Shared fixtures: the tiny official checkpoints, and what the official code computed on them."""

from pathlib import Path

import pytest
import torch

from modeling_llada import LLaDAConfig, LLaDAModelLM

REFERENCE = Path(__file__).parent / "reference"


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
