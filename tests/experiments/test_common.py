"""Laws of what the experiments share: models of one shape, their training, scores, jobs and intervals."""

import itertools
import math
import shutil

import pytest
import torch

from experiments import common, redraw
from experiments.common import (
    KINDS,
    FitOptions,
    Shape,
    fit,
    make_model,
    mean_interval,
    proportion_interval,
    run_jobs,
    score_rows,
)
from tests.helpers import ROOT

MASK, PAD = 1, 0


def tiny(kind, seed=0):
    return make_model(kind, Shape(32, 1), 20, 16, MASK, PAD, seed).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_counts_the_parameters_that_are_no_embedding(kind):
    shape = Shape(64, 2)
    # A block: 4 · 64² in attention, 3 · 64 · 160 in the feed-forward layer, 2 · 64 in norms; a last norm of 64.
    assert shape.mlp_width == 160
    assert shape.num_block_parameters == 2 * (16384 + 30720 + 128) + 64
    model = make_model(kind, shape, 20, 16, MASK, PAD, seed=0)
    assert model.num_parameters() == shape.num_block_parameters + 20 * 64


def test_an_unknown_kind_of_model_raises():
    with pytest.raises(ValueError, match="`kind` must be one of llada, autoregressive, got 'gpt'"):
        make_model("gpt", Shape(32, 1), 20, 16, MASK, PAD, seed=0)


def test_the_rate_rises_over_the_warmup_and_falls_to_its_final_share():
    options = FitOptions(warmup_share=0.1, final_share=0.1)
    assert options.rate(0, 100) == pytest.approx(0.1)
    assert options.rate(50, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert options.rate(99, 100) == pytest.approx(0.1, abs=1e-3)
    assert FitOptions(final_share=1.0).rate(77, 100) == 1.0


def with_uniform_predictions(model):
    """A model whose logits are all 0: every token has probability 1 in 20."""
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_of_uniform_predictions_loss_and_score_are_the_logarithm_of_the_vocabulary(kind):
    model = with_uniform_predictions(tiny(kind))
    ids = torch.randint(2, 20, (3, 8)).tolist()
    [loss] = fit(model, ids, 3, 1, 0, FitOptions(learning_rate=0.0))
    assert loss == pytest.approx(math.log(20), rel=1e-4)
    scores = score_rows(model, [[5, 6, 7, 8], [8, 9, 10, 11]], num_samples=4)
    assert scores.values.tolist() == pytest.approx([-3 * math.log(20)] * 2, rel=1e-5)
    assert scores.standard_errors.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_an_autoregressive_score_is_the_sum_over_the_chain_rule(monkeypatch):
    monkeypatch.setattr(common, "SCORE_BATCH", 1)
    model, row = tiny("autoregressive"), [5, 6, 7]
    with torch.no_grad():
        first = model(torch.tensor([[5]])).logits[0, -1].log_softmax(-1)[6]
        second = model(torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1)[7]
    expected = pytest.approx(float(first + second), rel=1e-5)
    scores = score_rows(model, [row, [5, 7, 6], row], num_samples=2).values.tolist()
    assert scores[0] == expected and scores[2] == expected and scores[1] != expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_the_same_twice_and_learns(kind):
    rows, measured = [[2, 3, 4, 5, 6, 7]] * 8, []
    model = tiny(kind)

    def measure(step):
        assert not model.training
        measured.append(step)

    losses = fit(model, rows, 8, 30, 0, FitOptions(learning_rate=1e-2), (10, 30), measure)
    assert measured == [10, 30] and not model.training
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    assert fit(tiny(kind), rows, 8, 30, 0, FitOptions(learning_rate=1e-2)) == losses


def test_both_kinds_of_model_see_the_same_rows_in_the_same_order_and_every_row_once_a_round():
    seen = {}
    for kind in KINDS:
        model, batches = tiny(kind), []
        # Rows are told apart by their first token, which is never masked.
        rows = [[number, 2, 3] for number in range(4, 14)]

        def note(module, inputs, batches=batches):
            batches.append(inputs[0][:, 0].tolist())

        model.get_input_embeddings().register_forward_pre_hook(note)
        fit(model, rows, 4, 6, 3, FitOptions())
        seen[kind] = batches
    assert seen["llada"] == seen["autoregressive"]
    assert [len(batch) for batch in seen["llada"]] == [4, 4, 2, 4, 4, 2]
    first, second = (list(itertools.chain(*batches)) for batches in (seen["llada"][:3], seen["llada"][3:]))
    assert sorted(first) == sorted(second) == list(range(4, 14)) and first != second


def square(number):
    return number**2


def test_jobs_that_have_a_result_are_not_run_again(tmp_path, capsys):
    path, jobs = tmp_path / "jobs.jsonl", {"two": (2,), "three": (3,)}
    assert run_jobs(square, {"two": (2,)}, {"a": 1}, path, 1) == {"two": 4}
    assert "two: done after" in capsys.readouterr().err
    assert run_jobs(square, jobs, {"a": 1}, path, 1) == {"two": 4, "three": 9}
    assert "two" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="was written by another run: `a` was 1, now 2"):
        run_jobs(square, jobs, {"a": 2}, path, 1)
    assert run_jobs(square, jobs, {"a": 2}, path, 1, overwrite=True) == {"two": 4, "three": 9}


@pytest.mark.slow
def test_jobs_run_in_several_processes(tmp_path):
    jobs = {"two": (2,), "three": (3,)}
    assert run_jobs(square, jobs, {"a": 1}, tmp_path / "jobs.jsonl", 2) == {"two": 4, "three": 9}


def test_a_proportion_has_the_error_of_independent_questions():
    found = proportion_interval(20, 100)
    assert found == pytest.approx((0.2, 0.04, 0.0784))


def test_an_interval_over_runs_is_student_s():
    # Standard deviation 1 over three runs; 4.303 is the 95 % point of two degrees of freedom.
    found = mean_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 3**-0.5, 4.302653 * 3**-0.5))
    assert mean_interval([0.5]) == (0.5, None, None)
    # 2.093024 is that of 19.
    assert mean_interval([0.0, 2.0] * 10).half_width == pytest.approx(2.093024 * (20 / 19 / 20) ** 0.5)
    with pytest.raises(ValueError, match="`values` must hold at least one number, got none"):
        mean_interval([])


def test_a_figure_is_drawn_again_from_its_record_alone(tmp_path):
    names = set()
    for source in (ROOT / "docs" / "results").glob("*.record.json"):
        if source.name.split("-")[0] not in redraw.NAMES:
            continue
        names.add(source.name.split("-")[0])
        path = shutil.copy(source, tmp_path)
        redraw.main([str(path)])
        assert (tmp_path / f"{source.name.split('-')[0]}.png").read_bytes().startswith(b"\x89PNG")
    assert {path.stem for path in tmp_path.glob("*.png")} == names >= {"reversal", "sampling", "scaling"}


def test_a_record_of_something_else_cannot_be_redrawn():
    [source] = (ROOT / "docs" / "results" / "offline").glob("boolq-*.record.json")
    with pytest.raises(
        ValueError,
        match="`record` must be of one of the experiments preferences, reversal, sampling, scaling, sudoku, got",
    ):
        redraw.redraw(source)
