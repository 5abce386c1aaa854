"""Laws of the model card: it says what was given and what the files say, and leaves a card that a person wrote."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from llada_core.card import (
    CardFacts,
    eval_result,
    published_card,
    read_recipe,
    read_results,
    record_results,
    update_card,
    write_results,
)

ROOT = Path(__file__).parents[2]
MODEL = "tester/tiny"
RECORD = {
    "format": 1,
    "name": "GSM8K in blocks",
    "settings": {"task": "gsm8k_cot", "shots": 4, "options": {"steps": 256}},
    "results": {"acc,none": {"value": 0.5, "standard_error": 0.1}, "acc_norm,none": {"value": 0.25}},
    "seed": 0,
    "dataset": "openai/gsm8k",
    "num_questions": 25,
}
TEXT = "# Title\r\n\n---\n\n  Trailing spaces   \nno newline at the end, é"
HEAD = "---\nlicense: mit\ntags:\n- llada\n---\n"


def publish(folder: Path, facts: CardFacts | None = None) -> str:
    return published_card(folder, MODEL, facts or CardFacts(), num_parameters=12_300_000, is_adapter=False)


def write(folder: Path, text: str = HEAD + TEXT) -> Path:
    (folder / "README.md").write_bytes(text.encode())
    return folder / "README.md"


def lm_eval_file(folder: Path) -> Path:
    scores = {"exact_match,none": 0.69, "exact_match_stderr,none": 0.01, "alias": "gsm8k"}
    (folder / "gsm8k.json").write_text(json.dumps({"results": {"gsm8k": scores}}))
    return folder / "gsm8k.json"


# --- a new card ------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_given_and_carries_the_results_as_metadata(tmp_path) -> None:
    recipe = tmp_path / "sft.yaml"
    recipe.write_text("learning_rate: 1.0e-5\noutput_dir: /home/me\nhub_token: x\nseed: 3\n")
    state = {"global_step": 1234, "log_history": [{"eval_loss": 9.0}, {"eval_loss": 2.5, "eval_runtime": 3.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    facts = CardFacts(
        license="mit", base_model="GSAI-ML/LLaDA-8B-Base", datasets=("me/data",), languages=("en",), tags=("math",),
        recipe=recipe, results=(lm_eval_file(tmp_path),), is_chat=True, prompt="What is 1+1?",
    )  # fmt: skip
    card = ModelCard(publish(tmp_path, facts))
    data = card.data.to_dict()
    assert (data["license"], data["base_model"]) == ("mit", "GSAI-ML/LLaDA-8B-Base")
    assert (data["datasets"], data["language"], data["tags"][-1]) == (["me/data"], ["en"], "math")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert card.data.model_name == "tiny"
    measured = [(row.dataset_name, row.metric_type, row.metric_value) for row in card.data.eval_results]
    assert measured == [("validation", "loss", 2.5), ("gsm8k", "exact_match", 0.69)]
    for line in (
        "| `learning_rate` | 1e-05 |",
        "| `seed` | 3 |",
        "1,234 optimizer steps",
        "| gsm8k: exact_match | 0.69 |",
        "From the trainer's last evaluation, `gsm8k.json`.",
        "of 12.3 million parameters",
        "The weights are licensed under mit.",
    ):
        assert line in card.text
    assert "/home/me" not in card.text and "hub_token" not in card.text
    assert '{"role": "user", "content": "What is 1+1?"}' in card.text


@pytest.mark.parametrize("sign", ["tags:\n- generated_from_trainer\n---\n", "---\n[More Information Needed]\n"])
def test_a_card_that_a_library_left_as_a_placeholder_is_replaced(sign, tmp_path) -> None:
    write(tmp_path, f"---\nlicense: mit\n{sign}")
    content = publish(tmp_path, CardFacts(license="apache-2.0"))
    assert "# tiny" in content and "license: apache-2.0" in content


def test_a_word_that_yaml_would_read_as_something_else_stays_a_word(tmp_path) -> None:
    card = ModelCard(publish(tmp_path, CardFacts(license="mit", languages=("no",), tags=("a: b", "1.0"))))
    assert (card.data.language, card.data.tags[-2:]) == (["no"], ["a: b", "1.0"])


def test_a_new_card_needs_a_licence(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no README\.md, and a card needs a licence, got none; pass --license"):
        publish(tmp_path)


# --- a card that is there --------------------------------------------------------------------------------------------


def test_a_readme_goes_up_as_it_is_with_the_tags_asked_for(tmp_path) -> None:
    for text in ("---\nlicense: mit\ntags:\n- llada\n---\n\n# Mine\n", HEAD + TEXT):
        write(tmp_path, text)
        assert publish(tmp_path) == text
        card = ModelCard(publish(tmp_path, CardFacts(tags=("llada", "math"))))
        assert card.data.tags == ["llada", "math"] and card.text == ModelCard(text).text


def test_facts_are_added_to_a_card_that_is_there(tmp_path) -> None:
    sentence = "No licence was named for the weights; those of the base model and of the data apply."
    write(tmp_path, f"---\ntags:\n- llada\ndatasets: a/b\n---\n\n# Mine\n\n{sentence}\n")
    facts = CardFacts(
        license="mit",
        base_model="me/base",
        datasets=("a/b", "c/d"),
        languages=("en",),
        results=(lm_eval_file(tmp_path),),
    )
    card = ModelCard(publish(tmp_path, facts))
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "me/base", ["a/b", "c/d"])
    assert (card.data.language, card.data.tags, card.data.model_name) == (["en"], ["llada"], "tiny")
    assert [(row.dataset_name, row.metric_value) for row in card.data.eval_results] == [("gsm8k", 0.69)]
    assert card.text.strip() == "# Mine\n\nThe weights are licensed under mit."


def test_the_usage_example_loads_from_the_hub_what_it_loaded_from_the_folder(tmp_path) -> None:
    lines = 'model = AutoModel.from_pretrained("{}", dtype="auto")\nother = AutoModel.from_pretrained("me/other")\n'
    write(tmp_path, "---\nlicense: mit\n---\n" + lines.format(tmp_path.as_posix()))
    assert publish(tmp_path) == "---\nlicense: mit\n---\n" + lines.format(MODEL)


def test_the_usage_of_an_adapter_loads_its_base_model_from_the_hub(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "runs/base"}')
    text = """---
base_model: me/base
---
base = AutoModelForCausalLM.from_pretrained("{}", dtype="auto")
model = PeftModel.from_pretrained(base, "{}")
"""
    given = text.format("runs/base", tmp_path.as_posix())
    updated = update_card(given, tmp_path, "me/lora", CardFacts(base_model="me/base"))
    assert updated == text.format("me/base", "me/lora")


def test_what_only_a_new_card_can_hold_is_refused_beside_a_card_that_is_there(tmp_path) -> None:
    write(tmp_path, "---\nlicense: mit\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"has a README\.md of its own, and --prompt, --chat cannot be added"):
        publish(tmp_path, CardFacts(prompt="Hello", is_chat=True))


# --- results of evaluations ------------------------------------------------------------------------------------------


def test_a_metric_of_a_record_becomes_a_result_of_its_data_set() -> None:
    first, second = record_results(RECORD)
    assert (first.task_type, first.dataset_name, first.dataset_type) == (
        "text-generation", "GSM8K in blocks", "openai/gsm8k",
    )  # fmt: skip
    assert (first.metric_type, first.metric_name, first.metric_value) == ("acc", "GSM8K in blocks: acc,none", 0.5)
    assert first.metric_args == {
        "stderr": 0.1, "num_questions": 25, "seed": 0, "task": "gsm8k_cot", "shots": 4, "options": {"steps": 256},
    }  # fmt: skip
    assert second.metric_type == "acc_norm"


def test_the_hub_reads_the_results_and_the_text_stays_byte_for_byte(tmp_path) -> None:
    path = write(tmp_path)
    assert write_results(record_results(RECORD), tmp_path) == path
    assert path.read_bytes().endswith(b"---\n" + TEXT.encode())
    data = ModelCard.load(path).data
    assert (data.license, data.tags, data.model_name) == ("mit", ["llada"], tmp_path.name)
    assert {(row.metric_name, row.metric_value) for row in data.eval_results} == {
        ("GSM8K in blocks: acc,none", 0.5),
        ("GSM8K in blocks: acc_norm,none", 0.25),
    }


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_writing_twice_changes_nothing_more(line_break, tmp_path) -> None:
    path = write(tmp_path, f"{HEAD}\n# Title\n\nText.\n".replace("\n", line_break))
    write_results(record_results(RECORD), tmp_path)
    once = path.read_bytes()
    assert once.count(b"\r") == (once.count(b"\n") if line_break == "\r\n" else 0)
    write_results(record_results(RECORD), tmp_path)
    assert path.read_bytes() == once


def test_a_newer_result_replaces_the_older_and_others_stay(tmp_path) -> None:
    path = write(tmp_path)
    write_results([eval_result("GSM8K", "acc", 0.5, "gsm8k"), eval_result("P", "acc", 0.5)], tmp_path)
    write_results([eval_result("GSM8K", "acc,none", 0.75, "gsm8k")], tmp_path)
    rows = ModelCard.load(path).data.eval_results
    assert {(row.dataset_name, row.metric_value) for row in rows} == {("GSM8K", 0.75), ("P", 0.5)}


def test_two_benchmarks_on_one_data_set_stay_apart(tmp_path) -> None:
    path = write(tmp_path)
    for _ in range(2):
        write_results([eval_result(name, "acc", 0.5, "openai/gsm8k") for name in ("GSM8K", "in blocks")], tmp_path)
    rows = ModelCard.load(path).data.eval_results
    assert [row.metric_name for row in rows] == ["GSM8K: acc", "in blocks: acc"]


def test_evaluating_and_publishing_name_a_result_alike_so_that_it_stands_once(tmp_path) -> None:
    path, record = write(tmp_path), tmp_path / "gsm8k.record.json"
    record.write_text(json.dumps(RECORD))
    write_results(record_results(RECORD), tmp_path)
    once = path.read_bytes().decode()
    assert publish(tmp_path, CardFacts(results=(record,))) == once


def test_a_result_whose_metric_has_no_name_is_replaced_by_its_data_sets_name(tmp_path) -> None:
    path = write(tmp_path)
    names = {"task_type": "text-generation", "dataset_type": "BoolQ", "dataset_name": "BoolQ", "metric_type": "acc"}
    write_results([EvalResult(**names, metric_value=0.5)], tmp_path)
    write_results([eval_result("BoolQ", "acc,none", 0.75, "super_glue")], tmp_path)
    assert [row.metric_value for row in ModelCard.load(path).data.eval_results] == [0.75]


def test_a_card_without_metadata_gets_a_head(tmp_path) -> None:
    path = write(tmp_path, TEXT)
    write_results(record_results(RECORD), tmp_path)
    assert path.read_bytes().startswith(b"---\nmodel-index:\n")
    assert path.read_bytes().endswith(b"---\n" + TEXT.encode())


@pytest.mark.parametrize("head", ["a: [", "- a", "model-index: [1]"])
def test_a_head_that_cannot_be_read_is_refused_and_left_alone(head, tmp_path) -> None:
    path = write(tmp_path, f"---\n{head}\n---\n")
    with pytest.raises(
        ValueError, match=r"(?s)The metadata at the head of `.*README\.md` cannot be read \(.*\); correct"
    ):
        write_results(record_results(RECORD), tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        publish(tmp_path)
    assert path.read_text() == f"---\n{head}\n---\n"


def test_a_folder_without_a_card_and_an_empty_list_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no README.md; write the model's card first"):
        write_results(record_results(RECORD), tmp_path)
    with pytest.raises(ValueError, match="`results` must hold at least one result, got none"):
        write_results([], tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------


def test_results_are_read_from_any_of_three_kinds_of_file(tmp_path) -> None:
    (tmp_path / "plain.json").write_text('{"accuracy": 0.5, "epoch": 1.0, "done": true}')
    (tmp_path / "piqa.record.json").write_text(json.dumps({**RECORD, "name": "PIQA"}))
    for name, expected in (
        ("plain.json", [("plain", "accuracy", 0.5)]),
        ("piqa.record.json", [("PIQA", "acc", 0.5), ("PIQA", "acc_norm", 0.25)]),
        (lm_eval_file(tmp_path).name, [("gsm8k", "exact_match", 0.69)]),
    ):
        rows = read_results(tmp_path / name)
        assert [(row.dataset_name, row.metric_type, row.metric_value) for row in rows] == expected


def test_facts_that_cannot_be_read_are_refused(tmp_path) -> None:
    file = tmp_path / "file"
    for text, words in (
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("{}", "numbers of an evalu"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_results(file)
    for text, words in (("a: [", "is not valid YAML"), ("- a", "must map options to values, got list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_recipe(file)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_names_a_place_in_the_card(recipe) -> None:
    kept, given = read_recipe(recipe), yaml.safe_load(recipe.read_text())
    assert kept.keys() < given.keys()
    assert not {"output_dir", "train_data", "validation_data", "tokenizer"} & kept.keys()
