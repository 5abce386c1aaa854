"""Laws of the name table: it is Llama's, it loses nothing in either direction, and what it does not know it leaves."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llada_conversion.weights import LAYOUTS
from modeling_llada.llama_layout_llada import name_in_file, name_in_memory
from tests.helpers import REFERENCE

PAIRS = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.blocks.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "model.transformer.blocks.1.q_proj.weight": "model.layers.1.self_attn.q_proj.weight",
    "model.transformer.blocks.2.k_proj.weight": "model.layers.2.self_attn.k_proj.weight",
    "model.transformer.blocks.9.v_proj.weight": "model.layers.9.self_attn.v_proj.weight",
    "model.transformer.blocks.10.attn_out.weight": "model.layers.10.self_attn.o_proj.weight",
    "model.transformer.blocks.31.ff_norm.weight": "model.layers.31.post_attention_layernorm.weight",
    "model.transformer.blocks.100.ff_proj.weight": "model.layers.100.mlp.gate_proj.weight",
    "model.transformer.blocks.3.up_proj.weight": "model.layers.3.mlp.up_proj.weight",
    "model.transformer.blocks.4.ff_out.weight": "model.layers.4.mlp.down_proj.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}


@pytest.mark.parametrize("official, llama", PAIRS.items())
def test_each_name_has_its_partner_in_both_directions(official, llama) -> None:
    assert name_in_file(official) == llama
    assert name_in_memory(llama) == official


@pytest.mark.parametrize("name", [*PAIRS, *PAIRS.values()])
def test_a_name_of_the_layout_asked_for_stays(name) -> None:
    assert name in (name_in_memory(name), name_in_file(name))
    assert {rename(rename(name)) == rename(name) for rename in LAYOUTS.values()} == {True}


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.transformer.blocks.0.weight", "lm_head", "", "1.2.3"]
)
def test_a_name_that_no_layout_knows_stays(name) -> None:
    assert name_in_memory(name) == name_in_file(name) == name


@torch.no_grad()
@pytest.mark.parametrize("name", ["mha", "tied"])
def test_under_llamas_names_llama_without_a_causal_mask_computes_the_recorded_logits(name) -> None:
    weights = load_file(REFERENCE / "checkpoints" / name / "model.safetensors")
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=weights[
            "model.transformer.blocks.0.ff_proj.weight"
        ].shape[0], vocab_size=512, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=name == "tied",
        num_key_value_heads=weights["model.transformer.blocks.0.k_proj.weight"].shape[0] // 16,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    missing, unexpected = llama.load_state_dict({name_in_file(n): w for n, w in weights.items()}, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if name == "tied" else [], [])
    case = torch.load(REFERENCE / "recorded" / f"{name}.pt", weights_only=True)["logits"]["single"]
    ids = case["input_ids"]
    sees_all = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
    torch.testing.assert_close(llama(ids, attention_mask=sees_all).logits, case["logits"], atol=1e-4, rtol=1e-4)
