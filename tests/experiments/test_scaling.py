"""Laws of the scaling experiment: compute, rows of text, losses of both kinds of model."""

import dataclasses
import shutil
from argparse import ArgumentTypeError

import pytest

from experiments.common import Shape
from experiments.scaling import (
    KINDS,
    Measurement,
    ScalingOptions,
    as_results,
    cut_rows,
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
from llada_core.records import read_record
from tests.helpers import ROOT

RECORD = ROOT / "docs" / "results" / "scaling-8cc99d7b.record.json"


class Letters:
    """A tokenizer of the letters a to z: ids from 2."""

    bos_token_id, eos_token_id = 1, 0

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[ord(letter) - 95 for letter in text] for text in texts]}


def test_flops_are_six_times_parameters_times_tokens():
    assert training_flops(7_000_000_000, 2_000_000_000_000) == 8.4e22


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
    return [
        Measurement(kind, size, tokens, 6.0 * size * tokens, loss, error)
        for kind, loss, error in (("llada", 5.0, 0.01), ("autoregressive", 4.0, 0.0))
        for size in (1000, 2000)
        for tokens in (500, 1000)
    ]


def test_the_table_has_every_measurement_and_the_results_those_at_the_end():
    measurements = make_measurements()
    results = as_results(measurements)
    assert len(results) == 4 and results["llada, 2000 parameters: loss"] == (5.0, 0.01, pytest.approx(0.0196))
    assert "| autoregressive | 1,000 | 500 | 3.00e+06 | 4.000 |" in make_table(measurements)


def test_the_figure_of_the_committed_record_has_a_line_for_each_model():
    record = read_record(RECORD)
    [axes] = plot(record).axes
    assert len(axes.containers) == 6
    assert axes.get_legend() is not None and len(axes.get_legend().get_texts()) == len(KINDS)
    with pytest.raises(ValueError, match="must hold `measurements` among its remarks, got none; run the experiment"):
        plot(dataclasses.replace(record, remarks={}))


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
    [record] = (tmp_path / "out").glob("*.record.json")
    measurements = read_record(record).remarks["measurements"]
    assert {m["kind"] for m in measurements} == set(KINDS)
    for kind in KINDS:
        losses = [m["loss"] for m in measurements if m["kind"] == kind and m["num_parameters"] < 20000]
        assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "scaling.png").exists()
