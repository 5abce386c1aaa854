"""Laws of LoRA: only the adapter learns, it comes back from its folder, and merged it is a model like any other."""

import copy
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from llada_core.tokenization import save_tokenizer
from llada_training.adapters import BLOCK_LAYERS, LORA_TARGET_MODULES, merge_adapter
from modeling_llada import LLaDAModelLM
from tests.helpers import run_stranger

peft = pytest.importorskip("peft")

IDS = torch.tensor([[480, 389, 163, 488, 488, 140, 256]])

# Runs where none of our packages can be imported; prints the logits, exactly.
STRANGER = """
import json, sys
for name in ("modeling_llada", "llada_training", "llada_cli", "llada_conversion", "peft"):
    sys.modules[name] = None
import torch, transformers
torch.set_num_threads(1)
folder, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(ids).logits
    answer = model.generate(ids[:, :3], max_new_tokens=4)
print(json.dumps({"logits": logits.flatten().tolist(), "answer": answer.tolist(), "mask": tokenizer.mask_token_id}))
"""


@pytest.fixture
def base(tmp_path, make_model, tokenizer) -> Path:
    """A folder with the small model and its tokenizer."""
    folder = tmp_path / "base"
    make_model(max_sequence_length=160).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def load(folder: Path) -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_adapter(base: Path, folder: Path, **options) -> Path:
    """The folder of an adapter that changes the logits, with LoRA on every linear layer of the blocks."""
    options = {"r": 2, "target_modules": LORA_TARGET_MODULES, "task_type": "CAUSAL_LM"} | options
    torch.manual_seed(1)
    peft.get_peft_model(load(base), peft.LoraConfig(init_lora_weights=False, **options)).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_the_default_target_is_every_linear_layer_of_the_blocks_and_not_the_head(make_model) -> None:
    config = peft.LoraConfig(target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(make_model(), config)
    names = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    blocks = "base_model.model.model.transformer.blocks"
    assert names == {f"{blocks}.{index}.{layer}" for index in range(2) for layer in BLOCK_LAYERS}


@pytest.mark.newest_only
def test_the_trainer_gives_an_open_config_the_layers_of_the_blocks_and_the_task(base, make_sft_trainer, chats) -> None:
    trainer = make_sft_trainer(load(base), peft_config=peft.LoraConfig(r=2), train_dataset=chats)
    names = {name.split(".lora_A")[0] for name, _ in trainer.model.named_parameters() if "lora_A" in name}
    assert {name.rpartition(".")[2] for name in names} == set(BLOCK_LAYERS)
    assert len(names) == 2 * len(BLOCK_LAYERS)
    trainer.save_model()
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(trainer.args.output_dir)
    assert loaded.peft_config["default"].task_type == "CAUSAL_LM"


@pytest.mark.newest_only
def test_ff_out_in_a_list_of_the_trainer_means_the_blocks_and_not_the_head(base, make_sft_trainer, chats) -> None:
    for config in (
        peft.LoraConfig(r=2, target_modules=["ff_out", "q_proj"]),
        peft.IA3Config(target_modules=["ff_out"], feedforward_modules=["ff_out"]),
    ):
        trainer = make_sft_trainer(load(base), peft_config=config, train_dataset=chats)
        names = trainer.model.base_model.targeted_module_names
        assert {name for name in names if "ff_out" in name} == {
            f"model.transformer.blocks.{index}.ff_out" for index in range(2)
        }


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "config, layers",
    [
        (peft.LoraConfig(init_lora_weights=False), {"q_proj", "v_proj"}),
        (peft.IA3Config(init_ia3_weights=False), {"k_proj", "v_proj", "up_proj"}),
        (peft.LNTuningConfig(), {"attn_norm", "ff_norm", "ln_f"}),
        (peft.VeraConfig(init_weights=False), {"q_proj", "v_proj"}),
    ],
    ids=lambda value: getattr(value, "peft_type", ""),
)
def test_peft_alone_adapts_the_layers_that_it_adapts_in_llama(make_model, is_tied, config, layers) -> None:
    torch.manual_seed(1)
    adapted = peft.get_peft_model(make_model(weight_tying=is_tied).eval(), copy.deepcopy(config))
    assert {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names} == layers
    expected = logits_of(adapted)
    assert torch.allclose(logits_of(adapted.merge_and_unload()), expected, atol=1e-4)


def test_labels_that_a_soft_prompt_does_not_lengthen_are_named(make_model) -> None:
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    with pytest.raises(ValueError, match=r"`labels` must have the shape of the input, \(1, 10\), got \(1, 7\)"):
        peft.get_peft_model(make_model(embedding_size=492), config)(input_ids=IDS, labels=IDS)


def test_an_adapter_with_the_official_module_names_attaches_and_adds_b_times_a(base, tmp_path) -> None:
    folder = tmp_path / "official"
    folder.mkdir()
    # As peft writes it for the released model, whose classes bear the same names.
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "lora_dropout": 0.0}
    config |= {"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Base", "target_modules": ["q_proj", "attn_out"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    tensors, expected = {}, load(base)
    for block in range(2):
        for layer in ("q_proj", "attn_out"):
            name = f"model.transformer.blocks.{block}.{layer}"
            a, b = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            expected.get_submodule(name).weight.data += 3.0 * b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    attached = peft.PeftModel.from_pretrained(load(base), folder)
    assert torch.allclose(logits_of(attached), logits_of(expected), atol=1e-5)
    assert not torch.allclose(logits_of(attached), logits_of(load(base)), atol=1e-2)


@pytest.mark.newest_only
def test_training_changes_the_adapter_alone_and_its_folder_brings_it_back(base, make_sft_trainer, chats) -> None:
    config = peft.LoraConfig(r=2, target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM")
    trainer = make_sft_trainer(load(base), peft_config=config, train_dataset=chats)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))
    assert not (folder / "model.safetensors").exists()
    again = peft.PeftModel.from_pretrained(load(base), folder).eval()
    assert torch.equal(logits_of(again), logits_of(trainer.model.eval()))


@pytest.mark.newest_only
def test_a_saved_adapter_goes_on_training(base, tmp_path, make_sft_trainer) -> None:
    adapter = random_adapter(base, tmp_path / "adapter")
    trainer = make_sft_trainer(peft.PeftModel.from_pretrained(load(base), adapter, is_trainable=True))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_merged_logits_equal_the_adapters(base, tmp_path, options) -> None:
    adapter = random_adapter(base, tmp_path / "adapter", **options)
    adapted = logits_of(peft.PeftModel.from_pretrained(load(base), adapter).eval())
    merge_adapter(str(base), str(adapter), str(tmp_path / "merged"))
    merged = logits_of(load(tmp_path / "merged"))
    assert torch.allclose(merged, adapted, atol=1e-5)
    assert not torch.allclose(merged, logits_of(load(base)), atol=1e-2)


def test_an_adapter_generates_what_the_merged_model_does(base, tmp_path) -> None:
    adapter = random_adapter(base, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(load(base), adapter).eval()
    options = {"max_new_tokens": 8, "block_length": 4, "steps": 4}
    answer = adapted.generate(input_ids=IDS[:, :3], **options)
    assert torch.equal(adapted.merge_and_unload().generate(IDS[:, :3], **options), answer)
    assert not torch.equal(load(base).generate(IDS[:, :3], **options), answer)


def test_a_merged_folder_loads_in_a_process_that_has_none_of_our_packages(base, tmp_path, tokenizer) -> None:
    adapter, folder = random_adapter(base, tmp_path / "adapter"), tmp_path / "merged"
    adapted = peft.PeftModel.from_pretrained(load(base), adapter).eval()
    expected = logits_of(adapted).flatten()
    adapted.merge_and_unload().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    done = run_stranger(sys.executable, tmp_path, STRANGER, str(folder), json.dumps(IDS.tolist()))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert torch.allclose(torch.tensor(found["logits"]), expected, atol=1e-5)
    assert len(found["answer"][0]) == 7
    assert found["mask"] == 488


# --- quantised models ------------------------------------------------------------------------------------------------


class QuantizedLinear(torch.nn.Linear):
    """A linear layer that holds rounded bytes instead of its weight, as the layers of bitsandbytes do."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().max() / 127
        rounded = (layer.weight.detach() / self.scale).round().to(torch.int8)
        # One column of bytes: whoever took the weight's shape or type for a matrix of floats would fail.
        self.weight = torch.nn.Parameter(rounded.reshape(-1, 1), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.reshape(self.out_features, self.in_features).to(states.dtype) * self.scale
        return torch.nn.functional.linear(states, weight)


def quantize(model: LLaDAModelLM) -> LLaDAModelLM:
    """Put quantised layers in place of every linear layer of the blocks."""
    for block in model.model.transformer.blocks:
        for name in BLOCK_LAYERS:
            setattr(block, name, QuantizedLinear(getattr(block, name)))
    return model


def test_a_model_of_quantised_layers_computes_and_generates(make_model) -> None:
    model = make_model(max_sequence_length=160).eval()
    exact = logits_of(model)
    quantize(model)
    assert 0 < (logits_of(model) - exact).abs().max() < 0.1 * exact.abs().max()
    assert model.generate(IDS[:, :3], max_new_tokens=8).shape == (1, 11)


@pytest.mark.newest_only
def test_an_adapter_learns_over_quantised_layers(make_model, make_sft_trainer) -> None:
    config = peft.LoraConfig(r=2, target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM")
    trainer = make_sft_trainer(quantize(make_model(max_sequence_length=160)), peft_config=config)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_without_bitsandbytes_a_quantised_model_says_what_is_missing(base) -> None:
    with pytest.raises(ImportError, match="bitsandbytes"):
        LLaDAModelLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
