"""Laws of the scaling experiment: compute, power laws, rows of text, losses of both kinds of model."""

import dataclasses
import json
import shutil
from argparse import ArgumentTypeError

import pytest

from experiments.common import Shape
from experiments.scaling import (
    KINDS,
    Measurement,
    Point,
    PowerLaw,
    ScalingOptions,
    as_results,
    compute_ratio,
    cut_rows,
    fit_laws,
    fit_power_law,
    frontier,
    halvings,
    main,
    make_corpus,
    make_table,
    parse_shape,
    plot,
    read_texts,
    training_flops,
)
from llada_checkpoints import BUNDLED_MODEL


class Letters:
    """A tokenizer of the letters a to z: ids from 2."""

    bos_token_id, eos_token_id = 1, 0

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[ord(letter) - 95 for letter in text] for text in texts]}


def test_flops_are_six_times_parameters_times_tokens():
    assert training_flops(7_000_000_000, 2_000_000_000_000) == 8.4e22


def test_a_power_law_is_found_again_from_its_points():
    law = PowerLaw(scale=1e20, exponent=0.05)
    found = fit_power_law([Point(flops, (1e20 / flops) ** 0.05) for flops in (1e12, 1e13, 1e15)])
    assert found.exponent == pytest.approx(0.05) and found.scale == pytest.approx(1e20)
    assert found.loss(1e10) == pytest.approx(10**0.5)
    assert found.flops(10**0.5) == pytest.approx(1e10)
    # Equal exponents: sixteen times the scale is sixteen times the compute, at every loss.
    assert compute_ratio(PowerLaw(16e20, 0.05), law, loss=3.0) == pytest.approx(16.0)


def test_a_power_law_needs_a_loss_that_falls_with_compute():
    with pytest.raises(ValueError, match=r"`points` must have at least two different numbers of FLOPs, got 1"):
        fit_power_law([Point(1e12, 3.0)])
    with pytest.raises(ValueError, match=r"`points` must have a loss that falls with compute, got a slope of 0\.0"):
        fit_power_law([Point(1e12, 3.0), Point(1e13, 3.5)])


def test_the_frontier_keeps_the_best_of_every_compute():
    points = [Point(4, 3.0), Point(1, 5.0), Point(2, 6.0), Point(3, 4.0), Point(5, 3.5)]
    assert frontier(points) == [Point(1, 5.0), Point(3, 4.0), Point(4, 3.0)]


def test_measurements_are_at_the_end_at_half_of_it_and_so_on():
    assert halvings(1000, 4) == [125, 250, 500, 1000]
    assert halvings(3, 4) == [1, 3]


def test_a_training_takes_at_least_one_step():
    options = ScalingOptions(texts=("a",), tokenizer="b", batch_size=4, length=8, num_tokens=100)
    assert options.num_steps == 3
    with pytest.raises(ValueError, match=r"`num_tokens` must be at least those of one optimizer step \(32\), got 31"):
        dataclasses.replace(options, num_tokens=31)


def test_rows_begin_with_the_first_token_and_are_cut_from_the_joined_documents():
    # abc|d: 2 3 4 0 5 0 in rows of two, behind the first token 1.
    assert cut_rows(["abc", "d"], Letters(), length=3).tolist() == [[1, 2, 3], [1, 4, 0], [1, 5, 0]]
    assert cut_rows(["abc", "d"], Letters(), length=5).tolist() == [[1, 2, 3, 4, 0]]


def test_every_fiftieth_document_is_held_out():
    corpus = make_corpus(["z", *["a"] * 49, "z"], Letters(), length=3)
    assert corpus.held_out.tolist() == [[1, 27, 0]] * 2
    assert corpus.training.tolist() == [[1, 2, 0]] * 49
    with pytest.raises(ValueError, match=r"`texts` must fill a row of 9 tokens.*got 12 rows for training and 0 held"):
        make_corpus(["z", *["a"] * 49], Letters(), length=9)


def test_texts_come_from_json_lines_or_plain_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three\n")
    assert read_texts([tmp_path / "a.jsonl", tmp_path / "b.txt"]) == ["one", "two", "three"]
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"`texts` must hold at least one document, got none in .*c\.txt"):
        read_texts([tmp_path / "c.txt"])


def make_measurements():
    """Laws with exponents 0.1 (autoregressive) and 0.1 with 16 times the scale (LLaDA)."""
    return [
        Measurement(kind, size, tokens, 6.0 * size * tokens, (scale / (6.0 * size * tokens)) ** 0.1, error)
        for kind, scale, error in (("llada", 16e18, 0.01), ("autoregressive", 1e18, 0.0))
        for size in (1000, 2000)
        for tokens in (500, 1000)
    ]


def test_the_report_gives_the_ratio_of_compute_and_draws_the_curves(tmp_path):
    measurements = make_measurements()
    laws = fit_laws(measurements)
    assert laws["llada"].exponent == pytest.approx(0.1)
    results = as_results(measurements, laws)
    assert results["compute ratio"].mean == pytest.approx(16.0)
    assert results["llada, 2000 parameters: loss"].standard_error == 0.01
    table = make_table(measurements, laws)
    assert "| autoregressive | 1,000 | 500 | 3.00e+06 | 14.200 |" in table
    assert "LLaDA at 16.0 times the autoregressive model's compute." in table
    plot(measurements, laws).savefig(tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_shape_is_written_as_width_times_blocks():
    assert parse_shape("96x2") == Shape(96, 2)
    for text in ("96", "100x2", "96x0", "axb"):
        with pytest.raises(ArgumentTypeError, match=f"must be WIDTHxBLOCKS, the width a multiple of 32, got '{text}'"):
            parse_shape(text)


@pytest.mark.slow
def test_the_command_trains_measures_and_writes(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, tmp_path)
    sentences = [f"The river runs to the sea, and the {word} stays." for word in ("stone", "tree", "king", "sun")]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences * 100), encoding="utf-8")
    command = ["--texts", str(texts), "--tokenizer", str(tmp_path), "--tokens", "20480", "--shapes", "32x1", "64x1"]
    main([*command, "--output", str(tmp_path / "out"), "--workers", "1"])
    measurements = json.loads((tmp_path / "out" / "measurements.json").read_text())
    assert {m["kind"] for m in measurements} == set(KINDS)
    for kind in KINDS:
        losses = [m["loss"] for m in measurements if m["kind"] == kind and m["num_parameters"] < 20000]
        assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "scaling.png").exists() and list((tmp_path / "out").glob("*.record.json"))
