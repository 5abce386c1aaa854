"""Laws of the model card: it says what was given and what the files say, and leaves a card that a person wrote."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from llada_conversion import CardFacts, prepare_upload
from llada_conversion.card_facts import read_recipe, read_results
from llada_conversion.card_update import update_card

ROOT = Path(__file__).parents[2]
MODEL = "tester/tiny"


def test_the_card_says_what_was_given_and_carries_the_results_as_metadata(own, tmp_path) -> None:
    recipe, results = tmp_path / "sft.yaml", tmp_path / "gsm8k.json"
    recipe.write_text("learning_rate: 1.0e-5\noutput_dir: /home/me\nhub_token: x\nseed: 3\n")
    results.write_text(json.dumps({"results": {"gsm8k": {"exact_match,none": 0.69, "exact_match_stderr,none": 0.01}}}))
    state = {"global_step": 1234, "log_history": [{"eval_loss": 9.0}, {"eval_loss": 2.5, "eval_runtime": 3.0}]}
    (own / "trainer_state.json").write_text(json.dumps(state))
    facts = CardFacts(
        license="mit", base_model="GSAI-ML/LLaDA-8B-Base", datasets=("me/data",), languages=("en",), tags=("math",),
        recipe=recipe, results=(results,), is_chat=True, prompt="What is 1+1?",
    )  # fmt: skip
    content = prepare_upload(own, MODEL, facts).files["README.md"]
    assert isinstance(content, bytes)
    card = ModelCard(content.decode())
    data = card.data.to_dict()
    assert (data["license"], data["base_model"]) == ("mit", "GSAI-ML/LLaDA-8B-Base")
    assert (data["datasets"], data["language"], data["tags"][-1]) == (["me/data"], ["en"], "math")
    assert card.data.model_name == "tiny"
    measured = [(row.dataset_name, row.metric_type, row.metric_value) for row in card.data.eval_results]
    assert measured == [("validation", "loss", 2.5), ("gsm8k", "exact_match", 0.69)]
    for line in (
        "| `learning_rate` | 1e-05 |",
        "| `seed` | 3 |",
        "1,234 optimizer steps",
        "| gsm8k: exact_match | 0.69 |",
    ):
        assert line in card.text
    assert "/home/me" not in card.text and "hub_token" not in card.text
    assert '{"role": "user", "content": "What is 1+1?"}' in card.text


def test_a_readme_goes_up_as_it_is_with_the_tags_asked_for(own) -> None:
    text = "---\nlicense: mit\ntags:\n- llada\n---\n\n# Mine\n"
    (own / "README.md").write_text(text)
    assert prepare_upload(own, MODEL).files["README.md"] == text.encode()
    content = prepare_upload(own, MODEL, CardFacts(tags=("llada", "math"))).files["README.md"]
    assert isinstance(content, bytes)
    card = ModelCard(content.decode())
    assert card.data.tags == ["llada", "math"] and card.text.strip() == "# Mine"


def test_facts_are_added_to_a_card_that_is_there(own, tmp_path) -> None:
    results = tmp_path / "gsm8k.json"
    results.write_text(json.dumps({"results": {"gsm8k": {"exact_match,none": 0.69}}}))
    sentence = "No licence was named for the weights; those of the base model and of the data apply."
    (own / "README.md").write_text(f"---\ntags:\n- llada\ndatasets: a/b\n---\n\n# Mine\n\n{sentence}\n")
    facts = CardFacts(
        license="mit", base_model="me/base", datasets=("a/b", "c/d"), languages=("en",), results=(results,)
    )
    content = prepare_upload(own, MODEL, facts).files["README.md"]
    assert isinstance(content, bytes)
    card = ModelCard(content.decode())
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "me/base", ["a/b", "c/d"])
    assert (card.data.language, card.data.tags, card.data.model_name) == (["en"], ["llada"], "tiny")
    assert [(row.dataset_name, row.metric_value) for row in card.data.eval_results] == [("gsm8k", 0.69)]
    assert card.text.strip() == "# Mine\n\nThe weights are licensed under mit."


def test_the_usage_example_loads_from_the_hub_what_it_loaded_from_the_folder(own) -> None:
    lines = 'model = AutoModel.from_pretrained("{}", dtype="auto")\nother = AutoModel.from_pretrained("me/other")\n'
    (own / "README.md").write_text("---\nlicense: mit\n---\n" + lines.format(own.as_posix()))
    content = prepare_upload(own, MODEL).files["README.md"]
    assert content == ("---\nlicense: mit\n---\n" + lines.format(MODEL)).encode()


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


def test_what_only_a_new_card_can_hold_is_refused_beside_a_card_that_is_there(own) -> None:
    (own / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"has a README\.md of its own, and --prompt, --chat cannot be added"):
        prepare_upload(own, MODEL, CardFacts(prompt="Hello", is_chat=True))


@pytest.mark.parametrize("sign", ["tags:\n- generated_from_trainer\n---\n", "---\n[More Information Needed]\n"])
def test_a_card_that_a_library_left_as_a_placeholder_is_filled(own, sign) -> None:
    (own / "README.md").write_text(f"---\nlicense: mit\n{sign}")
    content = prepare_upload(own, MODEL, CardFacts(license="apache-2.0")).files["README.md"]
    assert isinstance(content, bytes)
    assert "# tiny" in content.decode() and "license: apache-2.0" in content.decode()


def test_a_card_needs_a_licence(own) -> None:
    with pytest.raises(ValueError, match=r"has no README\.md, and a card needs a licence, got none; pass --license"):
        prepare_upload(own, MODEL)


def test_facts_that_cannot_be_read_are_refused(own, tmp_path) -> None:
    file = tmp_path / "file"
    for text, words in (
        ("{", "is no JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("{}", "numbers of an evalu"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_results(file)
    file.write_text('{"accuracy": 0.5, "epoch": 1.0, "done": true}')
    assert read_results(file) == [("file", "accuracy", 0.5)]
    record = tmp_path / "piqa-1.record.json"
    score = {"value": 0.25, "standard_error": 0.1}
    record.write_text(json.dumps({"format": 1, "name": "PIQA", "results": {"acc_norm,none": score}}))
    assert read_results(record) == [("PIQA", "acc_norm", 0.25)]
    for text, words in (("a: [", "is no YAML"), ("- a", "must map options to values, got list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_recipe(file)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_names_a_place_in_the_card(recipe) -> None:
    kept, given = read_recipe(recipe), yaml.safe_load(recipe.read_text())
    assert kept.keys() < given.keys()
    assert not {"output_dir", "train_data", "validation_data", "tokenizer"} & kept.keys()
