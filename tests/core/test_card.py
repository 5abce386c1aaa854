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


# Text that means something to YAML, to Markdown or to the card's template.
INJECTIONS = (
    "a/b\nlicense: gpl", "a/b\n---\nlicense: gpl", "---", "a: b", "no", "null", "a #b", "[a", "*a", "{{", "| a", "%",
    "\t", "](x", "a\rb", "", " ", "x\u2028y", "&a", "!a", "@a", "`a", "'", '"', "? a", "- a", "> a", "1.0",
    "2026-01-01",
)  # fmt: skip
FIELDS = {"license": "license", "base_model": "base_model", "datasets": "datasets", "languages": "language",
          "tags": "tags"}  # fmt: skip


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "updated"])
@pytest.mark.parametrize("field", FIELDS)
def test_no_name_adds_a_field_to_the_head_or_ends_it(field, is_new, tmp_path) -> None:
    if not is_new:
        write(tmp_path, HEAD + "# Title\n")
    plain = ModelCard(publish(tmp_path, CardFacts(license="mit"))).data.to_dict()
    for text in INJECTIONS:
        given = text if field in ("license", "base_model") else (text,)
        facts, refusal = None, ""
        try:
            facts = CardFacts(**{"license": "mit", field: given})
        except ValueError as error:
            refusal = str(error)
        if facts is None:
            assert f"`{field}` must be" in refusal and "\n" not in refusal
            continue
        data = ModelCard(publish(tmp_path, facts)).data.to_dict()
        wanted = [*plain.get("tags", []), text] if field == "tags" else given if isinstance(given, str) else [text]
        is_kept = field != "base_model" or "/" in text or not is_new
        assert data == {**plain, **({FIELDS[field]: wanted} if is_kept else {})}, text


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"license": "mit\nx: 1"}, r"`license` must be letters, digits and .*, got 'mit\\nx: 1'; correct it"),
        ({"languages": ("en us",)}, "`languages` must be letters, digits and .*, got 'en us'"),
        ({"tags": ("a\nb",)}, r"`tags` must be printable text on one line, got 'a\\nb'"),
        ({"datasets": ("ok/ok", "../x")}, r"`datasets` must be a Hub id such as user/name, got '\.\./x'"),
        ({"base_model": "/home/me/model"}, "`base_model` must be a Hub id such as user/name, got '/home/me/model'"),
    ],
)
def test_facts_that_a_card_cannot_hold_are_named(facts, message) -> None:
    with pytest.raises(ValueError, match=message):
        CardFacts(**facts)


def test_a_measure_with_bars_and_line_breaks_stays_in_its_cell(tmp_path) -> None:
    (tmp_path / "odd.json").write_text(json.dumps({"results": {"a|b\n## Title": {"acc\n---\nlicense: gpl": 0.5}}}))
    (tmp_path / "r.yaml").write_text('"learning|rate": "a|b"\nnote: "one\\n| two |"\nhalf: "x\\uD800"\n')
    facts = CardFacts(license="mit", results=(tmp_path / "odd.json",), recipe=tmp_path / "r.yaml")
    card = ModelCard(publish(tmp_path, facts))
    assert card.data.license == "mit"
    assert r"| a\|b ## Title: acc --- license: gpl | 0.5 |" in card.text.splitlines()
    assert r"| `learning\|rate` | a\|b |" in card.text.splitlines()
    assert "| `half` | x? |" in card.text.splitlines()
    assert r"| `note` | one \| two \| |" in card.text.splitlines()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + "0" * 400])
def test_a_result_that_is_not_a_finite_number_is_refused_by_name(value, tmp_path) -> None:
    for name, text in (
        ("lm.json", f'{{"results": {{"gsm8k": {{"acc": {value}}}}}}}'),
        ("a.record.json", f'{{"name": "gsm8k", "results": {{"acc": {{"value": {value}}}}}}}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"The result `gsm8k: acc` must be a finite number, got (nan|inf|10+); "):
            read_results(tmp_path / name)


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


def test_results_that_are_published_twice_stand_once_and_the_newer_number_counts(tmp_path) -> None:
    path = write(tmp_path)
    for accuracy in (0.25, 0.5):
        record = {**RECORD, "results": {"acc,none": {"value": accuracy}}}
        (tmp_path / "a.record.json").write_text(json.dumps(record))
        results = {"results": {RECORD["name"]: {"exact_match,none": accuracy}}}
        (tmp_path / "lm.json").write_text(json.dumps(results))
        facts = CardFacts(results=(tmp_path / "a.record.json", tmp_path / "lm.json"))
        path.write_text(publish(tmp_path, facts))
        write_results(record_results(record), tmp_path)
    rows = ModelCard.load(path).data.eval_results
    assert {row.metric_type: row.metric_value for row in rows} == {"acc": 0.5, "exact_match": 0.5}
    assert len(rows) == 2


def test_a_result_whose_metric_has_no_name_is_replaced_by_its_data_sets_name(tmp_path) -> None:
    path = write(tmp_path)
    names = {"task_type": "text-generation", "dataset_type": "BoolQ", "dataset_name": "BoolQ", "metric_type": "acc"}
    write_results([EvalResult(**names, metric_value=0.5)], tmp_path)
    write_results([eval_result("BoolQ", "acc,none", 0.75, "super_glue")], tmp_path)
    assert [row.metric_value for row in ModelCard.load(path).data.eval_results] == [0.75]


def test_a_metric_that_is_called_by_a_number_is_compared_as_text(tmp_path) -> None:
    row = {
        "task": {"type": "t"},
        "dataset": {"type": "d", "name": "d"},
        "metrics": [{"type": 5, "name": 5, "value": 1}],
    }
    path = write(tmp_path, "---\n" + yaml.safe_dump({"model-index": [{"name": "m", "results": [row]}]}) + "---\n")
    write_results([eval_result("P", "acc", 0.5)], tmp_path)
    assert [row.metric_value for row in ModelCard.load(path).data.eval_results] == [1, 0.5]


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


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("r.json", "{", "is not valid JSON"),
        ("r.json", "[" * 100_000, "is not valid JSON"),
        ("r.json", r'{"\ud800": 0.5}', "is not valid JSON: .*surrogates not allowed"),
        ("r.json", "[1]", "must hold a JSON object, got list"),
        ("r.json", "{}", "must hold numbers of an evaluation, got none"),
        ("r.json", '{"results": null}', r"`results` in `.*r\.json` must map tasks to their metrics; pass an lm-eval"),
        ("r.json", '{"results": [1]}', "must map tasks to their metrics"),
        ("r.json", '{"results": {"t": 5}}', "must map tasks to their metrics"),
        ("a.record.json", '{"results": {}}', "`name` must be text; name a file of `llada evaluate`"),
        ("a.record.json", '{"name": "a", "results": {"acc": 1}}', "must map metrics to scores with a `value`"),
        ("a.record.json", '{"name": "a", "results": {}, "settings": 5}', "`settings` must be an object"),
        (
            "a.record.json",
            '{"name": "a", "results": {"acc": {"value": "x"}}}',
            "`a: acc` must be a finite number, got x",
        ),
    ],
)
def test_a_file_that_holds_no_results_is_refused(name, text, message, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / name)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "is not valid YAML"),
        ("a: !!python/name:os.system", "is not valid YAML"),
        ("a: &x [*x]", "is not valid YAML: Circular reference"),
        ("- a", "must map options to values, got list"),
        ("5: a", "must be names, got 5; put it in quotes"),
        ("null: a", "must be names, got None"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(text, message, tmp_path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_a_recipe_keeps_keys_passwords_and_places_to_itself(tmp_path) -> None:
    private = {
        "wandb_api_key": "x", "password": 12345, "PASSWORD": "x", "hub_token": "x", "client_secret": "x",
        "resume_from_checkpoint": True, "dataset_name": "/home/me/data", "deepspeed": "ds.json", "model_config": "~/m",
        "extra": {"api_key": "x"}, "more": [1, {"deep": "C:\\data"}], "cache": "../cache", "where": "runs/a/b",
        "url": "https://host.example/x", "share": "\\\\host\\x",
    }  # fmt: skip
    public = {
        "learning_rate": 1e-5, "dataset": "openai/gsm8k", "num_key_value_heads": 8, "optim": "adamw_torch",
        "betas": [0.9, 0.95], "packing": True, "turns": "all", "max_new_tokens": 8,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**private, **public}))
    assert read_recipe(tmp_path / "r.yaml") == public


@pytest.mark.parametrize(
    "state, message",
    [
        ({"log_history": 5}, r"`log_history` in `.*trainer_state\.json` must be a list of objects"),
        ({"log_history": [5]}, "`log_history` .* must be a list of objects"),
        ({"global_step": "many"}, "`global_step` .* must be an integer, got 'many'"),
        (
            {"log_history": [{"eval_loss": float("nan")}]},
            "The result `validation: loss` must be a finite number, got nan",
        ),
    ],
)
def test_a_trainers_state_that_is_damaged_is_named(state, message, tmp_path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=message):
        publish(tmp_path, CardFacts(license="mit"))


@pytest.mark.parametrize("names", ["5", "{a: b}", "[{a: b}]"])
def test_names_of_a_card_that_are_not_text_are_refused(names, tmp_path) -> None:
    write(tmp_path, f"---\nlicense: mit\ndatasets: {names}\n---\n")
    with pytest.raises(ValueError, match=r"`datasets` at the head of `.*README\.md` must be text or a list of texts"):
        publish(tmp_path, CardFacts(datasets=("me/d",)))


def test_a_card_that_is_not_utf8_is_named(tmp_path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff")
    with pytest.raises(ValueError, match=r"`.*README\.md` must be UTF-8 text"):
        publish(tmp_path)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_names_a_place_in_the_card(recipe) -> None:
    kept, given = read_recipe(recipe), yaml.safe_load(recipe.read_text())
    assert kept.keys() < given.keys()
    assert not {"output_dir", "train_data", "validation_data", "tokenizer"} & kept.keys()
