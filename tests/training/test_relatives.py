"""Laws of training LLaDA's relatives: fine-tuning, LoRA and the load-balancing loss."""

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset

from llada_core import load_checkpoint
from llada_evaluation import estimate_log_likelihoods
from llada_training import LORA_TARGET_MODULES, LLaDASFTConfig, LLaDASFTTrainer
from modeling_llada import LLaDAMoEModelLM
from tests.family import KINDS, released_folder


def trainer_of(
    folder: Path, output: Path, adapter: Any = None, router: bool = False, **options: Any
) -> LLaDASFTTrainer:
    checkpoint = load_checkpoint(folder, device="cpu")
    if router:
        checkpoint.model.config.output_router_logits = True
    config = LLaDASFTConfig(
        str(output),
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, **options},
        logging_steps=1,
        report_to="none",
        use_cpu=True,
    )
    data = Dataset.from_list([{"prompt": "ab", "completion": "cd ef"}] * 8)
    return LLaDASFTTrainer(
        checkpoint.model, config, train_dataset=data, processing_class=checkpoint.tokenizer, peft_config=adapter
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_relative_is_saved_as_released_and_loads(kind, tmp_path) -> None:
    trainer = trainer_of(released_folder(kind, tmp_path / "source"), tmp_path / "out")
    trainer.train()
    trainer.save_model()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[1] < losses[0] and all(map(math.isfinite, losses))
    ids = torch.arange(20, 30)[None]
    loaded = load_checkpoint(tmp_path / "out", device="cpu").model
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, trainer.model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_takes_every_layer_that_all_tokens_pass_and_comes_back(kind, tmp_path) -> None:
    folder = released_folder(kind, tmp_path / "source")
    trainer = trainer_of(folder, tmp_path / "out", peft.LoraConfig(r=2))
    adapted = {name.split(".lora_A")[0] for name, _ in trainer.model.named_parameters() if "lora_A" in name}
    layers = {name.split(".blocks.")[1].partition(".")[2] for name in adapted}
    attention, dense = {"q_proj", "k_proj", "v_proj", "attn_out"}, {"ff_proj", "up_proj", "ff_out"}
    shared = {f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    expected = {"illada": attention | dense, "moe": attention, "moe_variant": attention | dense | shared}
    assert layers == expected[kind]
    trainer.train()
    trainer.save_model()
    ids = torch.arange(20, 30)[None]
    base = load_checkpoint(folder, device="cpu").model
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        trained = trainer.model.eval()(ids).logits
        assert torch.allclose(loaded(ids).logits, trained, atol=1e-5)
        assert torch.allclose(loaded.merge_and_unload()(ids).logits, trained, atol=1e-4)


def test_plain_peft_finds_layers_of_a_relative(tmp_path) -> None:
    model = load_checkpoint(released_folder("illada", tmp_path / "source"), device="cpu").model
    names = [name for name, _ in peft.get_peft_model(model, peft.LoraConfig()).named_parameters() if "lora_A" in name]
    assert {name.split(".lora_A")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    assert "shared_expert" in LORA_TARGET_MODULES


def test_the_balance_loss_is_added_as_a_mean_over_the_step_with_trl_s_weight(tmp_path, monkeypatch) -> None:
    folder, seen = released_folder("moe", tmp_path / "source"), []
    balance_loss = LLaDAMoEModelLM.balance_loss

    def note(*args: Any) -> Any:
        seen.append(balance_loss(*args))
        return seen[-1]

    monkeypatch.setattr(LLaDAMoEModelLM, "balance_loss", note)
    losses = {}
    for weight in (0.0, 0.5):
        options = {"max_steps": 1, "gradient_accumulation_steps": 2, "router_aux_loss_coef": weight}
        trainer = trainer_of(folder, tmp_path / str(weight), **options)
        trainer.train()
        losses[weight] = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert len(seen) == 2
    assert losses[0.5] == pytest.approx(losses[0.0] + 0.5 * sum(map(float, seen)) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["illada", "moe"])
def test_likelihoods_of_a_relative_are_finite_and_repeat(kind, tmp_path) -> None:
    model = load_checkpoint(released_folder(kind, tmp_path / "source"), device="cpu").model
    first, again = (estimate_log_likelihoods(model, [([20, 21], [22, 23, 24])]) for _ in range(2))
    assert math.isfinite(first[0].log_likelihood) and first[0].log_likelihood < 0
    assert first == again


def test_a_weight_of_the_balance_loss_is_refused_without_experts(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef` is set to 0.1 but ILLaDAForCausalLM is not a"):
        trainer_of(released_folder("illada", tmp_path / "source"), tmp_path / "out", router_aux_loss_coef=0.1)
