"""Shared fixtures of the training tests: a tokenizer, a model small enough to train in a second, and real texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from llada_core.tokenization import prepare_tokenizer
from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from modeling_llada import LLaDAConfig, LLaDAModelLM

CHECKPOINTS = Path(__file__).parents[1] / "reference" / "checkpoints"
TEXTS = [f"{number} is followed by {number + 1}, and then comes {number + 2}." for number in range(60)]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` prepares out of the user's cache, and a configuration's precision out of the next test."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer of the reference checkpoints: bos 480, eos = pad 481, mask 488, 492 tokens."""
    return prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(CHECKPOINTS / "mha"))


@pytest.fixture
def make_model() -> Callable[..., LLaDAModelLM]:
    """Make the same small fresh model at every call; keyword arguments are fields of its configuration."""

    def make(**fields: Any) -> LLaDAModelLM:
        torch.manual_seed(0)
        sizes = {
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "mlp_hidden_size": 64,
            "vocab_size": 492,
            "embedding_size": 512,
            "max_sequence_length": 64,
            "mask_token_id": 488,
            "eos_token_id": 481,
            "pad_token_id": 481,
        }
        return LLaDAModelLM(LLaDAConfig(**sizes | fields))

    return make


@pytest.fixture(scope="session")
def sequences() -> Dataset:
    """64 sequences of 16 to 24 random tokens, numbered."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 480, (16 + i % 9,), generator=generator).tolist() for i in range(64)]
    return Dataset.from_dict({"input_ids": rows, "example_id": list(range(64))})


@pytest.fixture
def make_trainer(
    tmp_path: Path, make_model: Callable[[], LLaDAModelLM], sequences: Dataset
) -> Callable[..., LLaDAPretrainingTrainer]:
    """Make a trainer of the small model on `sequences`; keyword arguments are options of the configuration."""

    def make(**options: Any) -> LLaDAPretrainingTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "sequence_length": 24,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "warmup_steps": 1,
            "learning_rate": 1e-2,
            "random_length_probability": 0.2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 7,
        }
        config = LLaDAPretrainingConfig(**defaults | options)
        return LLaDAPretrainingTrainer(make_model(), config, train_dataset=sequences, eval_dataset=sequences)

    return make


@pytest.fixture(scope="session")
def chats() -> Dataset:
    """20 conversations of one or two turns, with answers of different lengths."""

    def chat(number: int) -> list[dict[str, str]]:
        first = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes " * (number % 4 + 1)}]
        second = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": f"It is {number}."}]
        return first + second if number % 2 else first

    return Dataset.from_dict({"messages": [chat(number) for number in range(20)]})


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    """24 prompts with completions of different lengths."""
    prompts = [f"{number} and {number} make" for number in range(24)]
    completions = [f" {2 * number}, I say" * (number % 3 + 1) for number in range(24)]
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


@pytest.fixture
def make_sft_trainer(
    tmp_path: Path, make_model: Callable[..., LLaDAModelLM], tokenizer: PreTrainedTokenizerFast, pairs: Dataset
) -> Callable[..., Any]:
    """Make a fine-tuning trainer of the small model on `pairs`; keyword arguments are options of the configuration.

    `train_dataset` and what else `LLaDASFTTrainer` takes goes to it.
    """
    # Not at the top: TRL takes seconds to import, and most tests here do without.
    from llada_training import LLaDASFTConfig, LLaDASFTTrainer

    def make(model: Any = None, trainer_class: Any = LLaDASFTTrainer, **options: Any) -> Any:
        names = ("train_dataset", "eval_dataset", "processing_class", "peft_config", "data_collator")
        given = {name: options.pop(name) for name in names if name in options}
        given = {"train_dataset": pairs, "processing_class": tokenizer} | given
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "warmup_steps": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "seed": 7,
        }
        model = make_model(max_sequence_length=160) if model is None else model
        return trainer_class(model, LLaDASFTConfig(**defaults | options), **given)

    return make
