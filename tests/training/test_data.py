"""Laws of the data preparation: no token is lost, documents end with EOS, bad documents are named."""

import json
import resource

import pytest
from datasets import Dataset, DatasetDict

from llada_training import load_documents, pack_documents
from llada_training.data import load_examples

from .conftest import TEXTS


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return str(path)


def pack(texts, tokenizer, length=16, num_proc=None, vocab_size=512):
    documents = Dataset.from_dict({"text": texts})
    return pack_documents(documents, tokenizer, length, vocab_size, tokenizer.mask_token_id, num_proc)


def test_the_sequences_are_the_documents_one_after_the_other_with_eos_between(tokenizer):
    packed = pack(TEXTS, tokenizer)
    expected = []
    for text in TEXTS:
        expected += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert [token for row in packed["input_ids"] for token in row] == expected


def test_every_sequence_but_the_last_has_the_full_length(tokenizer):
    lengths = [len(row) for row in pack(TEXTS, tokenizer)["input_ids"]]
    assert set(lengths[:-1]) == {16}
    assert 1 <= lengths[-1] <= 16


def test_example_ids_number_the_sequences(tokenizer):
    packed = pack(TEXTS, tokenizer)
    assert packed["example_id"][:] == list(range(len(packed)))


def test_the_number_of_processes_changes_nothing(tokenizer):
    assert pack(TEXTS, tokenizer, num_proc=2)["input_ids"][:] == pack(TEXTS, tokenizer)["input_ids"][:]


def test_empty_documents_leave_no_trace(tokenizer):
    assert pack(["a", "", "b"], tokenizer)["input_ids"][:] == pack(["a", "b"], tokenizer)["input_ids"][:]


def test_json_lines_text_files_and_saved_data_sets_give_their_documents(tmp_path, corpus):
    paths = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for path, text in zip(paths, TEXTS):
        path.write_text(text + "\n\nAnother paragraph.", encoding="utf-8")
    assert load_documents([corpus])["text"][:] == TEXTS
    texts = load_documents([str(path) for path in paths])["text"][:]
    assert texts == [text + "\n\nAnother paragraph." for text in TEXTS[:2]]
    documents = Dataset.from_dict({"body": TEXTS, "other": list(range(60))})
    DatasetDict({"train": documents, "test": documents.select([0])}).save_to_disk(tmp_path / "saved")
    assert load_documents([str(tmp_path / "saved")], "body")["text"][:] == TEXTS
    assert load_documents([str(tmp_path / "saved")], "body", split="test")["text"][:] == TEXTS[:1]


def test_a_mask_token_in_the_text_is_refused_and_the_document_named(tokenizer):
    with pytest.raises(
        ValueError, match=r"must not hold the mask token \(id 488\).*, got it in document 2, .*before <\|mdm_mask\|>"
    ):
        pack(["a", "b", "before <|mdm_mask|> after"], tokenizer)


def test_ids_beyond_the_model_are_refused_and_the_document_named(tokenizer):
    with pytest.raises(ValueError, match=r"`embedding_size` \(70\), got \d+ in document 1, 'xyz'"):
        pack(["ABC", "xyz"], tokenizer, vocab_size=70)


def test_a_tokenizer_without_eos_is_refused(tokenizer):
    from copy import deepcopy

    bare = deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have an EOS token"):
        pack(TEXTS, bare)


def test_documents_without_a_token_are_refused(tokenizer):
    with pytest.raises(ValueError, match="at least one token, got only empty texts"):
        pack(["", ""], tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "must name existing files, got .*none.jsonl', which does not exist"),
        ("null.jsonl", '{"text": "a"}\n\nnull\n', "must hold one JSON object per line, got null in line 3; repair it"),
        ("null.json", "\nnull\n", "must hold one JSON object per line, got null in line 2; repair it"),
        ("empty.jsonl", "\n \n", "must hold at least one document, got an empty file"),
        ("broken.jsonl", '{"text": "a"\n', "must hold one JSON object per line, got: JSON parse error"),
        ("table.csv", "a,b\n", "must end in .txt, .jsonl, .json, got .*table.csv"),
        ("other.jsonl", '{"body": "x"}\n', r"`text_column` must be a column of .* \(body\), got 'text'"),
        ("number.jsonl", '{"text": 3}\n', "`text_column` must hold text, got int64"),
        ("gap.jsonl", '{"text": "x"}\n{"text": null}\n', "Every row must have a `text`, got none in row 1"),
    ],
)
def test_bad_files_are_refused_with_their_names(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_documents([str(tmp_path / name)])


def test_no_source_at_all_is_refused():
    with pytest.raises(ValueError, match="`train_data` must name files or a data set, got nothing"):
        load_documents([])


def test_an_unknown_split_is_refused(tmp_path):
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="must have the split 'test', got train"):
        load_documents([str(tmp_path / "saved")], split="test")


@pytest.fixture
def full_disk():
    """No file can grow beyond 1000 bytes."""
    given = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, given[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, given)


@pytest.mark.parametrize("load", [load_documents, load_examples])
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_a_full_disk_is_named_as_such(tmp_path, request, load, name):
    text = "x" * 3000
    (tmp_path / name).write_text(text if name == "t.txt" else json.dumps({"text": text}) + "\n")
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"No room to prepare the data in .*datasets-cache \(.+\); make room, or set"):
        load([str(tmp_path / name)])


def test_a_full_disk_is_named_as_such_while_documents_are_packed(tmp_path, request, tokenizer):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text * 20}) + "\n" for text in TEXTS))
    documents = load_documents([str(tmp_path / "t.jsonl")])
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No room to prepare the data in"):
        pack_documents(documents, tokenizer, 16, 512, tokenizer.mask_token_id)
