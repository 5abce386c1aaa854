"""Laws of a checkpoint's files: whatever they hold, they load and compute, or are refused by ValueError or OSError."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from llada_core.loading import load_checkpoint
from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.configuration_llada import FIELD_TYPES, SUPPORTED_VALUES
from tests.conftest import REFERENCE

from .json_values import VALUES, replacements
from .profiles import cases, watchdog

WHOLE, SHARDED = REFERENCE / "checkpoints" / "mha", REFERENCE / "checkpoints" / "mha_sharded"
SMALL_CONFIG = {
    "model_type": "llada",
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "mlp_hidden_size": 8,
    "vocab_size": 12,
    "embedding_size": 12,
    "max_sequence_length": 16,
    "mask_token_id": 11,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OWN_FIELDS = sorted({*FIELD_TYPES, *SUPPORTED_VALUES, *SMALL_CONFIG})


@contextmanager
def folder_with(files: dict[str, bytes], base: Path | None = None) -> Iterator[Path]:
    """A folder with these files, and with links to those of `base` that are not among them."""
    with tempfile.TemporaryDirectory() as name:
        for path in base.iterdir() if base is not None else ():
            if path.name not in files:
                (Path(name) / path.name).symlink_to(path)
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        yield Path(name)


def generate_a_little(model: LLaDAModelLM) -> None:
    """Two tokens, or the ValueError of options and ids that do not fit, which a checkpoint may name."""
    try:
        sequences = model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, max_length=None)
    except ValueError:
        event("loaded, but refused by generate")
    else:
        assert sequences.shape[1] > 2
        event("generated")


@cases(250)
@given(name=st.sampled_from(OWN_FIELDS), value=VALUES | st.integers())
def test_any_value_of_an_own_field_computes_or_is_refused(name: str, value: Any) -> None:
    if isinstance(value, int) and abs(value) > 70 and name[-3:] != "_id":
        value = 64
    with folder_with({"config.json": json.dumps(SMALL_CONFIG | {name: value}).encode()}) as folder, watchdog():
        try:
            config = LLaDAConfig.from_pretrained(folder)
            model = LLaDAModelLM(config).eval()
        except (ValueError, OSError):
            event("refused")
            return
        logits = model(torch.tensor([[1, 2, 3]])).logits
        assert logits.shape == (1, 3, config.embedding_size)
        assert logits.isfinite().all()
        generate_a_little(model)


JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", JSON_FILES)
@cases(40)
@given(data=st.data())
def test_any_value_in_the_json_of_a_checkpoint_loads_or_is_refused(name: str, data: st.DataObject) -> None:
    base = SHARDED if "index" in name else WHOLE
    document = data.draw(replacements(json.loads((base / name).read_text())))
    load_or_refuse({name: json.dumps(document).encode()}, base)


@cases(100)
@given(base=st.sampled_from([WHOLE, SHARDED]), data=st.data(), share=st.floats(0, 1), bits=st.lists(st.integers(0, 7)))
def test_any_damage_to_a_file_loads_or_is_refused(base: Path, data: st.DataObject, share: float, bits: list) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in base.iterdir())))
    content = bytearray((base / name).read_bytes())
    if not bits:
        load_or_refuse({name: bytes(content[: math.floor(share * len(content))])}, base)
        return
    # Most of a weight file is numbers; its head is where a bit tells.
    end = data.draw(st.sampled_from([min(16, len(content)), min(2000, len(content)), len(content)]))
    for bit in bits:
        content[data.draw(st.integers(0, end - 1))] ^= 1 << bit
    load_or_refuse({name: bytes(content)}, base)


def load_or_refuse(files: dict[str, bytes], base: Path) -> None:
    with folder_with(files, base) as folder, watchdog():
        try:
            checkpoint = load_checkpoint(folder, device="cpu", dtype="float32")
        except (ValueError, OSError):
            event("refused")
        else:
            generate_a_little(checkpoint.model)
