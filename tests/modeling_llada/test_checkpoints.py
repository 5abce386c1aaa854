"""Laws of checkpoint folders: damaged ones are refused by name, and every way in and out keeps the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_llada import LLaDAConfig, LLaDAGenerationConfig, LLaDAModel, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP
from tests.helpers import REFERENCE

IDS = torch.tensor([[480, 389, 163, 488, 140]])
PROJECTION = "model.transformer.blocks.0.q_proj.weight"
HEAD = "model.transformer.ff_out.weight"


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(REFERENCE / "checkpoints" / name, folder / name))


@torch.no_grad()
def logits_of(model: LLaDAModelLM) -> Tensor:
    return model.eval()(IDS).logits


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def without(*tensors: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: weight for name, weight in weights.items() if name not in tensors}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


SHARD = "model-00003-of-00005.safetensors"
WEIGHTS = "model.safetensors"
# What happened to which folder, and how the error reads; missing and corrupt tensors are the loader's matter.
DAMAGES = {
    "no config": ("mha", remove("config.json"), OSError, r"mha` has no `config\.json`; download or copy"),
    "cut config": ("mha", cut_off("config.json"), OSError, r"mha/config\.json' is not a valid JSON file"),
    "no weights": ("mha", remove(WEIGHTS), OSError, r"no file named .*model\.safetensors.* directory .*mha"),
    "no shard": ("mha_sharded", remove(SHARD), OSError, f"mha_sharded/{SHARD}"),
}


@pytest.mark.parametrize("name, damage, error, message", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused_by_name(name, damage, error, message, tmp_path) -> None:
    folder = copy_of(name, tmp_path)
    damage(folder)
    with pytest.raises(error, match=message):
        LLaDAModelLM.from_pretrained(folder)


@pytest.mark.parametrize("tensor", [PROJECTION, HEAD])
def test_a_missing_tensor_is_initialised_and_reported_as_transformers_does(tensor, tmp_path) -> None:
    folder = copy_of("mha", tmp_path)
    weights = load_file(folder / "model.safetensors")
    without(tensor)(folder)
    model, report = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert set(report["missing_keys"]) == {tensor}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]) == (name != tensor), name
    # "mitchell": 1/sqrt(64), less the 1.3 % that the cut takes.
    assert model.state_dict()[tensor].std().item() == pytest.approx(0.987 / 8, rel=0.05)


def test_shapes_that_differ_from_the_config_load_only_when_that_is_asked_for(tmp_path) -> None:
    folder = copy_of("mha", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mlp_hidden_size": 128}))
    with pytest.raises(RuntimeError, match="size"):
        LLaDAModelLM.from_pretrained(folder)
    model = LLaDAModelLM.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.model.transformer.blocks[1].ff_out.weight.shape == (64, 128)


def test_weights_given_as_a_state_dict_need_no_folder(tiny_model) -> None:
    model = LLaDAModelLM.from_pretrained(None, config=tiny_model.config, state_dict=tiny_model.state_dict())
    assert torch.equal(logits_of(model), logits_of(tiny_model))


@pytest.mark.parametrize("name", ["mha", "tied"])
def test_the_model_without_head_loads_official_folders_completely(name) -> None:
    folder = REFERENCE / "checkpoints" / name
    model, report = LLaDAModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with_head = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32)
    for weight, expected in zip(model.state_dict().values(), with_head.state_dict().values()):
        assert torch.equal(weight, expected)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) == (name == "tied")


@pytest.mark.parametrize("name", ["mha", "tied"])
def test_a_model_saved_without_its_head_class_is_a_whole_checkpoint(name, tmp_path) -> None:
    folder = REFERENCE / "checkpoints" / name
    LLaDAModel.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {f"{module.split('.')[0]}.py" for module in AUTO_MAP.values()} <= {path.name for path in tmp_path.iterdir()}
    again = LLaDAModelLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits_of(again), logits_of(LLaDAModelLM.from_pretrained(folder, dtype=torch.float32)))


@pytest.mark.parametrize("name", ["mha", "tied"])
def test_resizing_the_model_without_head_resizes_its_head_weight_too(name) -> None:
    model = LLaDAModel.from_pretrained(REFERENCE / "checkpoints" / name)
    model.resize_token_embeddings(520)
    assert (model.config.vocab_size, model.config.embedding_size) == (520, 520)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (520, 64)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (name == "tied")


@pytest.mark.parametrize("register", [LLaDAConfig, LLaDAModelLM], ids=["config", "model"])
def test_saving_writes_every_auto_class_whatever_was_registered_last(
    register, tiny_model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(register, "_auto_class", register._auto_class)  # restores it afterwards
    register.register_for_auto_class(*([] if register is LLaDAConfig else ["AutoModelForCausalLM"]))
    tiny_model.config.auto_map = {"AutoModel": "somebody/repo--modeling_other.Other"}
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_model_made_from_a_config_is_initialised_and_generates() -> None:
    torch.manual_seed(0)
    config = LLaDAConfig.from_pretrained(REFERENCE / "checkpoints" / "mha")
    model = LLaDAModelLM._from_config(config, dtype=torch.float32)
    assert isinstance(model.generation_config, LLaDAGenerationConfig)
    # 1/sqrt(64), residual outputs of the second block divided by sqrt(4), less the 1.3 % that the cut takes.
    block = model.model.transformer.blocks[1]
    assert block.q_proj.weight.std().item() == pytest.approx(0.987 / 8, rel=0.05)
    assert block.attn_out.weight.std().item() == pytest.approx(0.987 / 16, rel=0.05)
    assert model.generate(IDS[:, :3], max_new_tokens=4).shape == (1, 7)


def test_placing_the_model_on_a_device_changes_no_logit(tiny_model) -> None:
    for device_map in ("auto", "cpu", {"": "cpu"}):
        folder = REFERENCE / "checkpoints" / "mha"
        placed = LLaDAModelLM.from_pretrained(folder, device_map=device_map, dtype=torch.float32)
        assert torch.equal(logits_of(placed), logits_of(tiny_model))


def test_every_generation_option_survives_saving_and_loading(tiny_model, tmp_path) -> None:
    usual = tiny_model.generation_config
    for options in ({"temperature": 1.0, "top_k": 50, "top_p": 1.0}, {"max_new_tokens": None, "max_length": 90}):
        tiny_model.generation_config = changed = usual.updated(**options, eos_token_id=[0, 5], cache="dual")
        tiny_model.save_pretrained(tmp_path)
        loaded = LLaDAModelLM.from_pretrained(tmp_path).generation_config
        tiny_model.generation_config = usual
        assert settings(loaded) == settings(changed)
        assert settings(LLaDAGenerationConfig.from_pretrained(tmp_path)) == settings(changed)


def settings(config: LLaDAGenerationConfig) -> dict:
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
