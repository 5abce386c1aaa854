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
        ("table.csv", "a,b\n", "must end in .txt, .jsonl, .json, .parquet, got .*table.csv"),
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


# --- mixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """Files of four and of two documents, named a.jsonl and b.parquet, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a{n}"}) + "\n" for n in range(4)))
    Dataset.from_dict({"text": ["b0", "b1"]}).to_parquet("b.parquet")


@pytest.mark.parametrize(
    "sources, texts",
    [
        (["a.jsonl*2+b.parquet[:1]"], "a0 a1 a2 a3 a0 a1 a2 a3 b0"),
        (["b.parquet", "a.jsonl[1:3]*1.5"], "b0 b1 a1 a2 a1"),
        (["a.jsonl[-1:]"], "a3"),
        (["a.jsonl*.25+b.parquet*1"], "a2 b0 b1"),
    ],
)
def test_a_mixture_has_each_entrys_rows_as_often_as_its_weight_says(letters, sources, texts):
    assert load_documents(sources)["text"][:] == texts.split()
    assert load_examples(sources)["text"][:] == texts.split()


def test_a_file_that_exists_is_read_whatever_its_name(letters, tmp_path):
    for name in ("a+b.jsonl", "x[1:2].jsonl", "c++"):
        (tmp_path / name).mkdir() if name == "c++" else (tmp_path / name).write_text('{"text": "odd"}\n')
    (tmp_path / "c++" / "d.jsonl").write_text('{"text": "deep"}\n')
    odd = load_documents(["a+b.jsonl", "x[1:2].jsonl", "a+b.jsonl*2", "c++/d.jsonl*2"])["text"][:]
    assert odd == ["odd"] * 4 + ["deep"] * 2


@pytest.mark.parametrize(
    "source, message",
    [
        ("a.jsonl+", "must be like data.jsonl, data.jsonl.:1000. or data.jsonl.2, got ''; give it a name"),
        ("a.jsonl*2[:1]", r"must be like .*, got 'a.jsonl\*2\[:1\]'"),
        ("a.jsonl[3]", r"must be like .*, got 'a.jsonl\[3\]'"),
        ("a.jsonl*0", r"weight of an entry of `train_data` must be above 0, got 'a.jsonl\*0'"),
        ("a.jsonl[4:]", r"`a.jsonl\[4:\]` must leave at least one of 4 rows, got none; widen the slice"),
        ("a.jsonl*.1", r"`a.jsonl\*.1` must leave at least one of 4 rows, got none; raise the weight"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(letters, source, message):
    with pytest.raises(ValueError, match=message):
        load_documents([source])


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
