"""Laws of conversion, publishing and export for LLaDA's relatives."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llada_conversion import export_gguf, export_model
from llada_conversion.official import convert_official, verify_folder
from llada_conversion.publish import prepare_upload
from llada_core import load_checkpoint
from llada_core.card import CardFacts
from tests.family import FAMILY, KINDS, released_folder

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]
WRITTEN = (
    "<role>SYSTEM</role>Be brief.\ndetailed thinking off<|role_end|><role>HUMAN</role>Hi<|role_end|>"
    "<role>ASSISTANT</role>Hello<|role_end|><role>HUMAN</role>Who?<|role_end|><role>ASSISTANT</role>"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """For each kind a released folder, KIND, and what `llada convert official` makes of it, KIND-ours."""
    folder = tmp_path_factory.mktemp("relatives")
    for kind in KINDS:
        convert_official(released_folder(kind, folder / kind), folder / f"{kind}-ours", verify=True)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_official_to_ours_to_official_keeps_every_byte(kind, folders, tmp_path) -> None:
    ours = folders / f"{kind}-ours"
    convert_official(ours, tmp_path / "back")
    released = (FAMILY / kind / "model.safetensors").read_bytes()
    assert (ours / "model.safetensors").read_bytes() == released
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == released
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (folders / kind, ours))
    kept = {name for name in before if name in after and after[name] == before[name]}
    # What equals the class's default is left out.
    assert {name for name in before if name not in kept} <= {
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "rope_scaling",
        *(name for name in before if name not in after),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_released_files_lack_is_completed(kind, folders) -> None:
    assert "mask_token_id" not in json.loads((folders / kind / "config.json").read_text())
    checkpoint = load_checkpoint(folders / f"{kind}-ours", device="cpu")
    assert checkpoint.model.config.mask_token_id == checkpoint.tokenizer.mask_token_id
    assert checkpoint.tokenizer.mask_token_id == (5 if kind == "illada" else 319)
    assert checkpoint.tokenizer.pad_token_id is not None
    assert checkpoint.options.eot_token_id == (None if kind == "illada" else 315)
    released = load_checkpoint(folders / kind, device="cpu")
    assert released.model.config.mask_token_id == checkpoint.tokenizer.mask_token_id


def test_conversations_of_llada_moe_have_roles(folders) -> None:
    tokenizer = load_checkpoint(folders / "moe-ours", device="cpu").tokenizer
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True) == WRITTEN
    encoded = tokenizer.apply_chat_template(CONVERSATION[:3], return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, is_answer in zip(encoded["input_ids"], encoded["assistant_masks"]) if is_answer]
    assert tokenizer.decode(answer) == "Hello<|role_end|>"
    with pytest.raises(Exception, match="system message must be the first"):
        tokenizer.apply_chat_template([*CONVERSATION[1:], CONVERSATION[0]], tokenize=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_relative_loads_with_its_own_code(kind, folders) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders / f"{kind}-ours", trust_remote_code=True)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        logits = load_checkpoint(folders / kind, device="cpu").model(ids).logits
        assert torch.equal(model.eval()(ids).logits, logits)


def test_a_head_that_differs_from_its_embedding_is_refused(tmp_path) -> None:
    folder = released_folder("illada", tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"`lm_head.weight` differs from `model.embed_tokens.weight`"):
        convert_official(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_experts_that_are_missing_or_too_many_are_all_named(tmp_path) -> None:
    folder = released_folder("moe", tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    start = "model.layers.1.mlp.experts."
    tensors[f"{start}16.up_proj.weight"] = tensors.pop(f"{start}3.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"experts.3.up_proj.weight` is missing. Unexpected .*experts.16.up_proj"):
        convert_official(folder, tmp_path / "target")


def test_verification_finds_an_expert_that_has_changed(folders, tmp_path) -> None:
    convert_official(folders / "moe", tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][0] = 1.0
    save_file(tensors, tmp_path / "ours" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="has other bytes"):
        verify_folder(folders / "moe", tmp_path / "ours")


def test_relatives_have_one_layout(folders, tmp_path) -> None:
    with pytest.raises(ValueError, match="`layout` must be official for LLaDAMoEConfig"):
        convert_official(folders / "moe", tmp_path / "target", layout="llama")


@pytest.mark.parametrize("kind", ["illada", "moe"])
def test_a_relative_is_published_whole(kind, folders) -> None:
    upload = prepare_upload(folders / f"{kind}-ours", "user/name", facts=CardFacts(license="apache-2.0"))
    own = "modeling_illada.py" if kind == "illada" else "modeling_llada_moe.py"
    assert {own, "llama_layout_llada.py", "configuration_llada_relatives.py", "model.safetensors"} <= set(upload.files)
    with pytest.raises(ValueError, match=r"lacks generation_config.json"):
        prepare_upload(folders / kind, "user/name")


def test_llada_moe_is_exported_to_gguf_with_stacked_experts(folders, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    file = gguf.GGUFReader(export_gguf(folders / "moe-ours", tmp_path / "moe.gguf", weights="f32"))
    fields = {name: field.contents() for name, field in file.fields.items()}
    assert fields["general.architecture"] == "llada-moe"
    assert (fields["llada-moe.expert_count"], fields["llada-moe.expert_used_count"]) == (16, 4)
    assert fields["llada-moe.expert_feed_forward_length"] == 12
    tensors = {tensor.name: tensor for tensor in file.tensors}
    released = load_file(FAMILY / "moe" / "model.safetensors")
    for part, name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        stacked = torch.from_numpy(tensors[f"blk.1.ffn_{part}_exps.weight"].data.copy())
        for expert in range(16):
            assert torch.equal(stacked[expert], released[f"model.layers.1.mlp.experts.{expert}.{name}.weight"])
    queries = torch.from_numpy(tensors["blk.0.attn_q.weight"].data.copy())
    assert torch.equal(queries, released["model.layers.0.self_attn.q_proj.weight"])


def test_illada_is_exported_to_gguf_as_a_llada(folders, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    file = gguf.GGUFReader(export_gguf(folders / "illada-ours", tmp_path / "illada.gguf", weights="f32"))
    assert file.fields["general.architecture"].contents() == "llada"
    assert "output.weight" not in {tensor.name for tensor in file.tensors}


def test_what_an_export_does_not_compute_is_refused_by_name(folders, tmp_path) -> None:
    with pytest.raises(ValueError, match="`moe_router_enable_expert_bias` must be False for a GGUF file"):
        export_gguf(folders / "moe_variant-ours", tmp_path / "variant.gguf")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="is a LLaDA-MoE, which cannot be exported to onnx"):
        export_model(folders / "moe-ours", tmp_path / "onnx", "onnx")
