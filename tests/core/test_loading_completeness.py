"""Laws of the loader on damaged weights: transformers would fill missing tensors with random numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from llada_conversion.official import convert_official
from llada_core.loading import load_checkpoint, load_tokenizer
from modeling_llada import LLaDAModelLM
from tests.conftest import REFERENCE

PROJECTION = "model.transformer.blocks.0.q_proj.weight"
HEAD = "model.transformer.ff_out.weight"
SHARD = "model-00003-of-00005.safetensors"
WEIGHTS = "model.safetensors"


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def without(*tensors: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        kept = {name: weight for name, weight in weights.items() if name not in tensors}
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


# What happened to which folder, and what the error names.
DAMAGES = {
    "cut weights": ("mha", cut_off(WEIGHTS), "weights of `.*mha`"),
    "cut shard": ("mha_sharded", cut_off(SHARD), "weights of `.*mha_sharded`"),
    "no tensor": ("mha", without(PROJECTION), rf"`.*mha` .*`{PROJECTION}`"),
    "no configuration": ("mha", lambda folder: (folder / "config.json").write_text("null"), r"config\.json of `.*mha`"),
    "no head": ("mha", without(HEAD, PROJECTION), rf"`.*mha` .*2 tensors?.*`{PROJECTION}`"),
}


@pytest.mark.parametrize("name, damage, message", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_weights_are_refused_by_name(name, damage, message, tmp_path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "checkpoints" / name, tmp_path / name))
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_a_tied_head_is_not_missing() -> None:
    assert load_checkpoint(REFERENCE / "checkpoints" / "tied").model.config.weight_tying


INDEX, OPTIONS = "model.safetensors.index.json", "generation_config.json"
DEEP = "[" * 100_000 + "]" * 100_000
# Text of a file, and what the error says of it.
NO_OBJECTS = {
    "null": ("null", "must hold a JSON object, got None"),
    "a list": ("[]", "must hold a JSON object, got a list"),
    "a number": ("5", "must hold a JSON object, got 5"),
    "a text": ('"x"', "must hold a JSON object, got 'x'"),
    "nothing": ("", "is not JSON .Expecting value"),
    "cut off": ('{"max_new_tokens": 6', "is not JSON .Expecting"),
    "nested": ('{"a": ' + DEEP + "}", "is not JSON .*recursion"),
    "binary": ("\udcff\udcfe", "is not JSON .'utf-8' codec"),
}
SHARDS = {"metadata": {}, "weight_map": {PROJECTION: SHARD}}
NO_MAP = "must have a `weight_map` and `metadata`; download or save it again"
NO_NAME = "must name a file beside it for every tensor, got {} for `{}`"
WRONG_VALUES = [
    (INDEX, SHARDS | {"weight_map": None}, NO_MAP),
    (INDEX, SHARDS | {"weight_map": []}, NO_MAP),
    (INDEX, SHARDS | {"weight_map": {}}, NO_MAP),
    (INDEX, {"weight_map": SHARDS["weight_map"]}, NO_MAP),
    (INDEX, SHARDS | {"metadata": None}, NO_MAP),
    (INDEX, SHARDS | {"weight_map": {PROJECTION: 5}}, NO_NAME.format("5", PROJECTION)),
    (INDEX, SHARDS | {"weight_map": {PROJECTION: None}}, NO_NAME.format("None", PROJECTION)),
    (INDEX, SHARDS | {"weight_map": {PROJECTION: [SHARD]}}, NO_NAME.format("a list", PROJECTION)),
    (INDEX, SHARDS | {"weight_map": {PROJECTION: "../x"}}, NO_NAME.format("'../x'", PROJECTION)),
    (OPTIONS, {"max_new_tokens": "a"}, "sets what cannot be read .`max_new_tokens` must be .*got 'a'"),
    (OPTIONS, {"pad_token_id": [0]}, "sets what cannot be read .`pad_token_id` must be None or a token id, got .0."),
    (OPTIONS, {"eos_token_id": "x"}, "sets what cannot be read .`eos_token_id` must be .*got 'x'"),
]
SMALL_FILES = [
    *[(file, *one) for file in ("config.json", INDEX, OPTIONS) for one in NO_OBJECTS.values()],
    *[(file, json.dumps(fields), message) for file, fields, message in WRONG_VALUES],
]


def load_plainly(folder: Path) -> None:
    LLaDAModelLM.from_pretrained(folder)


def convert(folder: Path | str) -> None:
    convert_official(folder, Path(folder).parent / "converted")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return Path(shutil.copytree(REFERENCE / "checkpoints" / "mha_sharded", tmp_path_factory.mktemp("damaged") / "copy"))


@pytest.mark.parametrize("command", [load_checkpoint, load_plainly, convert])
@pytest.mark.parametrize("file, text, message", SMALL_FILES)
def test_a_damaged_file_beside_the_weights_is_named_on_one_line_by_every_reader(
    command, file, text, message, sharded
) -> None:
    before = (sharded / file).read_bytes() if (sharded / file).exists() else None
    (sharded / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        # What is no JSON at all is an OSError of transformers if it is the config.
        with pytest.raises((ValueError, OSError), match=f"{message}|is not a valid JSON file") as caught:
            command(sharded)
    finally:
        (sharded / file).write_bytes(before) if before is not None else (sharded / file).unlink()
    assert file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", NO_OBJECTS.values(), ids=NO_OBJECTS.keys())
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"])
def test_a_damaged_file_of_the_tokenizer_is_named_on_one_line(file, text, message, sharded) -> None:
    before = (REFERENCE / "checkpoints" / "mha" / file).read_bytes()
    (sharded / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    message = r"The tokenizer of `.*copy` is corrupt \(" if file == "tokenizer.json" else f"{file} of `.*it {message}"
    try:
        for command in (load_tokenizer, load_checkpoint, convert):
            with pytest.raises(ValueError, match=message) as caught:
                command(str(sharded))
            assert "\n" not in str(caught.value)
    finally:
        (sharded / file).write_bytes(before)


@pytest.mark.parametrize("content", [b"junk" * 10, [1, 2], print], ids=["junk", "a list", "a function"])
def test_a_pickle_of_something_else_is_refused_on_one_line_and_does_not_run(content, tmp_path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "checkpoints" / "mha", tmp_path / "mha"))
    (folder / WEIGHTS).unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    # transformers 4 has an error of its own for what is no pickle.
    message = r"The weights of `.*mha` cannot be loaded .*: a file is cut off|Unable to load weights from"
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_model_in_a_subfolder_loads_and_its_files_are_read_there(tmp_path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "checkpoints" / "mha", tmp_path / "models" / "mha"))
    assert AutoModel.from_pretrained(tmp_path, subfolder="models/mha").config.d_model == 64
    (folder / OPTIONS).write_text("{")
    with pytest.raises(ValueError, match=rf"`.*models/mha/{OPTIONS}` is not JSON"):
        AutoModel.from_pretrained(tmp_path, subfolder="models/mha")
