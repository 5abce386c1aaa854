"""Laws of the data of a fine-tuning: rows of any JSON train, or are refused by ValueError."""

import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from llada_core.loading import load_tokenizer
from modeling_llada import LLaDAConfig, LLaDAModelLM
from tests.conftest import REFERENCE

from .json_values import VALUES
from .profiles import cases, watchdog

pytestmark = pytest.mark.newest_only  # TRL

TEXTS = st.sampled_from(["", " ", "a b", "Yes, it is.", "é\x00", "<|mdm_mask|>", "<|eot_id|>", "<|endoftext|>"])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "assistant", "system", "tool", ""]), "content": TEXTS}
)
ODD_MESSAGE = st.fixed_dictionaries({}, optional={"role": TEXTS | VALUES, "content": TEXTS | VALUES, "x": VALUES})
MESSAGES = st.lists(MESSAGE, max_size=3) | st.lists(MESSAGE | ODD_MESSAGE, max_size=3)
IDS = st.lists(st.integers(-101, 520), max_size=5)
ROW = st.one_of(
    st.fixed_dictionaries({"messages": MESSAGES}),
    st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}),
    st.fixed_dictionaries({"prompt": MESSAGES, "completion": MESSAGES}),
    st.fixed_dictionaries({"prompt": TEXTS | VALUES, "completion": TEXTS | VALUES}),
    st.fixed_dictionaries({"text": TEXTS | VALUES}),
    st.fixed_dictionaries({"input_ids": IDS}, optional={"labels": IDS}),
    st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "text", "input_ids", "labels", "x"]), VALUES),
    VALUES,
)
# Mostly rows of one kind, since files of mixed kinds do not get far.
FILES = st.lists(ROW, min_size=1, max_size=3) | ROW.flatmap(lambda row: st.just([row] * 2))


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(REFERENCE / "checkpoints" / "mha")


def make_model() -> LLaDAModelLM:
    torch.manual_seed(0)
    ids = {"vocab_size": 492, "embedding_size": 512, "mask_token_id": 488, "eos_token_id": 481, "pad_token_id": 481}
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 1, "mlp_hidden_size": 8, "max_sequence_length": 64}
    return LLaDAModelLM(LLaDAConfig(**sizes, **ids))


@cases(20)
@given(rows=FILES)
def test_any_rows_train_or_are_refused(rows: list) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, watchdog(120):
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(folder) / "cache")
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                steps = train(str(file), folder)
        except ValueError:
            event("refused")
        else:
            assert steps == 1
            event("trained")


def train(file: str, folder: str) -> int:
    """One step on the rows of a file; returns the number of steps."""
    from llada_training import LLaDASFTConfig, LLaDASFTTrainer
    from llada_training.data import load_examples

    options = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}
    config = LLaDASFTConfig(output_dir=folder, max_steps=1, max_length=32, per_device_train_batch_size=2, **options)
    examples = load_examples([file])
    trainer = LLaDASFTTrainer(make_model(), config, train_dataset=examples, processing_class=tokenizer())
    trainer.train()
    return trainer.state.global_step
