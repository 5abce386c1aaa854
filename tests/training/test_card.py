"""Laws of the card that the trainers write: it tells the run's data and options, and its usage example runs."""

import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from llada_core.tokenization import save_tokenizer
from llada_training import write_card
from modeling_llada import LLaDAModelLM
from tests.helpers import run_stranger


@pytest.fixture
def base(tmp_path, make_model, tokenizer) -> Path:
    """A folder with the small model, which answers with four tokens by default, and its tokenizer."""
    folder, model = tmp_path / "base", make_model(max_sequence_length=160)
    model.generation_config = model.generation_config.updated(max_new_tokens=4)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


def examples_of(card: ModelCard) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.text, flags=re.DOTALL | re.MULTILINE)


def run_offline(code: str, work: Path) -> None:
    """Run code where none of our packages can be imported, and the Hub cannot be reached."""
    code = "import sys\nfor name in ('modeling_llada', 'llada_training'):\n    sys.modules[name] = None\n" + code
    done = run_stranger(sys.executable, work, code)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.newest_only
def test_the_usage_of_a_fine_tuned_model_runs(base, make_sft_trainer, chats, tmp_path) -> None:
    trainer = make_sft_trainer(LLaDAModelLM.from_pretrained(base), train_dataset=chats)
    trainer.train()
    trainer.save_model()
    usage = examples_of(card_of(tmp_path / "run"))
    assert ["from_pretrained" in usage[0], "infill" in usage[1], "apply_chat_template" in usage[2]] == [True] * 3
    run_offline("\n".join(usage), tmp_path)


@pytest.mark.newest_only
def test_the_usage_of_an_adapter_runs_on_its_base_model(base, make_sft_trainer, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    trainer = make_sft_trainer(LLaDAModelLM.from_pretrained(base), peft_config=config)
    trainer.save_model()
    card = card_of(tmp_path / "run")
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert f'PeftModel.from_pretrained(base, "{tmp_path}/run")' in card.text
    for name, value in (("r", "2"), ("target_modules", "q_proj, v_proj")):
        assert f"| `LoRA {name}` | {value} |" in card.text
    run_offline("\n".join(examples_of(card)), tmp_path)


@pytest.mark.newest_only
def test_the_card_tells_data_options_steps_and_the_last_results(make_sft_trainer, pairs, tokenizer, tmp_path) -> None:
    options = {"num_noise_samples": 2, "complementary_masks": True, "eos_fill": 3, "packing": True}
    trainer = make_sft_trainer(eval_dataset=pairs.select(range(5)), **options)
    trainer.args.train_data = ["/home/somebody/pairs.jsonl", "user/facts"]
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    card = card_of(tmp_path / "run")
    lengths = [
        len(tokenizer(prompt + completion)["input_ids"])
        for prompt, completion in zip(pairs["prompt"], pairs["completion"])
    ]
    rows = len(trainer.train_dataset)
    assert 1 <= rows < 24
    assert f"- Training: `pairs.jsonl`, `user/facts`, {rows} rows, {sum(lengths):,} tokens." in card.text
    assert f"- Evaluation: 5 rows, {sum(lengths[:5])} tokens." in card.text
    assert "/home/somebody" not in card.text
    assert card.data.datasets == ["user/facts"]
    assert "trained from scratch: 2 layers, width 32, 4 heads" in card.text
    assert "\n3 optimizer steps" in card.text
    for name, value in {**options, "learning_rate": 0.01, "max_steps": 3, "turns": "random"}.items():
        assert f"| `{name}` | {value} |" in card.text, name
    last = {name: value for row in trainer.state.log_history for name, value in row.items()}
    for name in ("loss", "eval_loss", "masked_accuracy", "eval_masked_accuracy"):
        assert f"| `{name}` | {last[name]:.4f} |" in card.text, name
    assert "{{" not in card.text and "{%" not in card.text and "None" not in card.text


def test_checkpoints_and_the_end_of_pretraining_have_a_card(make_trainer, tmp_path) -> None:
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert f'from_pretrained("{checkpoint}"' in card_of(checkpoint).text
    assert not (tmp_path / "run" / "README.md").exists()
    trainer.save_model()
    card = card_of(tmp_path / "run")
    assert "| `random_length_probability` | 0.2 |" in card.text
    assert "- Training: 64 rows, " in card.text
    assert len(examples_of(card)) == 1
    assert card.text.count("generated_from_trainer") == 0


def test_what_only_a_person_knows_goes_into_the_card(make_trainer, tmp_path) -> None:
    trainer = make_trainer()
    trainer.save_model()
    assert card_of(tmp_path / "run").data.license is None
    (tmp_path / "run" / "loss_curve.png").touch()
    facts = {"license": "mit", "language": "en", "dataset": ["user/corpus"], "tags": "toy"}
    trainer.create_model_card("My model", **facts)
    card = card_of(tmp_path / "run")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en"], ["user/corpus"])
    assert "toy" in card.data.tags
    assert card.text.startswith("\n# My model\n")
    assert "](loss_curve.png)" in card.text


def test_a_folder_without_a_model_gets_no_card(make_trainer, tmp_path) -> None:
    trainer = make_trainer()
    assert write_card(trainer, tmp_path) is None
    trainer.create_model_card()
    assert not (tmp_path / "README.md").exists() and not (tmp_path / "run" / "README.md").exists()


@pytest.mark.newest_only
def test_beside_a_merged_model_the_card_is_that_of_a_whole_model(base, make_sft_trainer, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_sft_trainer(LLaDAModelLM.from_pretrained(base), peft_config=config)
    trainer.save_model(str(tmp_path / "run" / "adapter"))
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "run")
    trainer.create_model_card()
    assert card_of(tmp_path / "run" / "adapter").data.library_name == "peft"
    card = card_of(tmp_path / "run")
    assert card.data.library_name == "transformers"
    assert "| `LoRA r` | 2 |" in card.text
