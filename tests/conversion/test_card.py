"""Laws of the model card: it says what was given and what the files say, and leaves a card that a person wrote."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from llada_conversion import CardFacts, prepare_upload
from llada_conversion.card import read_recipe, read_results

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
    for text, words in (("a: [", "is no YAML"), ("- a", "must map options to values, got list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_recipe(file)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_names_a_place_in_the_card(recipe) -> None:
    kept, given = read_recipe(recipe), yaml.safe_load(recipe.read_text())
    assert kept.keys() < given.keys()
    assert not {"output_dir", "train_data", "validation_data", "tokenizer"} & kept.keys()
