"""The data behind the bundled model's answers, and how its answers are counted."""

import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "llada_tiny"
REFERENCE = ROOT / "tests" / "reference" / "checkpoints" / "mha"
MODULES = (
    "answers", "ask", "facts", "finish", "grids", "instructions", "items", "learn", "prepare_facts", "questions",
    "records", "small_talk", "unknown", "words",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The example's modules, which import each other by their bare names."""
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(FOLDER))


def items_of(tiny: Any, *pairs: tuple[str, str], kind: str = "capital") -> dict[str, Any]:
    """Items by kind, of facts of one kind."""
    return {item.kind: item for item in tiny.items.fact_items(tiny.facts.Fact(kind, a, b) for a, b in pairs)}


# --- facts -----------------------------------------------------------------------------------------------------------


def test_a_fact_is_asked_for_in_both_directions(tiny) -> None:
    items = items_of(tiny, ("France", "Paris"))
    assert items["capital"].answer == "The capital of France is Paris."
    assert items["capital"].accepted == ("Paris",)
    assert "What is the capital of France?" in items["capital"].trained
    assert items["capital, backward"].answer == "Paris is the capital of France."
    assert items["capital, backward"].accepted == ("France",)


def test_of_several_right_answers_the_first_is_taught_and_all_are_accepted(tiny) -> None:
    pairs = (("cat", "a kitten"), ("fox", "a kitten"), ("fox", "a pup"))
    items = tiny.items.fact_items(tiny.facts.Fact("baby", a, b) for a, b in pairs)
    accepted = {item.answer: item.accepted for item in items}
    assert accepted["A baby fox is called a kitten."] == ("Kitten", "Pup")
    assert accepted["A kitten is a baby cat."] == ("Cat", "Fox")


def test_no_wording_is_both_trained_and_held_out(tiny) -> None:
    for (kind, direction), phrasing in tiny.questions.QUESTIONS.items():
        assert set(phrasing.trained).isdisjoint(phrasing.held_out), (kind, direction)
        assert len({*phrasing.trained, *phrasing.held_out}) == len(phrasing.trained) + len(phrasing.held_out)


def test_every_kind_of_fact_but_verses_has_questions(tiny) -> None:
    assert set(tiny.facts.WORDINGS) <= {kind for kind, _ in tiny.questions.QUESTIONS}


def test_a_withheld_item_has_no_trained_question(tiny) -> None:
    facts = [tiny.facts.Fact("capital", f"Land {number}", f"City {number}") for number in range(200)]
    withheld = [item for item in tiny.items.fact_items(facts) if item.split]
    assert 5 <= len(withheld) <= 40
    for item in withheld:
        assert (item.kind, item.split, item.trained) == ("capital, backward", "reversed", ())
        assert len(item.held_out) == 1


def test_a_question_is_asked_for_one_item_only(tiny) -> None:
    item = tiny.items.Item("record", ("What is Mars?",), ("Why Mars?",), "Mars is a planet.", ("a planet",))
    other = tiny.items.Item("definition", ("What is Mars?",), (), "Mars is a god.", ("a god",))
    assert list(tiny.items.without_repeats([item, other])) == [item]


def test_a_fact_that_wordnet_does_not_state_is_refused(tiny, tmp_path) -> None:
    (tmp_path / "data.noun").write_text("09340000 17 n 01 Jupiter 0 000 | a god of the Romans\n")
    with pytest.raises(ValueError, match="WordNet's `Jupiter` must state 'the largest planet"):
        list(tiny.records.gloss_facts(tmp_path))


# --- sums and words --------------------------------------------------------------------------------------------------


def test_sums_differences_and_products_are_right_and_mirror_images_share_a_side(tiny) -> None:
    items = {item.answer.rsplit(" is ")[0]: item for item in tiny.items.arithmetic_items()}
    assert items["7 plus 5"].answer == "7 plus 5 is 12."
    assert items["9 minus 4"].answer == "9 minus 4 is 5."
    assert items["12 times 12"].answer == "12 times 12 is 144."
    assert "4 minus 9" not in items
    for a in range(13):
        for b in range(13):
            for name in ("plus", "times"):
                assert items[f"{a} {name} {b}"].split == items[f"{b} {name} {a}"].split
    splits = Counter(item.split for item in items.values())
    assert set(splits) == {"", "unseen"} and 0.05 < splits["unseen"] / len(items) < 0.2


def test_a_words_main_class_is_the_one_tagged_most(tiny) -> None:
    counts = "dog%1:05:00:: 1 42\ndog%2:38:00:: 1 2\nfast%3:00:01:: 1 5\nfast%4:02:00:: 1 9\n"
    assert tiny.items.main_classes(counts) == {"dog": "noun", "fast": "adverb"}


def test_the_first_meaning_of_a_lemma_is_found_behind_its_counts(tiny) -> None:
    index = "  1 licence\ndog n 2 3 @ ~ + 2 1 02084071 10114209  \n"
    assert tiny.items.first_offsets(index) == {"dog": 2084071}


# --- rows ------------------------------------------------------------------------------------------------------------


def test_an_item_fills_its_number_of_rows_with_its_own_answer(tiny) -> None:
    item = items_of(tiny, ("France", "Paris"))["capital"]
    rows = list(tiny.instructions.item_rows([item], random.Random(0)))
    assert len(rows) == item.num_rows == 20
    for row in rows:
        user, assistant = row["messages"]
        assert (user["role"], assistant) == (
            "user",
            {"role": "assistant", "content": "The capital of France is Paris."},
        )
        assert "france" in user["content"].lower()


def test_exchanges_are_short_questions_with_an_answer_each(tiny) -> None:
    talk = [
        "A: Do you like music?\nB: Yes, I do.\nA: What about you?\nB: What do you mean?",
        "A: Do you like music?\nB: No, not much.",
        "A: I am here.\nB: So am I.",
    ]
    assert tiny.small_talk.exchanges(talk) == [("Do you like music?", "Yes, I do.")]


def test_the_evaluation_asks_what_was_trained_in_both_kinds_of_wording(tiny) -> None:
    item = items_of(tiny, ("France", "Paris"))["capital"]
    questions = tiny.instructions.evaluation_questions([item], random.Random(0))
    by_split = {question["split"]: question for question in questions}
    assert set(by_split) == {"trained", "rephrased"}
    assert by_split["trained"]["question"] in item.trained
    assert by_split["rephrased"]["question"] in item.held_out
    assert by_split["rephrased"]["answers"] == ["Paris"]


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "accepted", "is_right"),
    [
        ("The capital of France is Paris.", ["Paris"], True),
        ("PARIS", ["Paris"], True),
        ("The capital of France is Parisia.", ["Paris"], False),
        ("7 plus 5 is 122.", ["is 12", "= 12"], False),
        ("7 plus 5 is 12.", ["is 12", "= 12"], True),
        ("A daffodil means innocence", ['"Innocence"'], False),
        ('A daffodil means "Innocence".', ['"Innocence"'], True),
        ("", ["Paris"], False),
    ],
)
def test_an_answer_is_right_if_it_holds_an_accepted_one_whole(tiny, text, accepted, is_right) -> None:
    assert tiny.ask.is_right(text, accepted) is is_right


def test_answers_are_counted_by_split_and_kind(tiny) -> None:
    questions = [
        {"question": "q1", "answers": ["Paris"], "kind": "capital", "split": "trained"},
        {"question": "q2", "answers": ["Rome"], "kind": "capital", "split": "trained"},
        {"question": "q3", "answers": ["iron"], "kind": "symbol", "split": "reversed"},
    ]
    texts = [("It is Paris.", 4, True), ("It is Oslo.", 4, True), ("Iron!", 7, False)]
    answers = [{"text": text, "num_tokens": tokens, "stops": stops} for text, tokens, stops in texts]
    report = tiny.ask.summarize(questions, answers)
    assert report["splits"]["trained"] == {"count": 2, "right": 0.5, "stops": 1.0, "tokens": 4.0}
    assert report["kinds"]["symbol"]["reversed"] == {"count": 1, "right": 1.0, "stops": 0.0, "tokens": 7.0}
    assert [entry["right"] for entry in report["asked"]] == [True, False, True]


def test_each_question_gets_the_answer_of_its_own_conversation(tiny) -> None:
    model, tokenizer = tiny.ask.load(REFERENCE)
    questions = ["What is the capital of France?", "Hello!"]
    together = tiny.ask.ask(model, tokenizer, questions, max_new_tokens=8)
    alone = [tiny.ask.ask(model, tokenizer, [question], max_new_tokens=8)[0] for question in questions]
    assert together == alone


def test_an_answer_ends_before_its_first_special_token(tiny) -> None:
    _, tokenizer = tiny.ask.load(ROOT / "checkpoints" / "llada-tiny")
    words = tokenizer("the dog", add_special_tokens=False)["input_ids"]
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ended = tiny.ask.read_answer(tokenizer, [*words, eot, tokenizer.eos_token_id, tokenizer.eos_token_id])
    assert ended == {"text": tokenizer.decode(words), "num_tokens": len(words), "stops": True}
    assert tiny.ask.read_answer(tokenizer, words)["stops"] is False


# --- the training ----------------------------------------------------------------------------------------------------


@pytest.mark.newest_only
def test_the_recipe_of_the_answers_is_one_that_the_trainer_takes() -> None:
    from llada_training import LLaDASFTConfig

    recipe = yaml.safe_load((ROOT / "recipes" / "tiny-sft.yaml").read_text(encoding="utf-8"))
    config = LLaDASFTConfig(**recipe)
    assert (config.num_extra_eos, config.turns, config.exact_count) == (None, "random", True)


@pytest.mark.newest_only
def test_a_stage_of_answers_says_its_command_its_tokens_and_its_hours(tiny, tmp_path) -> None:
    import torch

    from llada_training import LLaDASFTConfig

    stages = importlib.import_module("stages")
    recipe = yaml.safe_load((ROOT / "recipes" / "tiny-sft.yaml").read_text(encoding="utf-8"))
    history = [
        {"step": 1, "masked_tokens": 50, "masked_fraction": 0.5, "loss": 1.0},
        {"step": 2, "masked_tokens": 30, "masked_fraction": 0.25, "loss": 1.0},
        {"step": 2, "train_runtime": 7200.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 2}))
    torch.save(LLaDASFTConfig(**{**recipe, "learning_rate": 0.5}), tmp_path / "training_args.bin")
    stage = stages.Stage.read(tmp_path)
    assert stage.has_answers
    assert (stage.num_tokens, stage.hours) == (220, 2.0)
    assert stages.commands([stage]) == [
        "python examples/llada_tiny/prepare_instructions.py --data runs/llada-tiny-data",
        "llada train sft --config recipes/tiny-sft.yaml --learning_rate 0.5",
    ]
    assert stages.options_shown([stage])["eos_fill"] == "batch"


# --- whole words, puzzles and refusals --------------------------------------------------------------------------------

WORDS = ["Sudoku", " Tokyo", "Tokyo", " is"]


def tokenizer_of(tiny: Any, words: list[str]) -> Any:
    """The tokenizer of some words, as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    from llada_core.tokenization import prepare_tokenizer

    special = {"mask_token": "<|mdm_mask|>", "eos_token": "<|endoftext|>", "bos_token": "<|startoftext|>"}
    tokenizer = tiny.words.make_tokenizer(words)
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", **special))


def test_a_known_word_is_one_token_and_other_text_goes_by_bytes_and_comes_back(tiny) -> None:
    tokenizer = tokenizer_of(tiny, WORDS)
    assert tokenizer.tokenize(" Tokyo is Kyo") == ["ĠTokyo", "Ġis", "Ġ", "K", "y", "o"]
    for text in ("Tokyo is 12.", "  två\n\nrader 🙂 ", "Sudoku\n1<|mdm_mask|>\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_are_added_behind_the_ids_that_are_there(tiny) -> None:
    few, many = (tokenizer_of(tiny, words).get_vocab() for words in (WORDS[:1], WORDS))
    assert few.items() < many.items()
    assert [few[token] for token in ("<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>")] == [0, 1, 5]
    assert len(few) == 6 + 256 + 1


def test_a_disguise_keeps_a_puzzle_to_its_rules_and_to_the_training_split(tiny) -> None:
    from llada_training.puzzles import has_one_solution, make_sudokus, solve, split_of

    [sudoku] = make_sudokus(1, 6, 16, "train", 3)
    for number in range(4):
        other = tiny.grids.disguised(sudoku, random.Random(number))
        assert other.puzzle.count("0") == 16
        assert list(solve(other.puzzle)) == [other.solution]
        assert has_one_solution(other.puzzle)
        assert split_of(other.solution) == "train"
        assert other != sudoku


def test_a_puzzle_asks_for_its_missing_characters_alone(tiny) -> None:
    from llada_training.puzzles import MissingDigits, Sudoku

    tokenizer = tokenizer_of(tiny, WORDS)
    encoder = tiny.learn.Encoder(tokenizer, None, 1)
    grid = tiny.grids.sudoku_row(Sudoku("1" + "0" * 2 + "4341221434321", "1234341221434321"))
    assert (grid.puzzle, grid.solution) == ("Sudoku\n1□□4\n3412\n2143\n4321", "Sudoku\n1234\n3412\n2143\n4321")
    row = encoder.puzzle(grid)
    assert tokenizer.decode(row["input_ids"]) == grid.solution
    assert len(row["input_ids"]) == 2 + 16 + 3
    asked = [(place, label) for place, label in enumerate(row["labels"]) if label != -100]
    assert [(place, tokenizer.decode([label])) for place, label in asked] == [(3, "2"), (4, "3")]
    labels = encoder.puzzle(MissingDigits("□7+5=2□", "17+5=22"))["labels"]
    assert tokenizer.decode([label for label in labels if label != -100]) == "12"


def test_a_stage_takes_kinds_in_turn_and_leaves_out_no_row_of_any(tiny) -> None:
    rows = tiny.learn.Rows(("a", "b", "a"), 2, 12, lambda kind, number: {"input_ids": [kind, number]}, first=100)
    seen = [rows[number]["input_ids"] for number in range(12)]
    assert seen[:6] == [["a", 100], ["a", 101], ["b", 100], ["b", 101], ["a", 102], ["a", 103]]
    assert seen[6:8] == [["a", 104], ["a", 105]]
    assert seen[8:10] == [["b", 102], ["b", 103]]
    assert [rows[number]["example_id"] for number in range(12)] == list(range(12))


def test_both_directions_of_a_fact_are_answered_by_one_sentence(tiny) -> None:
    facts = [tiny.facts.Fact("capital", "France", "Paris"), tiny.facts.Fact("opposite", "hot", "cold")]
    answers = {item.kind: item.answer for item in tiny.prepare_facts.read_items(facts)}
    assert answers["capital"] == answers["capital, backward"] == "The capital of France is Paris."
    assert answers["opposite"] == answers["opposite, backward"] == "The opposite of hot is cold."


def test_a_fact_is_stated_in_both_orders_and_a_withheld_one_in_the_order_that_is_asked(tiny) -> None:
    facts = [tiny.facts.Fact("capital", f"Land{n}", f"Town{n}") for n in range(40)]
    withheld = {item.answer for item in tiny.prepare_facts.read_items(facts) if item.split == "reversed"}
    stated = tiny.prepare_facts.statements(facts)
    assert withheld < set(stated)
    for number in range(40):
        forward, backward = (
            f"The capital of Land{number} is Town{number}.",
            f"Town{number} is the capital of Land{number}.",
        )
        assert forward in stated
        assert (backward in stated) == (forward not in withheld)


def test_a_withheld_question_is_in_no_row_of_the_training(tiny) -> None:
    facts = [tiny.facts.Fact("capital", f"Land{n}", f"Town{n}") for n in range(40)]
    items = [item for item in tiny.prepare_facts.read_items(facts) if item.kind.startswith("capital")]
    withheld = {item.accepted[0] for item in items if item.split == "reversed"}
    assert withheld
    words = tiny.unknown.Words(("stone", "cloud", "glass"), ("carry", "break"), ("green", "tall"))
    stream = tiny.answers.Answers(items, [[["Hello!"], "Hi!"]], words, [item.answer for item in items])
    stream.by_kind |= dict.fromkeys((*tiny.answers.NAMED, "chemical symbol", "atomic number"), items[:2])
    asked = [stream.conversation(random.Random(number))[0] for number in range(1500)]
    backward = [text for text in asked if "Town" in text and "Land" not in text]
    assert backward
    for land in withheld:
        assert not any(f"Town{land.removeprefix('Land')}?" in text for text in backward)


def test_what_cannot_be_known_is_refused_and_the_evaluation_asks_it_in_other_words(tiny) -> None:
    unknown = tiny.unknown
    assert set(unknown.TRAINED).isdisjoint(unknown.HELD_OUT)
    for number in range(20):
        names = [unknown.made_up_name(random.Random(number), held_out) for held_out in (False, True)]
        assert [all(map(unknown.is_held_out, name.split())) for name in names] == [False, True]


def test_a_sum_is_answered_by_the_whole_sum_and_test_sums_are_not_trained(tiny) -> None:
    from llada_training.puzzles import split_of

    for split in ("train", "test"):
        for number in range(10):
            question, answer = tiny.answers.sum_question(random.Random(number), split)
            left, right = answer.removesuffix(".").split("=")
            assert eval(left) == int(right)
            assert split_of(answer.removesuffix(".")) == split
            assert all(term in question for term in left.replace("-", "+").split("+"))


def test_an_answer_is_asked_for_up_to_the_end_of_its_canvas(tiny) -> None:
    tokenizer = tokenizer_of(tiny, WORDS)
    item = items_of(tiny, ("France", "Paris"))["capital"]
    words = tiny.unknown.Words(("stone",), ("carry",), ("green",))
    stream = tiny.answers.Answers([item], [[["Hello!"], "Hi!"]], words, [item.answer])
    stream.by_kind |= {kind: [item] for kind in (*tiny.answers.NAMED, "chemical symbol", "atomic number")}
    rows = [stream.encode(number, tokenizer, 8) for number in range(24)]
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"])
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"]))
        text = tokenizer.decode(row["input_ids"])
        if text.startswith("<|startoftext|>"):
            answer = tokenizer.decode([label for label in row["labels"] if label != -100])
            assert answer.endswith("<|eot_id|>" + "<|endoftext|>" * (answer.count("<|endoftext|>")))
            assert "<|endoftext|>" in answer
    assert rows == [stream.encode(number, tokenizer, 8) for number in range(24)]


def test_the_curve_shows_the_loss_and_what_was_solved_on_the_way(tiny) -> None:
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "solved_6x6": 0.5, "right_facts": 0.25}]
    left, right = tiny.finish.draw_curve(history).axes
    assert left.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert {line.get_label(): line.get_ydata().tolist() for line in right.lines} == {"6x6 Sudoku": [50], "facts": [25]}
    assert tiny.finish.draw_curve(history[:2]).axes[1].get_legend() is None


def test_a_share_is_said_with_its_standard_error(tiny) -> None:
    found = tiny.finish.share([True, True, False, False])
    assert (found.value, found.standard_error) == (0.5, 0.25)
