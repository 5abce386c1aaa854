"""The chat template and the tokenizer's preparation."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_core.tokenization import encode_chat, prepare_tokenizer, save_tokenizer

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"

SYSTEM = {"role": "system", "content": " Be brief.\n"}
QUESTION = {"role": "user", "content": "Who  are you? "}
ANSWER = {"role": "assistant", "content": "\nA model é."}
MORE = {"role": "user", "content": "Good\n\nbye"}

# Written by hand after the released template; bodies are trimmed at both ends only.
SYSTEM_TEXT = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
QUESTION_TEXT = "<|start_header_id|>user<|end_header_id|>\n\nWho  are you?<|eot_id|>"
ANSWER_TEXT = "<|start_header_id|>assistant<|end_header_id|>\n\nA model é.<|eot_id|>"
MORE_TEXT = "<|start_header_id|>user<|end_header_id|>\n\nGood\n\nbye<|eot_id|>"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"

# The template as released, which always appends the assistant header.
OFFICIAL_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

CONVERSATIONS = {
    "one user turn": ([QUESTION], QUESTION_TEXT),
    "system and user": ([SYSTEM, QUESTION], SYSTEM_TEXT + QUESTION_TEXT),
    "several turns": ([SYSTEM, QUESTION, ANSWER, MORE], SYSTEM_TEXT + QUESTION_TEXT + ANSWER_TEXT + MORE_TEXT),
    "trailing assistant": ([QUESTION, ANSWER], QUESTION_TEXT + ANSWER_TEXT),
}
conversations = pytest.mark.parametrize(("messages", "text"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())


def load(**changes) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(FOLDER, **changes)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return prepare_tokenizer(load())


@pytest.fixture
def base_tokenizer(tmp_path) -> PreTrainedTokenizerFast:
    """Like LLaDA Base's: without the header and end-of-turn tokens."""
    return without_tokens(tmp_path, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))


def without_tokens(folder: Path, tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    state = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in tokens]
    (folder / "smaller.json").write_text(json.dumps(state), encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "smaller.json"), bos_token="<|startoftext|>", eos_token="<|endoftext|>"
    )


@conversations
def test_template_renders_each_message_with_its_header_and_the_start_token_once(tokenizer, messages, text):
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|startoftext|>" + text


@conversations
def test_generation_prompt_appends_the_assistant_header(tokenizer, messages, text):
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|startoftext|>" + text + HEADER


@conversations
def test_with_a_generation_prompt_the_rendering_equals_the_released_template(tokenizer, messages, text):
    ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=OFFICIAL_TEMPLATE)
    assert ours == theirs


def test_rendered_special_tokens_become_single_ids(tokenizer):
    ids = encode_chat(tokenizer, [{"role": "user", "content": "a"}])
    assert ids[:2] == [480, 489]
    assert ids[-14:] == [491, 489, *tokenizer("assistant")["input_ids"], 490, *tokenizer("\n\n")["input_ids"]]


def test_assistant_mask_covers_answers_with_their_end_of_turn_and_no_header(tokenizer):
    messages = [SYSTEM, QUESTION, ANSWER, MORE, ANSWER]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    spans, inside = [], False
    for token_id, is_answer in zip(encoded["input_ids"], encoded["assistant_masks"]):
        if is_answer and not inside:
            spans.append([])
        if is_answer:
            spans[-1].append(token_id)
        inside = bool(is_answer)
    assert [tokenizer.decode(span) for span in spans] == ["A model é.<|eot_id|>"] * 2


def test_preparation_declares_mask_and_keeps_the_pad_token_that_is_set():
    tokenizer = load(pad_token="<|reserved_token_300|>")
    prepare_tokenizer(tokenizer)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mdm_mask|>", 488)
    assert tokenizer.pad_token_id == 300
    assert len(tokenizer) == 492


def test_pad_token_becomes_end_of_text_where_none_is_set():
    tokenizer = load(pad_token=None)
    assert prepare_tokenizer(tokenizer).pad_token_id == 481


def test_a_declared_mask_token_is_kept():
    tokenizer = load(mask_token="<|reserved_token_300|>")
    assert prepare_tokenizer(tokenizer).mask_token_id == 300


def test_a_missing_chat_token_raises_and_names_it(base_tokenizer):
    with pytest.raises(
        ValueError, match=r"no `<\|start_header_id\|>`, .*`<\|eot_id\|>` in its vocabulary.*missing='add'"
    ):
        prepare_tokenizer(base_tokenizer)
    assert len(base_tokenizer) == 489


def test_missing_tokens_are_added_on_request(base_tokenizer):
    prepare_tokenizer(base_tokenizer, missing="add")
    assert base_tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]) == [
        489,
        490,
        491,
    ]
    assert base_tokenizer.decode([64, 491], skip_special_tokens=True) == "a"


def test_missing_chat_tokens_may_be_spelled_out(base_tokenizer):
    prepare_tokenizer(base_tokenizer, missing="spell_out")
    assert len(base_tokenizer) == 489
    text = base_tokenizer.decode(encode_chat(base_tokenizer, [QUESTION]))
    assert text == "<|startoftext|>" + QUESTION_TEXT + HEADER


def test_a_missing_mask_token_cannot_be_spelled_out(tmp_path):
    tokenizer = without_tokens(tmp_path, ("<|mdm_mask|>",))
    with pytest.raises(ValueError, match=r"no `<\|mdm_mask\|>` in its vocabulary"):
        prepare_tokenizer(tokenizer, missing="spell_out")


def test_an_unknown_way_to_treat_missing_tokens_raises(tokenizer):
    with pytest.raises(ValueError, match="`missing` must be one of raise, add, spell_out, got 'ignore'"):
        prepare_tokenizer(tokenizer, missing="ignore")


def test_a_saved_tokenizer_names_the_class_that_transformers_4_knows(tokenizer, tmp_path):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.mask_token_id, loaded.pad_token_id, loaded.bos_token_id) == (488, 481, 480)
    assert encode_chat(loaded, [SYSTEM, QUESTION]) == encode_chat(tokenizer, [SYSTEM, QUESTION])


@pytest.mark.parametrize("folder", [BUNDLED_MODEL, "saved as it came", "saved after preparation"], ids=str)
def test_every_saved_tokenizer_pads_prompts_on_the_left(folder, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER, padding_side="right")
    if folder == "saved after preparation":
        assert prepare_tokenizer(tokenizer).padding_side == "left"
    if folder != BUNDLED_MODEL:
        folder = tmp_path
        save_tokenizer(tokenizer, folder)
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    assert loaded.padding_side == "left"
    shorter, longer = loaded(["a", "a b c d"], padding=True)["attention_mask"]
    assert longer[0] == shorter[-1] == 1 and shorter[0] == 0


def test_only_fast_tokenizers_are_saved(tmp_path):
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    with pytest.raises(ValueError, match="`tokenizer` must be a fast tokenizer, got Slow"):
        save_tokenizer(Slow(), tmp_path)


def test_a_conversation_without_a_template_is_refused(tokenizer) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no `chat_template`, .* give plain prompts"):
        encode_chat(tokenizer, [QUESTION])
