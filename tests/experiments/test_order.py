"""The orders of filling in: what counts as solved, and what the table says."""

import pytest
import torch

from experiments import order
from llada_training.puzzles import MISSING, MissingDigits, count_fillings, has_one_solution, read_grid, split_of
from modeling_llada import LLaDAConfig, LLaDAModelLM

MASK, SIGNS = 1, "0123456789+-=\n>"


class Characters:
    """A tokenizer with a token for each character, as far as `order` needs one."""

    mask_token, mask_token_id = "M", MASK

    def __call__(self, texts, return_tensors=None, padding=False, add_special_tokens=False):
        texts = [texts] if isinstance(texts, str) else texts
        rows = [[MASK if sign == "M" else 2 + SIGNS.index(sign) for sign in text] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(SIGNS[token - 2] for token in row if token > 1) for row in rows.tolist()]


class Oracle(LLaDAModelLM):
    """Adds 1 to 1: its logits are sure of `2` everywhere."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., 2 + SIGNS.index("2")] = 9.0
        return output


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    return Oracle(
        LLaDAConfig(
            vocab_size=17, embedding_size=17, d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=32, mask_token_id=MASK,
            eos_token_id=0, pad_token_id=0, max_sequence_length=32,
        )
    ).eval()  # fmt: skip


def test_a_puzzle_counts_only_if_every_character_is_right(oracle):
    puzzles = [MissingDigits("1+1=□", "1+1=2"), MissingDigits("□+□=4", "2+2=4"), MissingDigits("□+□=5", "2+3=5")]
    found = order.measure(oracle, Characters(), puzzles, {})
    assert found.solved.mean == pytest.approx(2 / 3)
    assert found.passes == pytest.approx((1 + 2 + 2) / 3)


def test_the_options_of_a_setting_reach_the_passes(oracle):
    puzzles = [MissingDigits("□□+□=□□", "22+2=24")] * 2
    assert order.measure(oracle, Characters(), puzzles, {}).passes == 5
    assert order.measure(oracle, Characters(), puzzles, {"steps": 2}).passes == 2
    assert order.measure(oracle, Characters(), puzzles, {"threshold": 0.9}).passes == 1


def test_every_task_is_of_the_test_split_with_one_solution():
    tasks = order.make_tasks(3)
    assert list(tasks) == ["4x4", "6x6", "sums"]
    for task, puzzles in tasks.items():
        assert len({puzzle.puzzle for puzzle in puzzles}) == 3
        for puzzle in puzzles:
            if task == "sums":
                assert count_fillings(puzzle.puzzle) == 1
                assert split_of(puzzle.solution) == "test"
            else:
                assert has_one_solution(read_grid(puzzle.puzzle))
                assert split_of(read_grid(puzzle.solution)) == "test"
            assert MISSING in puzzle.puzzle


def test_the_table_has_a_row_for_each_setting_and_two_columns_for_each_task():
    outcome = order.Outcome(order.proportion_interval(1, 4), 3.5)
    results = {"plain": {"4x4": outcome, "sums": outcome}, "steps=2": {"4x4": outcome, "sums": outcome}}
    lines = order.make_table(results).splitlines()
    assert lines[0] == "|  | 4x4 (%) | 4x4, passes | sums (%) | sums, passes |"
    assert lines[3] == "| steps=2 | 25.0 ± 42.4 | 3.5 | 25.0 ± 42.4 | 3.5 |"
    assert order.plot(results) is not None


def test_an_autoregressive_model_reads_the_puzzle_before_it_writes_the_solution():
    puzzle = MissingDigits("□+1=3", "2+1=3")
    assert order.causal_text(puzzle, Characters(), with_solution=False) == "M+1=3>"
    assert order.causal_text(puzzle, Characters(), with_solution=True) == "M+1=3>2+1=3"
