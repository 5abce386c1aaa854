"""Laws of iLLaDA and LLaDA-MoE: recorded logits and texts, released files in and out, routing, experts, losses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from modeling_llada import ILLaDAConfig, ILLaDAForCausalLM, LLaDAConfig, LLaDAModelLM, LLaDAMoEConfig, LLaDAMoEModelLM
from modeling_llada.llama_layout_llada import NAMES, name_in_file, name_in_memory
from modeling_llada.modeling_llada_moe import ListedExperts, StackedExperts
from tests.family import FAMILY, KINDS
from tests.helpers import CODE_FILES, REFERENCE, other_python, run_stranger

TOLERANCE = 1e-4
RELATIVE_FILES = CODE_FILES | {"configuration_llada_relatives.py", "llama_layout_llada.py"}
MOE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "expert_intermediate_size": 12,
    "dense_intermediate_size": 40,
    "vocab_size": 64,
    "mask_token_id": 63,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> Any:
    return AutoModel.from_pretrained(FAMILY / kind).eval()


@pytest.fixture(scope="module")
def recorded(kind) -> dict[str, Any]:
    return torch.load(FAMILY / kind / "recorded.pt", weights_only=True)


def small_moe(**fields: Any) -> LLaDAMoEModelLM:
    torch.manual_seed(0)
    return LLaDAMoEModelLM(LLaDAMoEConfig(**{**MOE, **fields})).eval()


def arguments(record: dict[str, Any]) -> dict[str, Any]:
    mask = record["attention_mask"] if record.get("attention_mask_4d") is None else record["attention_mask_4d"]
    chosen = {"attention_mask": mask, "position_ids": record.get("position_ids")}
    return {"input_ids": record["input_ids"], **{name: value for name, value in chosen.items() if value is not None}}


def real(record: dict[str, Any]) -> Tensor:
    mask = record["attention_mask"]
    return torch.ones_like(record["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


# --- the recordings --------------------------------------------------------------------------------------------------


def test_the_architecture_decides_on_the_class(kind) -> None:
    config_class, model_class = (
        (ILLaDAConfig, ILLaDAForCausalLM) if kind == "illada" else (LLaDAMoEConfig, LLaDAMoEModelLM)
    )
    assert type(AutoConfig.from_pretrained(FAMILY / kind)) is config_class
    assert type(LLaDAConfig.from_pretrained(FAMILY / kind)) is config_class
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        assert type(auto_class.from_pretrained(FAMILY / kind)) is model_class
    dense = REFERENCE / "checkpoints" / "mha"
    assert type(AutoModel.from_pretrained(dense)) is LLaDAModelLM


def test_logits_and_hidden_states_equal_the_recorded_ones(model, recorded) -> None:
    for record in recorded["logits"]:
        with torch.no_grad():
            output = model(**arguments(record), output_hidden_states=True)
        assert (output.logits - record["logits"])[real(record)].abs().max() < TOLERANCE, record["name"]
        first = output.hidden_states[1] - record["hidden_states_1"]
        assert first[real(record)].abs().max() < TOLERANCE, record["name"]


def test_router_logits_experts_and_weights_equal_the_recorded_ones(kind, model, recorded) -> None:
    if kind == "illada":
        pytest.skip("it has no router")
    for record in recorded["logits"]:
        with torch.no_grad():
            output = model(**arguments(record), output_router_logits=True)
        is_real = real(record).flatten()
        router = record["router"]
        layer = router["layer"]
        logits = output.router_logits[sum(model.config.moe_layer_freq[:layer])]
        weights, experts = model.model.transformer.blocks[layer].mlp.route(logits)
        assert (logits - router["logits"].view_as(logits))[is_real].abs().max() < TOLERANCE
        theirs = router["experts"].view_as(experts)
        assert torch.equal(experts.sort(-1)[0][is_real], theirs.sort(-1)[0][is_real])
        recorded_weights = router["weights"].view_as(weights).gather(-1, theirs.argsort(-1))
        assert (weights.gather(-1, experts.argsort(-1)) - recorded_weights)[is_real].abs().max() < TOLERANCE


def test_generated_texts_equal_the_recorded_ones(model, recorded) -> None:
    ids = recorded["meta"]["ids"]
    comparable = [record for record in recorded["generate"] if record["robust"] and record["checked"]]
    assert len(comparable) >= 14
    for record in comparable:
        options = dict(record["kwargs"])
        answer = model.generate(
            record["prompt"],
            attention_mask=record["attention_mask"],
            max_new_tokens=options.pop("gen_length"),
            **options,
            stop_at_eos=False,
            mask_token_id=ids["mask"],
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
        )
        assert answer.tolist() == record["output"].tolist(), record["name"]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_renewed_in_every_pass_changes_nothing(model, recorded, cache) -> None:
    ids = recorded["meta"]["ids"]
    options = {
        "max_new_tokens": 16,
        "block_length": 8,
        "steps": 8,
        "mask_token_id": ids["mask"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
    }
    prompt = torch.arange(20, 29).view(1, 9)
    plain = model.generate(prompt, **options)
    assert torch.equal(model.generate(prompt, **options, cache=cache, refresh_interval=1), plain)
    assert model.generate(prompt, **options, cache=cache).shape[0] == 1


def test_an_answer_of_open_length_grows_block_by_block() -> None:
    model = AutoModel.from_pretrained(FAMILY / "illada").eval()
    prompt = torch.arange(20, 29).view(1, 9)
    answer = model.generate(prompt, max_new_tokens=None, max_length=41, block_length=8, eos_token_id=300)
    assert answer.shape[1] <= 41
    assert not (answer == model.config.mask_token_id).any()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_released_checkpoint_is_saved_byte_for_byte_with_the_code_that_loads_it(kind, model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (FAMILY / kind / "model.safetensors").read_bytes()
    own = "modeling_illada.py" if kind == "illada" else "modeling_llada_moe.py"
    assert {path.name for path in tmp_path.glob("*.py")} == {own, *RELATIVE_FILES}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (FAMILY / kind, tmp_path))
    changed = {name for name in before if name not in after or after[name] != before[name]}
    assert changed <= {"auto_map", "rope_scaling", "torch_dtype", "transformers_version"}


def test_a_fresh_model_is_saved_under_the_released_names(kind, model, tmp_path) -> None:
    type(model)(model.config).save_pretrained(tmp_path)
    released = load_file(FAMILY / kind / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {n: v.shape for n, v in released.items()}


# Runs where `import modeling_llada` fails; loads folders, saves them elsewhere, prints the logits of some ids.
STRANGER = """
import json, sys
sys.modules["modeling_llada"] = None
import torch
from transformers import AutoConfig, AutoModelForCausalLM

for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        print("logits", json.dumps(model(torch.arange(10)[None], logits_to_keep=2).logits.flatten().tolist()))
    model.save_pretrained(folder + "-again")
"""


@pytest.mark.parametrize("other", [False, True], ids=["this transformers", "the other transformers"])
def test_saved_folders_load_and_are_saved_again_where_nothing_of_ours_is_installed(tmp_path, other) -> None:
    models = {kind: AutoModel.from_pretrained(FAMILY / kind).eval() for kind in KINDS}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
    python = other_python() if other else sys.executable
    process = run_stranger(python, tmp_path, STRANGER, *(str(tmp_path / kind) for kind in KINDS))
    assert process.returncode == 0, process.stderr
    printed = [line[7:] for line in process.stdout.splitlines() if line.startswith("logits ")]
    for line, (kind, model) in zip(printed, models.items(), strict=True):
        with torch.no_grad():
            logits = model(torch.arange(10)[None], logits_to_keep=2).logits.flatten()
        assert (torch.tensor(json.loads(line)) - logits).abs().max() < TOLERANCE
        again = (tmp_path / f"{kind}-again" / "model.safetensors").read_bytes()
        assert again == (FAMILY / kind / "model.safetensors").read_bytes()


def test_names_map_both_ways() -> None:
    for name, stored in NAMES.items():
        name, stored = name.replace("{i}", "12"), stored.replace("{i}", "12")
        if name.endswith("."):
            name, stored = f"{name}3.up_proj.weight", f"{stored}3.up_proj.weight"
        assert name_in_file(name) == stored
        assert name_in_memory(stored) == name
    assert name_in_memory("score.weight") == "score.weight"


DAMAGE = {
    "missing": ("`model.norm.weight` is missing", lambda tensors: tensors.pop("model.norm.weight")),
    "extra": ("Unexpected tensor `extra.weight`", lambda tensors: tensors.update({"extra.weight": torch.zeros(2)})),
    "shape": (
        r"`model.norm.weight` has shape \[3\], not",
        lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
    ),
}


def load_damaged(kind: str, folder: Path, damage: Any) -> Any:
    tensors = load_file(FAMILY / kind / "model.safetensors")
    damage(tensors)
    shutil.copy(FAMILY / kind / "config.json", folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_are_not_the_config_s_are_refused_by_name(kind, tmp_path, damage) -> None:
    message, change = DAMAGE[damage]
    with pytest.raises(ValueError, match=message):
        load_damaged(kind, tmp_path, change)


def test_an_expert_under_another_number_is_refused(tmp_path) -> None:
    def renumber(tensors: dict[str, Tensor]) -> None:
        start = "model.layers.1.mlp.experts."
        tensors[f"{start}16.up_proj.weight"] = tensors.pop(f"{start}3.up_proj.weight")

    with pytest.raises(ValueError, match=r"experts.3.up_proj.weight` is missing. Unexpected .*experts.16.up_proj"):
        load_damaged("moe", tmp_path, renumber)


def test_a_tied_head_may_be_left_out_but_not_differ(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`lm_head.weight` differs from `model.embed_tokens.weight`"):
        load_damaged("illada", tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1))
    model = load_damaged("illada", tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# --- configurations --------------------------------------------------------------------------------------------------

REFUSED = [
    (ILLaDAConfig, {"layer_norm_eps": 1e-5}, "`layer_norm_eps` must be None"),
    (ILLaDAConfig, {"attention_bias": True}, "`attention_bias` must be False"),
    (ILLaDAConfig, {"hidden_act": "gelu"}, "`hidden_act` must be 'silu'"),
    (ILLaDAConfig, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "`rope_scaling` must be None"),
    (ILLaDAConfig, {"num_key_value_heads": 5}, "must divide"),
    (ILLaDAConfig, {"intermediate_size": "x"}, "`intermediate_size` must be a positive integer"),
    (LLaDAMoEConfig, {"num_experts": 4, "num_experts_per_tok": 5}, r"`num_experts_per_tok` must be at most .* \(4\)"),
    (LLaDAMoEConfig, {"moe_layer_freq": [1, 1]}, "`moe_layer_freq` must be 0 or 1 for each of the 16 layers"),
    (LLaDAMoEConfig, {"partial_rotary_factor": 0.01}, "`partial_rotary_factor` must leave an even number"),
    (LLaDAMoEConfig, {"clip_qkv": -1}, "`clip_qkv` must be a positive number or None"),
    (LLaDAMoEConfig, {"mask_token_id": 157184}, "`mask_token_id` must lie in the vocabulary"),
    (LLaDAMoEConfig, {"attention_dropout": 0.1}, "`attention_dropout` must be 0"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_values_that_are_not_computed_are_refused_by_name(config_class, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


def test_released_configs_without_a_mask_get_the_released_one() -> None:
    assert ILLaDAConfig().mask_token_id == 5
    assert LLaDAMoEConfig().mask_token_id == 156895
    assert LLaDAMoEConfig(**{**MOE, "mask_token_id": -1}).mask_token_id is None


def test_llada_s_names_read_and_write_the_released_fields() -> None:
    config = LLaDAMoEConfig(**MOE)
    assert (config.d_model, config.n_layers, config.n_kv_heads, config.embedding_size) == (32, 2, 2, 64)
    config.max_sequence_length = 77
    assert config.max_position_embeddings == 77
    assert "d_model" not in config.to_dict()


def test_rotary_parameters_of_transformers_5_are_read() -> None:
    parameters = {"rope_type": "default", "rope_theta": 1234.0, "partial_rotary_factor": 0.5}
    config = LLaDAMoEConfig(**MOE, rope_parameters=parameters)
    assert (config.rope_theta, config.rotary_dim) == (1234.0, 4)


# --- routing, experts and losses -------------------------------------------------------------------------------------


def test_experts_one_after_the_other_equal_a_sum_over_all_experts_by_hand() -> None:
    model = small_moe()
    layer = model.model.transformer.blocks[0].mlp
    states = torch.randn(5, 32)
    probabilities = (states @ layer.gate.weight.T).softmax(-1)
    expected = torch.zeros(5, 32)
    for token in range(5):
        for expert in probabilities[token].topk(2).indices.tolist():
            run = layer.experts.functions()[expert](states[token : token + 1])[0]
            expected[token] += probabilities[token, expert] * run
    assert torch.allclose(layer(states[None])[0], expected, atol=1e-6)


def test_an_expert_bias_moves_the_choice_and_is_part_of_the_weights() -> None:
    model = small_moe(moe_router_enable_expert_bias=True)
    layer = model.model.transformer.blocks[0].mlp
    layer.expert_bias[4] = 10.0
    weights, experts = layer.route(torch.zeros(3, 6))
    assert experts[:, 0].tolist() == [4, 4, 4]
    assert torch.allclose(weights[:, 0], torch.full((3,), 10 + 1 / 6))


@pytest.mark.newest_only
def test_grouped_and_looped_experts_give_equal_outputs_and_gradients() -> None:
    gradients, logits = [], []
    ids = torch.randint(0, 63, (2, 9), generator=torch.Generator().manual_seed(0))
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model = small_moe()
        model.set_experts_implementation(implementation)
        output = model(ids).logits
        output.square().mean().backward()
        logits.append(output.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for other in (1, 2):
        assert torch.allclose(logits[other], logits[0], atol=1e-5)
        assert gradients[other].keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            assert torch.allclose(gradients[other][name], gradient, atol=1e-6), name


def test_stacked_and_listed_experts_are_the_same() -> None:
    config = LLaDAMoEConfig(**MOE)
    config._experts_implementation = "eager"
    stacked, listed = StackedExperts(config), ListedExperts(config)
    torch.manual_seed(0)
    for parameter in stacked.parameters():
        torch.nn.init.normal_(parameter)
    for index, expert in enumerate(listed):
        gate, up = stacked.gate_up_proj[index].chunk(2)
        expert.gate_proj.weight.data, expert.up_proj.weight.data = gate, up
        expert.down_proj.weight.data = stacked.down_proj[index]
    states, experts = torch.randn(7, 32), torch.randint(0, 6, (7, 1)).repeat(1, 2)
    experts[:, 1] = (experts[:, 0] + 1) % 6
    weights = torch.rand(7, 2)
    assert torch.allclose(stacked(states, experts, weights), listed(states, experts, weights), atol=1e-5)


def test_the_balance_loss_is_experts_times_the_sum_of_shares_and_probabilities_over_real_tokens() -> None:
    model = small_moe(num_hidden_layers=1, moe_layer_freq=[1])
    ids, mask = torch.randint(0, 62, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids[0, 0] = 63
    output = model(ids, attention_mask=mask, labels=ids.where(ids == 63, torch.tensor(-100)), output_router_logits=True)
    probabilities = output.router_logits[0].softmax(-1)[mask.flatten().bool()]
    chosen = F.one_hot(probabilities.topk(2).indices, 6).sum(1).float()
    expected = 6 * (chosen.mean(0) * probabilities.mean(0)).sum()
    assert torch.allclose(output.aux_loss, expected, atol=1e-6)
    plain = model(ids, attention_mask=mask, labels=ids.where(ids == 63, torch.tensor(-100)))
    assert torch.allclose(output.loss, plain.loss + 0.01 * expected, atol=1e-6)
    output.aux_loss.backward()
    assert model.model.transformer.blocks[0].mlp.gate.weight.grad.abs().sum() > 0


def test_gradients_of_router_and_experts_equal_finite_differences() -> None:
    model = small_moe(num_hidden_layers=1, moe_layer_freq=[1], shared_expert_intermediate_size=8).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    ids = torch.tensor([[5, 63, 9, 63, 11]])

    def loss() -> Tensor:
        return model(ids).logits[:, [1, 3]].log_softmax(-1)[..., 7].sum()

    loss().backward()
    layer = model.model.transformer.blocks[0].mlp
    checked = 0
    for parameter in [layer.gate.weight, *layer.experts.parameters()]:
        flat, gradient = parameter.data.view(-1), parameter.grad
        if gradient is None or not gradient.any():  # an expert that nobody chose
            continue
        place = int(gradient.abs().argmax())
        step = 1e-3  # the router's softmax is float32
        flat[place] += step
        above = loss().item()
        flat[place] -= 2 * step
        below = loss().item()
        flat[place] += step
        assert (above - below) / (2 * step) == pytest.approx(gradient.view(-1)[place].item(), rel=3e-3)
        checked += 1
    assert checked >= 3


def test_router_logits_come_only_when_asked_for_and_once_under_checkpointing() -> None:
    model = small_moe()
    ids = torch.tensor([[5, 63, 9, 63]])
    assert not hasattr(model(ids), "router_logits") or model(ids).router_logits is None
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    output = model(ids, labels=torch.tensor([[-100, 7, -100, 8]]), output_router_logits=True)
    assert len(output.router_logits) == 2
    output.loss.backward()
    assert len(output.router_logits) == 2
    assert len(model(ids, output_router_logits=True, return_dict=False)) == 3


def test_every_relative_s_decoding_parts_are_llada_s(model) -> None:
    assert isinstance(model, LLaDAModelLM)
    rows = [torch.arange(20, 29).tolist(), torch.arange(40, 44).tolist()]
    options = {"max_new_tokens": 8, "block_length": 8, "mask_token_id": 319, "eos_token_id": 316, "pad_token_id": 316}
    alone = [model.generate(torch.tensor([row]), **options)[0, len(row) :].tolist() for row in rows]
    many = {answer.index: answer for answer in model.generate_many(rows, **options)}
    for index, answer in enumerate(alone):
        assert many[index].ids[: len(answer)] == answer[: len(many[index].ids)]
