"""Laws of streams: their rows are those of data in memory, in an order that a resumed run finds again."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from llada_training import pretrain_main, sft_main
from llada_training.data import load_documents, load_examples, pack_documents, stream_documents, stream_examples
from llada_training.pretrain_command import parse_pretraining
from llada_training.stream import Stream
from modeling_llada import LLaDAModelLM

from .conftest import CHECKPOINTS, TEXTS

pytestmark = pytest.mark.newest_only


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS), encoding="utf-8")
    return str(path)


def numbered(chunk: Dataset, first: int) -> tuple[Dataset, int]:
    return chunk.add_column("example_id", np.arange(first, first + len(chunk))), first + len(chunk)


def test_every_pass_has_every_row_once_and_another_order():
    rows = Dataset.from_dict({"n": list(range(25))}).to_iterable_dataset()
    stream = Stream(rows, numbered, 10, seed=3)
    passes = [[row["n"] for row in itertools.islice(stream, 25 * number, 25 * (number + 1))] for number in range(3)]
    assert all(sorted(order) == list(range(25)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert all(sorted(order[:10]) == list(range(10)) for order in passes)  # shuffled within the chunk
    assert all(row["n"] == row["example_id"] for row in itertools.islice(stream, 75))
    assert [row["n"] for row in itertools.islice(stream, 75)] == [number for order in passes for number in order]


def test_a_stream_without_a_row_raises_instead_of_waiting():
    empty = Stream(
        Dataset.from_dict({"n": [1]}).to_iterable_dataset(), lambda chunk, first: (chunk.select([]), 0), 10, 0
    )
    with pytest.raises(ValueError, match="must hold at least one row to learn from, got none in a whole pass"):
        next(iter(empty))


def test_the_sequences_of_streamed_documents_are_those_of_loaded_ones(corpus, tokenizer):
    limits = (tokenizer, 16, 512, tokenizer.mask_token_id)
    packed = pack_documents(load_documents([corpus]), *limits)

    def pack(chunk, first):
        rows = pack_documents(chunk, *limits, first=first)
        return rows, first + len(rows)

    stream = Stream(stream_documents([corpus]), pack, len(TEXTS), seed=0)
    rows = {row["example_id"]: row["input_ids"] for row in itertools.islice(stream, len(packed))}
    assert [rows[number] for number in range(len(packed))] == packed["input_ids"][:]


def test_streamed_examples_are_prepared_as_loaded_ones(make_sft_trainer, pairs):
    loaded = make_sft_trainer().train_dataset
    streamed = make_sft_trainer(train_dataset=pairs.to_iterable_dataset()).train_dataset
    rows = sorted(itertools.islice(streamed, len(loaded)), key=lambda row: row["example_id"])
    assert rows == [{name: row[name] for name in rows[0]} for row in loaded]


def test_slices_and_weights_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, number in (("a", 400), ("b", 400)):
        lines = [json.dumps({"text": f"{name}{n}", "left": "out"}) + "\n" for n in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    assert [row["text"] for row in stream_documents(["a.jsonl[2:4]"])] == ["a2", "a3"]
    drawn = [row["text"][0] for row in itertools.islice(stream_examples(["a.jsonl*3+b.jsonl"]), 400)]
    assert 0.68 < drawn.count("a") / 400 < 0.82
    with pytest.raises(ValueError, match=r"slice of a stream must count from its first row, got 'a.jsonl\[-2:\]'"):
        stream_documents(["a.jsonl[-2:]"])
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match=r"of a stream must have the same columns, got text in a.jsonl; prompt, comp"):
        stream_examples(["a.jsonl", "c.jsonl"])
    with pytest.raises(ValueError, match=r"`text_column` must be a column of a.jsonl \(text, left\), got 'body'"):
        stream_documents(["a.jsonl"], "body")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl must hold at least one row, got none"):
        stream_documents(["empty.jsonl"])


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "`max_steps` must be set with a stream, which has no last row, got -1; pass it"),
        (["--max_steps", "2", "--dataloader_num_workers", "2"], "`dataloader_num_workers` must be 0 with a stream"),
        (
            ["--max_steps", "2", "--train_sampling_strategy", "group_by_length"],
            "`train_sampling_strategy` must be random",
        ),
    ],
)
def test_what_a_stream_cannot_have_is_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        parse_pretraining(["--streaming", "true", *options])


@pytest.mark.parametrize("command", [pretrain_main, sft_main])
def test_a_streamed_run_is_continued_to_the_same_weights(command, corpus, tmp_path, capsys):
    options = {
        "model": CHECKPOINTS / "mha",
        "train_data": corpus,
        "per_device_train_batch_size": 16,
        "max_steps": 8,  # more than one pass over the 60 examples
        "learning_rate": 0.01,
        "save_steps": 6,
        "report_to": "none",
    }
    args = [text for name, value in options.items() for text in (f"--{name}", str(value))] + ["--streaming"]
    command([*args, "--output_dir", str(tmp_path / "run")])
    resumed = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-6")]
    command([*args, "--output_dir", str(tmp_path / "again"), *resumed])
    assert "a stream of" in capsys.readouterr().out
    weights = [LLaDAModelLM.from_pretrained(tmp_path / name).state_dict() for name in ("run", "again")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "a stream" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_alpaca_is_streamed_as_conversations(tmp_path):
    path = tmp_path / "alpaca.jsonl"
    rows = [{"instruction": f"{n}?", "input": "", "output": f"It is {n}."} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(load_examples([str(path)]).column_names) == ["messages"]
    folder = sft_main(
        ["--model", str(CHECKPOINTS / "mha"), "--dataset_name", str(path), "--dataset-streaming", "--max-steps", "1",
         "--output_dir", str(tmp_path / "run"), "--report_to", "none", "--logging_steps", "1"]
    )  # fmt: skip
    assert (Path(folder) / "model.safetensors").exists()
