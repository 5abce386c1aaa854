"""Laws of a model that is split over two processes: it computes what one process computes."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from modeling_llada import (
    ILLaDAConfig,
    ILLaDAForCausalLM,
    LLaDAConfig,
    LLaDAModel,
    LLaDAModelLM,
    LLaDAMoEConfig,
    LLaDAMoEModelLM,
)
from modeling_llada.configuration_llada import SPLITS_VOCABULARY
from modeling_llada.modeling_llada import LLaDABlock

from .two_shards import CHECKPOINTS, MASK, SHARDINGS, computed_by

SCRIPT = Path(__file__).with_name("two_shards.py")
SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 64, "vocab_size": 100}
SMALL |= {"mask_token_id": MASK, "eos_token_id": 0, "pad_token_id": 0, "init_fn": "normal", "init_std": 0.3}
RELATIVE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
RELATIVE |= {"vocab_size": 100, "mask_token_id": MASK, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "expert_intermediate_size": 16, "dense_intermediate_size": 64}


def new_model(checkpoint: str) -> LLaDAModelLM:
    """A random model for each of `CHECKPOINTS`."""
    torch.manual_seed(0)
    if checkpoint == "illada":
        return ILLaDAForCausalLM(ILLaDAConfig(**RELATIVE, intermediate_size=64))
    if checkpoint == "moe":
        more = {"moe_layer_freq": [0, 1], "shared_expert_intermediate_size": 16}
        return LLaDAMoEModelLM(LLaDAMoEConfig(**RELATIVE, **EXPERTS, **more))
    return LLaDAModelLM(LLaDAConfig(**SMALL, weight_tying=checkpoint == "tied"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoints, and `results.pt` of the two processes."""
    folder = tmp_path_factory.mktemp("shards")
    for name in CHECKPOINTS:
        new_model(name).save_pretrained(folder / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert "match nothing" not in run.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_two_processes_compute_what_one_computes(folder, checkpoint, sharding) -> None:
    results = torch.load(folder / "results.pt", weights_only=False)[checkpoint, sharding]
    expected = computed_by(AutoModel.from_pretrained(folder / checkpoint, dtype=torch.float32).eval())
    assert len(expected) == 1 + 3 * 2 + 1 + 1 + len(dict(new_model(checkpoint).named_parameters()))
    for name, value in expected.items():
        if name.startswith("tokens"):
            assert torch.equal(results[name], value), name
        else:
            assert torch.allclose(results[name], value, atol=1e-4), name
    vocabulary = {"wte": 100 * 32 // 2, "ff_out": 100 * 32 // 2} if SPLITS_VOCABULARY else {}
    assert results["numbers here"] == {"blocks.0.q_proj": 32 * 32 // 2, **vocabulary}
    block = type(new_model(checkpoint).model.transformer.blocks[0]).__name__
    assert results["blocks"] == {f"FSDP{block}" if sharding == "FSDP2" else block}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_two_processes_save_the_weights_of_the_whole_model(folder, checkpoint, sharding) -> None:
    expected = AutoModel.from_pretrained(folder / checkpoint, dtype=torch.float32).state_dict()
    saved = AutoModel.from_pretrained(folder / sharding / checkpoint, dtype=torch.float32).state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in saved.items())


def test_every_rule_of_a_plan_names_modules_of_the_model() -> None:
    model = LLaDAModel(LLaDAConfig(**SMALL))
    names = {name.replace("blocks.0", "blocks.*") for name, _ in model.named_modules()}
    assert set(LLaDAConfig.base_model_tp_plan) <= names
    assert set(LLaDAConfig.base_model_fsdp_plan) <= names
    assert set(LLaDAConfig.base_model_pp_plan) <= names
    assert {"model." + name for name in names} >= {*(LLaDAModelLM._tp_plan or {}), *LLaDAModelLM._pp_plan}


def test_the_pipeline_plan_leads_from_the_ids_to_the_logits_by_the_names_of_forward() -> None:
    model = LLaDAModelLM(LLaDAConfig(**SMALL))
    assert model.supports_pp_plan
    stages = model.pp_plan if SPLITS_VOCABULARY else {**LLaDAConfig.base_model_pp_plan, **LLaDAModelLM._pp_plan}
    names = [name.removeprefix("model.") for name in stages]
    assert sorted(names) == sorted(f"transformer.{name}" for name in ("wte", "blocks", "ln_f", "ff_out"))
    known = {"input_ids", *inspect.signature(LLaDAModel.forward).parameters}
    known |= {*inspect.signature(LLaDABlock.forward).parameters, "logits"}
    for inputs, outputs in stages.values():
        assert {*inputs, *outputs} <= known


@pytest.mark.newest_only
def test_a_split_that_cannot_be_made_is_refused_by_name() -> None:
    from transformers.distributed import DistributedConfig

    model = LLaDAModelLM(LLaDAConfig(**SMALL))
    with pytest.raises(ValueError, match=r"`pp_size` must be 1, got 2: .*pass `tp_size`"):
        LLaDAModelLM.maybe_distribute_model(model, DistributedConfig(pp_size=2), None)
    with pytest.raises(ValueError, match=r"`tp_size` must divide `n_kv_heads` \(2\), got 4; use a divisor"):
        LLaDAModelLM.maybe_distribute_model(model, DistributedConfig(tp_size=4), None)
    own_plan = DistributedConfig(tp_size=4, tp_plan={"model.transformer.blocks.*.k_proj": "colwise_gather_output"})
    for possible in (DistributedConfig(), DistributedConfig(tp_size=2), own_plan, None):
        assert LLaDAModelLM.maybe_distribute_model(model, possible, None) is model
