"""Laws of the loader: what it takes, and that every command gets the same answer from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from llada_core import loading
from llada_core.loading import Checkpoint, complete_options, load_checkpoint, load_model, load_tokenizer
from modeling_llada import LLaDAModelLM
from tests.conftest import REFERENCE

MHA = REFERENCE / "checkpoints" / "mha"
IDS = torch.tensor([[480, 389, 163, 488, 140]])
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(MHA, tmp_path / "copy"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(IDS).logits


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_model_with_a_prepared_tokenizer_and_complete_options(tiny_model) -> None:
    checkpoint = load_checkpoint(MHA, device="cpu", dtype="float32")
    assert torch.equal(logits_of(checkpoint.model), logits_of(tiny_model))
    assert not checkpoint.model.training
    assert checkpoint.tokenizer.mask_token_id == 488
    assert "generation" in checkpoint.tokenizer.chat_template
    assert checkpoint.options.eot_token_id == 491
    assert checkpoint.stop_ids == {481, 491}


def test_without_a_name_the_bundled_model_is_loaded() -> None:
    from llada_checkpoints import BUNDLED_MODEL

    assert load_checkpoint(device="cpu").model.name_or_path == str(BUNDLED_MODEL)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_is_a_name_or_torchs_own(dtype) -> None:
    assert load_model(MHA, dtype=dtype).dtype == torch.bfloat16


def test_the_code_of_the_checkpoint_runs_only_if_it_is_trusted() -> None:
    from llada_checkpoints import BUNDLED_MODEL

    assert type(load_checkpoint(BUNDLED_MODEL).model) is LLaDAModelLM
    theirs = type(load_checkpoint(BUNDLED_MODEL, trust_remote_code=True).model)
    assert theirs.__module__.startswith("transformers_modules.")


def test_an_id_that_the_files_set_is_not_completed() -> None:
    tokenizer = load_tokenizer(MHA)
    assert complete_options(GenerationConfig(eot_token_id=7), tokenizer).eot_token_id == 7
    assert complete_options(GenerationConfig(), tokenizer).eot_token_id == 491


def test_a_tokenizer_that_is_not_to_be_prepared_keeps_its_template(copy) -> None:
    edit_json(copy / "tokenizer_config.json", chat_template="mine")
    assert load_tokenizer(copy, prepare=False).chat_template == "mine"
    assert load_tokenizer(copy).chat_template != "mine"


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter of `mha` that changes its logits, without a tokenizer."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = {"r": 2, "target_modules": r".*\.blocks\.\d+\.q_proj", "init_lora_weights": False}
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(LLaDAModelLM.from_pretrained(MHA), peft.LoraConfig(**options)).save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_into_its_base_model(adapter, tiny_model) -> None:
    import peft

    checkpoint = load_checkpoint(adapter, device="cpu", dtype="float32")
    base = LLaDAModelLM.from_pretrained(MHA, dtype=torch.float32)
    expected = logits_of(peft.PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(logits_of(checkpoint.model), expected)
    assert not torch.allclose(expected, logits_of(tiny_model))
    assert type(checkpoint.model) is LLaDAModelLM
    assert checkpoint.model.name_or_path == str(adapter)
    assert checkpoint.tokenizer.mask_token_id == 488


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path)


# What happened to the adapter, and how the error reads.
ADAPTER_DAMAGES = {
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no `adapter_model.safetensors`;"),
    "cut weights": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"1234"), "` cannot be loaded ("),
    "a tensor is missing": (without_a_tensor, "cannot be loaded (Found missing adapter keys"),
    "another kind": (
        lambda folder: edit_json(folder / "adapter_config.json", peft_type="PROMPT_TUNING"),
        "must be a LoRA adapter, got the `peft_type` PROMPT_TUNING",
    ),
    "no base": (
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=None),
        "names no base model; set `base_model_name_or_path`",
    ),
    "base is gone": (
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="./nowhere"),
        "There is no folder `./nowhere`",
    ),
    "base of other sizes": (
        lambda folder: edit_json(
            folder / "adapter_config.json",
            base_model_name_or_path=str(load_checkpoint(device="cpu").model.name_or_path),
        ),
        "made for another base model",
    ),
}


@pytest.mark.parametrize("damage, message", ADAPTER_DAMAGES.values(), ids=ADAPTER_DAMAGES.keys())
def test_an_adapter_that_cannot_be_loaded_is_refused_by_name(adapter, damage, message, tmp_path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    damage(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        load_checkpoint(folder, device="cpu")
    assert message in str(caught.value)


def test_an_adapter_without_peft_says_what_to_install(adapter, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ImportError, match=r"is a LoRA adapter, which needs the package `peft`; .*pip install \"\.\[train\]\""
    ):
        load_model(adapter)


# --- exported models -------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(copy) -> Path:
    (copy / WEIGHTS).unlink()
    (copy / "model.onnx").touch()
    return copy


def test_an_exported_model_is_loaded_by_the_function_given_for_it(exported, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(loading, "_exported_loader", None)
    loading.use_exported_loader(
        lambda folder, dtype: tiny_model if (folder, dtype) == (str(exported), "auto") else None
    )
    assert load_checkpoint(exported).model is tiny_model
    for device in ("cuda", "abacus"):
        with pytest.raises(
            ValueError, match=f"`device` must be cpu for the exported model `.*`, got '{device}'; leave"
        ):
            load_checkpoint(exported, device=device)
    with pytest.raises(ValueError, match="`trust_remote_code` has no meaning for the exported model"):
        load_checkpoint(exported, trust_remote_code=True)


def test_without_that_function_the_error_names_it(exported, monkeypatch) -> None:
    monkeypatch.setattr(loading, "_exported_loader", None)
    with pytest.raises(ValueError, match=r"is an exported model; load it with `llada_conversion\.load_exported`"):
        load_checkpoint(exported)


def test_weights_for_pytorch_come_before_an_exported_model(exported) -> None:
    assert loading.is_exported(exported)
    shutil.copy(MHA / WEIGHTS, exported)
    assert not loading.is_exported(exported)


# --- the Hub ---------------------------------------------------------------------------------------------------------

FROM_THE_CACHE = """
import sys
from llada_core.loading import load_checkpoint
for name in sys.argv[1:]:
    checkpoint = load_checkpoint(name, device="cpu")
    print(checkpoint.model.name_or_path, checkpoint.tokenizer.mask_token_id)
"""


def put_in_cache(home: Path, repo_id: str, folder: Path) -> None:
    """Store a folder as the Hub's client does."""
    place = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)


def test_a_checkpoint_and_an_adapter_are_loaded_from_the_cache_of_the_hub_and_others_refused(adapter, tmp_path) -> None:
    put_in_cache(tmp_path, "tester/tiny", MHA)
    put_in_cache(tmp_path, "tester/adapter", adapter)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", FROM_THE_CACHE, "tester/tiny", "tester/adapter", "tester/nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines() == ["tester/tiny 488", "tester/adapter 488"], done.stderr
    assert "OSError: `tester/nothing` is on the Hub, and `HF_HUB_OFFLINE` forbids network access" in done.stderr


# --- one answer ------------------------------------------------------------------------------------------------------


def train(folder: Path) -> None:
    """Load as `llada train` does."""
    from llada_training.pretrain_command import build_trainer, parse_pretraining

    build_trainer(parse_pretraining(["--model", str(folder), "--train_data", str(folder), "--report_to", "none"]))


def evaluate(folder: Path) -> None:
    """Load as `llada evaluate` does."""
    from llada_evaluation import LLaDAHarnessModel

    LLaDAHarnessModel(pretrained=str(folder), device="cpu")


def convert(folder: Path) -> None:
    """Load as `llada convert official` does."""
    from llada_conversion import convert_official

    convert_official(folder, folder.parent / "converted")


def enlarge_vocabulary(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    last = state["added_tokens"][-1]
    state["added_tokens"] += [{**last, "id": i, "content": f"<|extra_{i}|>"} for i in range(492, 513)]
    (folder / "tokenizer.json").write_text(json.dumps(state))


TOKENIZER_DAMAGES = {
    "another mask": (
        lambda folder: edit_json(folder / "config.json", mask_token_id=487),
        "`mask_token_id` must be the same in model and tokenizer, got 487 and 488",
    ),
    "another end of text": (
        lambda folder: edit_json(folder / "config.json", eos_token_id=480),
        "`eos_token_id` must be the same in model and tokenizer, got 480 and 481",
    ),
    "too many tokens": (enlarge_vocabulary, "The tokenizer has ids up to 512, but the model's embedding only 512 rows"),
    "a corrupt file": (lambda folder: (folder / "tokenizer.json").write_text("{"), "copy` is corrupt"),
    "no file": (lambda folder: (folder / "tokenizer.json").unlink(), "has no `tokenizer.json`; download or copy"),
}


@pytest.mark.newest_only
@pytest.mark.parametrize("damage, message", TOKENIZER_DAMAGES.values(), ids=TOKENIZER_DAMAGES.keys())
@pytest.mark.parametrize("command", [load_checkpoint, evaluate, train, convert])
def test_a_bad_tokenizer_gets_the_same_answer_from_every_command(command, damage, message, copy) -> None:
    damage(copy)
    with pytest.raises((ValueError, OSError)) as caught:
        command(copy)
    assert message in str(caught.value)


def test_a_model_and_a_tokenizer_that_are_loaded_already_get_it_too(tiny_model) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MHA)
    assert Checkpoint.of(tiny_model, tokenizer).options.eot_token_id == 491
    tokenizer.eos_token = "<|eot_id|>"
    with pytest.raises(ValueError, match="`eos_token_id` must be the same in model and tokenizer, got 481 and 491"):
        Checkpoint.of(tiny_model, tokenizer)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "int8"}, "`dtype` must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"device": "abacus"}, "`device` 'abacus' is not available here"),
    ],
)
def test_an_unknown_dtype_or_device_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(MHA, **options)


def test_of_several_kinds_of_weights_the_one_that_is_read_must_be_complete(copy) -> None:
    """A repository's download may lack the shards of its other format."""
    index = {"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    load_model(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no `pytorch_model-00001-of-00002\.bin`; download or copy"):
        load_model(copy)


def test_weights_of_other_sizes_are_refused(copy) -> None:
    edit_json(copy / "config.json", mlp_hidden_size=128)
    with pytest.raises(ValueError, match=r"(?s)weights of `.*copy` cannot be loaded \(.*size"):
        load_model(copy)
