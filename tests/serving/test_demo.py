"""The page of `llada demo` without a browser: what it asks of the model, and what it shows."""

import re
import threading
import time

import pytest

gr = pytest.importorskip("gradio", reason="the page needs the extra `demo`")

from llada_core.recorder import Frame, token_texts  # noqa: E402
from llada_core.tokenization import encode_chat  # noqa: E402
from llada_serving.demo import GAP, Demo, build, canvas_html, conversation_html, under_html  # noqa: E402

# Threshold, temperature, seed, pause.
SETTINGS = (0.9, 0.0, 0, 0.0)
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def demo(checkpoint) -> Demo:
    return Demo(checkpoint)


def text_of(page: str) -> str:
    """What a page shows, tags left out; the canvas only."""
    return re.sub("<[^>]+>", "", page.partition('<div class="under">')[0]).strip()


def test_a_chat_shows_masks_first_then_every_pass_and_ends_with_the_answer_of_generate(demo):
    model, tokenizer = demo.checkpoint.model, demo.checkpoint.tokenizer
    pages = list(demo.chat(QUESTION, [], "pass", 32, 32, *SETTINGS))
    ids = encode_chat(tokenizer, [{"role": "user", "content": QUESTION}])
    output = model.generate([ids], max_new_tokens=32, threshold=0.9, return_dict_in_generate=True)
    answer = tokenizer.decode(output.sequences[0, len(ids) :], skip_special_tokens=True)
    assert pages[0][0].count('class="mask"') == 32 and 'class="tok' not in pages[0][0]
    assert len(pages[-1][2]) == 1 + int(output.num_forward_passes)
    assert text_of(pages[-1][0]) == QUESTION + answer
    assert pages[-1][3] == [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer.strip()}]


def test_the_next_turn_goes_on_from_the_last(demo):
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Paris."}]
    page = list(demo.chat("Who are you?", turns, "pass", 8, 8, *SETTINGS))[-1]
    assert [turn["content"] for turn in page[3][:3]] == [QUESTION, "Paris.", "Who are you?"]
    assert text_of(page[0]).startswith(f"{QUESTION}Paris.Who are you?")


def test_gaps_are_filled_as_infill_fills_them(demo):
    page = list(demo.fill("The capital of _ is Rome.", "confidence", 64, 32, *SETTINGS))[-1]
    assert text_of(page[0]) == "The capital of Italy is Rome."
    assert page[0].count('class="tok') == 1


@pytest.mark.parametrize(
    "text, masked",
    [
        ("The capital of _ is", "The capital ofM is"),
        ("of ___, and _", "ofMMM, andM"),
        ("_ is (_)", "M is (M)"),
        ("snake_case and __init__ stay", "snake_case and __init__ stay"),
    ],
)
def test_a_gap_is_a_run_of_underscores_that_is_no_part_of_a_word(text, masked):
    assert GAP.sub(lambda gap: "M" * len(gap[1]), text) == masked


def test_going_back_shows_the_canvas_of_that_pass(demo):
    pages = list(demo.chat(QUESTION, [], "pass", 32, 32, *SETTINGS))
    *_, frames, turns, _ = pages[-1]
    assert demo.replay(0, frames, "pass", turns).count('class="mask"') == 32
    for number in range(1, len(frames)):
        again = demo.replay(number, frames, "pass", turns)
        assert f"<b>Pass {number}</b> of {len(frames) - 1}" in again
        assert again.count('class="mask"') == frames[number].ids.count(demo.checkpoint.tokenizer.mask_token_id)
    assert demo.replay(99, frames, "pass", turns) == pages[-1][0]


def test_text_is_shown_as_text(demo):
    tokenizer = demo.checkpoint.tokenizer
    ids = tokenizer("<b>&", add_special_tokens=False)["input_ids"]
    frame = Frame(tuple(ids), (1,) * len(ids), (0.5,) * len(ids), 0.1)
    assert "<b>" not in canvas_html(frame, 1, "pass", tokenizer)
    assert "<script>" not in conversation_html([{"role": "user", "content": "<script>"}], "")
    assert text_of(canvas_html(frame, 1, "pass", tokenizer)) == "&lt;b&gt;&amp;"
    assert "".join(token_texts(ids, tokenizer)) == "<b>&"


def test_the_line_below_says_what_the_run_cost():
    frames = [Frame((9,), (0,), (0.0,), 0.0), Frame((1, 2, 3), (1, 1, 0), (1.0, 1.0, 0.0), 0.25)]
    assert "<b>Pass 1</b> of 1 · 2 tokens · 2.0 per pass · 0.25 s" in under_html(frames, 1, "pass")


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda demo: demo.chat("  ", [], "pass", 8, 8, *SETTINGS), "Type a question first"),
        (lambda demo: demo.chat("a " * 3000, [], "pass", 8, 8, *SETTINGS), "This turn has .* tokens"),
        (lambda demo: demo.chat("a <|mdm_mask|>", [], "pass", 8, 8, *SETTINGS), "must not contain <|mdm_mask|>"),
        (lambda demo: demo.fill("no gap", "pass", 8, 8, *SETTINGS), "Write _ where a word is missing"),
        (lambda demo: demo.fill("_" + " a" * 3000, "pass", 8, 8, *SETTINGS), "but the model reads"),
        (lambda demo: demo.chat("a", [], "pass", 8, 8, 0.9, -1.0, 0, 0.0), "`temperature` must be"),
    ],
)
def test_a_mistake_is_told_on_the_page(demo, act, message):
    with pytest.raises(gr.Error) as raised:
        list(act(demo))
    assert re.search(message.replace("|", r"\|"), raised.value.message)


def test_a_page_that_is_closed_ends_the_run(demo):
    before = threading.active_count()
    pages = demo.chat(QUESTION, [], "pass", 256, 256, 1.0, 0.0, 0, 0.0)
    next(pages)
    assert threading.active_count() > before
    pages.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_seed_repeats_the_draws(demo):
    answers = [
        text_of(list(demo.chat("Tell a story.", [], "pass", 8, 8, 1.0, 1.5, seed, 0.0))[-1][0]) for seed in (1, 1, 2, 3)
    ]
    assert answers[0] == answers[1] and len(set(answers)) > 1


def test_the_page_is_built_for_any_checkpoint(checkpoint):
    assert build(checkpoint, "tiny <b>").title == "tiny <b>: text by unmasking"
