"""Laws of `llada train grpo`: a run in the test process, its prompts and rewards, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from llada_training.data import load_prompts
from llada_training.grpo_command import REWARDS, find_reward, grpo_main
from llada_training.puzzles import make_sudokus
from modeling_llada import LLaDAModelLM

from .conftest import CHECKPOINTS

pytestmark = pytest.mark.newest_only

ARGUMENTS = {
    "max_completion_length": 8, "block_length": 4, "num_generations": 4, "per_device_train_batch_size": 4,
    "max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip


def length(completions, **columns):
    """A reward that is imported by its name."""
    return [float(len(text) if isinstance(text, str) else len(text[-1]["content"])) for text in completions]


@pytest.fixture
def start(tmp_path, tokenizer):
    """A folder with the toy model, and prompts in JSON lines."""
    shutil.copytree(CHECKPOINTS / "mha", tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": "1 + 1?", "puzzle": s.puzzle, "solution": s.solution} for s in make_sudokus(8, 4, 4, "train")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def call(folder, **options):
    given = ARGUMENTS | {"model": folder / "model", "train_data": folder / "rows.jsonl"}
    given |= {"output_dir": folder / "run", "prompt_column": "question"} | options
    words = [word for name, value in given.items() for word in (f"--{name}", *str(value).split(","))]
    return grpo_main([word for word in words if word])


@pytest.mark.parametrize("objective", ["fork", "espo", "diffu"])
def test_a_run_writes_a_model_a_curve_and_a_card(start, objective):
    folder = Path(call(start, objective=objective, rewards=f"sudoku,{__name__}.length"))
    assert {"model.safetensors", "README.md", "loss_curve.png", "trainer_state.json"} <= {
        p.name for p in folder.iterdir()
    }
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"][0]
    assert {"rewards/sudoku_reward/mean", "rewards/length/mean", "rollout/passes"} <= set(logged)
    LLaDAModelLM.from_pretrained(folder)


def test_a_run_of_an_adapter_writes_the_adapter_and_the_merged_model(start):
    folder = Path(call(start, rewards=f"{__name__}.length", use_peft=True, lora_r=2, as_chat=False))
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    LLaDAModelLM.from_pretrained(folder)


def test_rewards_are_found_by_name_and_others_are_refused():
    assert all(find_reward(name) is function for name, function in REWARDS.items())
    assert find_reward(f"{__name__}.length") is length
    for name, message in (
        ("maths", "`rewards` must be of math, countdown, sudoku, format, or functions as my_module.my_reward"),
        ("absent_module.reward", "`rewards` must name functions that can be imported, got 'absent_module.reward'"),
        ("os.absent", "`rewards` must name functions that can be imported, got 'os.absent'"),
    ):
        with pytest.raises(ValueError, match=message):
            find_reward(name)


def test_prompts_keep_the_columns_that_rewards_read(start):
    rows = load_prompts([str(start / "rows.jsonl")], column="question")
    assert rows.column_names == ["prompt", "puzzle", "solution"]
    with pytest.raises(ValueError, match="Prompts must stand in the column `prompt`, got question, puzzle, solution"):
        load_prompts([str(start / "rows.jsonl")])
    (start / "other.jsonl").write_text(json.dumps({"question": "2?"}))
    with pytest.raises(ValueError, match="All files must have the same columns, got others in"):
        load_prompts([str(start / "rows.jsonl"), str(start / "other.jsonl")], column="question")
