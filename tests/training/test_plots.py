"""Laws of the loss curve."""

import json

import pytest

from llada_training import plot_loss_curve

HISTORY = [
    {"step": 1, "loss": 3.0, "learning_rate": 0.1, "loss_t_0.25": 2.0, "loss_t_1.00": 4.0},
    {"step": 2, "loss": 2.0, "learning_rate": 0.2, "loss_t_0.25": 1.0},
    {"step": 2, "eval_loss": 2.5},
]


def test_a_log_and_its_file_give_the_same_picture(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    first = plot_loss_curve(HISTORY, tmp_path / "a.png")
    second = plot_loss_curve(tmp_path / "trainer_state.json", tmp_path / "deeper" / "b.png")
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()


def test_a_log_without_a_loss_raises(tmp_path):
    with pytest.raises(ValueError, match="`history` must hold at least one `loss` or `eval_loss`, got none"):
        plot_loss_curve([{"step": 1, "train_runtime": 3.0}], tmp_path / "a.png")
