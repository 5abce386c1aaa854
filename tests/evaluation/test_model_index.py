"""Results in a model card's metadata: what the Hub reads there, and that nothing else changes."""

import pytest
from huggingface_hub import ModelCard

from llada_core.records import Score
from llada_evaluation.model_index import model_index, write_model_index
from tests.score_records import make_record

TEXT = "# Title\r\n\n---\n\n  Trailing spaces   \nno newline at the end, é"
HEAD = "---\nlicense: mit\ntags:\n- llada\n---\n"


def card(folder, text=HEAD + TEXT):
    (folder / "README.md").write_bytes(text.encode())
    return folder / "README.md"


def test_a_metric_becomes_a_result():
    (entry,) = model_index([make_record(results={"acc,none": Score(0.5, 0.1)}, published=None)], "tiny")
    (result,) = entry["results"]
    assert (entry["name"], result["task"]["type"]) == ("tiny", "text-generation")
    assert result["dataset"] == {"name": "GSM8K in blocks", "type": "openai/gsm8k"}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["name"], metric["value"]) == ("acc", "GSM8K in blocks: acc,none", 0.5)
    assert metric["args"] == {
        "stderr": 0.1, "num_questions": 25, "seed": 0, "task": "gsm8k_cot", "shots": 4, "options": {"steps": 256},
    }  # fmt: skip


def test_the_hub_reads_the_results_and_the_text_stays_byte_for_byte(tmp_path):
    path = card(tmp_path)
    assert write_model_index([make_record()], tmp_path) == path
    assert path.read_bytes().endswith(b"---\n" + TEXT.encode())
    data = ModelCard.load(path).data
    assert (data.license, data.tags, data.model_name) == ("mit", ["llada"], tmp_path.name)
    assert {(row.metric_name, row.metric_value) for row in data.eval_results} == {
        ("GSM8K in blocks: acc,none", 0.5),
        ("GSM8K in blocks: acc_norm,none", 0.25),
    }


def test_writing_twice_changes_nothing_more(tmp_path):
    path = card(tmp_path)
    write_model_index([make_record()], tmp_path)
    once = path.read_bytes()
    write_model_index([make_record()], tmp_path)
    assert path.read_bytes() == once


def test_a_newer_result_replaces_the_older_and_others_stay(tmp_path):
    path = card(tmp_path)
    one = {"results": {"acc,none": Score(0.5)}, "published": None}
    write_model_index([make_record(**one), make_record(name="P", dataset="p", **one)], tmp_path)
    write_model_index([make_record(results={"acc,none": Score(0.75)}, published=None)], tmp_path)
    rows = ModelCard.load(path).data.eval_results
    assert {(row.dataset_name, row.metric_value) for row in rows} == {("GSM8K in blocks", 0.75), ("P", 0.5)}


def test_a_card_without_metadata_gets_a_head(tmp_path):
    path = card(tmp_path, TEXT)
    write_model_index([make_record()], tmp_path)
    assert path.read_bytes().startswith(b"---\nmodel-index:\n")
    assert path.read_bytes().endswith(b"---\n" + TEXT.encode())


@pytest.mark.parametrize(
    "text, message",
    [
        ("---\na: [\n---\n", "The metadata at the head of `.*` are no YAML"),
        ("---\n- a\n---\n", "The metadata at the head of `.*` must map names to values, got .'a'."),
        ("---\nmodel-index: [1]\n---\n", "`model-index` of `.*` is not in the Hub's form"),
    ],
)
def test_a_head_that_cannot_be_read_is_refused_and_left_alone(text, message, tmp_path):
    path = card(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        write_model_index([make_record()], tmp_path)
    assert path.read_text() == text


def test_a_folder_without_a_card_and_an_empty_list_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no README.md; write the model's card first"):
        write_model_index([make_record()], tmp_path)
    with pytest.raises(ValueError, match="`records` must hold at least one record, got none"):
        write_model_index([], tmp_path)
