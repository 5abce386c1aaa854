"""Laws of quantised models: what transformers' `quantization_config` makes of a LLaDA predicts, generates and learns.

They need torchao and bitsandbytes, which `make test-quantization` installs apart: every process that could import them
would, which takes a second and prints warnings.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast, TorchAoConfig
from typer.testing import CliRunner

from llada_checkpoints import BUNDLED_MODEL
from llada_cli.main import app
from llada_core.tokenization import save_tokenizer
from modeling_llada import LLaDAModelLM
from modeling_llada.prepacking_llada import prepackable_layers

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.quantization, pytest.mark.newest_only]

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
# The largest mean divergence from float32 that a scheme may have on these inputs, in nats.
SCHEMES = {"int8-weights": 1e-3, "int8-dynamic": 1e-2, "llm-int8": 1e-2, "nf4": 3e-2}


def make_config(name: str) -> Any:
    """A `quantization_config`; transformers writes into it, so every load gets its own."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    configs = {
        "int8-weights": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        "int8-dynamic": lambda: TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
        "llm-int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "nf4": lambda: BitsAndBytesConfig(**nf4, bnb_4bit_use_double_quant=True),
    }
    return configs[name]()


def load(name: str) -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(
        BUNDLED_MODEL, dtype=torch.float32, quantization_config=make_config(name)
    ).eval()


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """bitsandbytes says at every product that its inputs are cast to float16."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def prompt(tokenizer: Any) -> torch.Tensor:
    messages = [{"role": "user", "content": QUESTION}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return tokenizer.apply_chat_template(messages, **options)["input_ids"]


@pytest.fixture(scope="module")
def exact() -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(scheme: str, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantised model, saved before its first pass."""
    folder = tmp_path_factory.mktemp(scheme)
    load(scheme).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def model(scheme: str) -> LLaDAModelLM:
    return load(scheme)


def log_probabilities(model: LLaDAModelLM, prompt: torch.Tensor) -> torch.Tensor:
    canvas = torch.nn.functional.pad(prompt, (0, 10), value=model.config.mask_token_id)
    with torch.inference_mode():
        return model(canvas).logits.float().log_softmax(-1)


def is_plain(layer: torch.nn.Linear) -> bool:
    return type(layer) is torch.nn.Linear and type(layer.weight) is torch.nn.Parameter


def test_every_layer_of_the_blocks_is_quantised_and_neither_embedding_nor_head(model) -> None:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {name for name, layer in layers.items() if is_plain(layer)} == {"model.transformer.ff_out"}
    assert len(layers) == 1 + 7 * model.config.n_layers
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_predictions_stay_close_and_the_answer_is_the_same(scheme, model, exact, prompt, tokenizer) -> None:
    expected, got = log_probabilities(exact, prompt), log_probabilities(model, prompt)
    divergence = (expected.exp() * (expected - got)).sum(-1).mean()
    assert 0 < divergence < SCHEMES[scheme]
    for options in ({}, {"cache": "prefix"}, {"cache": "dual", "block_length": 8}, {"pack_weights": False}):
        ids = model.generate(prompt, max_new_tokens=16, **options)
        assert tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True) == ANSWER, options


def test_only_the_head_is_packed_and_nothing_is_left_behind(model, exact, prompt) -> None:
    assert prepackable_layers(model) == [model.get_output_embeddings()]
    with model.prepacked_weights(None):
        packed = log_probabilities(model, prompt)
    assert torch.allclose(packed, log_probabilities(model, prompt), atol=1e-4)
    assert all("forward" not in vars(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def test_a_saved_model_computes_the_same_and_is_smaller(saved, model, exact, prompt) -> None:
    assert json.loads((saved / "config.json").read_text())["quantization_config"]["quant_method"]
    again = LLaDAModelLM.from_pretrained(saved).eval()
    assert torch.equal(log_probabilities(again, prompt), log_probabilities(model, prompt))
    assert (saved / "model.safetensors").stat().st_size < 0.5 * sum(p.nbytes for p in exact.parameters())
    assert load_file(saved / "model.safetensors")["model.transformer.wte.weight"].dtype == torch.float32


def test_the_command_generates_with_a_saved_model(saved) -> None:
    arguments = ["--model", str(saved), "--device", "cpu", "--chat", "--max-new-tokens", "16", QUESTION]
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert (result.exit_code, result.stdout.strip()) == (0, ANSWER), result.stderr


def test_an_adapter_learns_on_top_and_loads_again(scheme, exact, prompt, tmp_path) -> None:
    from llada_training import LORA_TARGET_MODULES

    config = peft.LoraConfig(target_modules=LORA_TARGET_MODULES, r=4, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load(scheme), config).train()
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    labels = torch.randint(10, 4000, (2, 24), generator=torch.Generator().manual_seed(0))
    noisy = labels.clone()
    noisy[:, ::2] = exact.config.mask_token_id
    losses = []
    for _ in range(4):
        loss = adapted(noisy, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(scheme), tmp_path).eval()
    assert torch.equal(log_probabilities(again, prompt), log_probabilities(adapted.eval(), prompt))
