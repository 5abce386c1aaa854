"""Laws of what options ask of the text: bans, penalties and biases per masked position, least lengths, stop strings."""

import itertools

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TypicalLogitsWarper,
)

import modeling_llada.generation_llada as generation_llada
from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM, generate_many
from modeling_llada.canvas_llada import Canvas
from modeling_llada.constraints_llada import Constraints, sampling_warpers
from tests.helpers import REFERENCE

EOS, MASK = 481, 488
PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])
FEW = {"max_new_tokens": 8, "block_length": 4, "stop_at_eos": False}
V = 12


def constrained(rows: list[list[int]], logits: Tensor | None = None, mask: int = 11, **options) -> Tensor:
    """Logits of the masked positions of whole rows, which are one block; [num_scored, 12], 1 each unless given."""
    ids = torch.tensor(rows)
    config = LLaDAGenerationConfig(mask_token_id=mask, eos_token_id=0, **options)
    canvas = Canvas(ids, mask, answer_start=0)
    is_masked = canvas.start_block(0, ids.shape[1])
    if logits is None:
        logits = torch.ones(int(is_masked.sum()), V)
    return Constraints(config, ids.device)(canvas, is_masked, 0, logits)


def banned(logits: Tensor) -> list[list[int]]:
    return [(row == -torch.inf).nonzero()[:, 0].tolist() for row in logits]


M = 11


def test_a_penalty_counts_the_tokens_on_both_sides_and_no_mask() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0] + [1.0] * 8])
    processed = constrained([[0, 1, M, 3]], logits, repetition_penalty=2.0)
    assert processed.tolist() == [[1.0, -4.0, 2.0, -4.0] + [1.0] * 8]


def test_a_penalty_equals_that_of_transformers_where_nothing_is_masked_but_the_next_token() -> None:
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[4, 7, 4]]), logits.clone())
    assert torch.equal(constrained([[4, 7, 4, M]], logits, repetition_penalty=1.3), expected)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"presence_penalty": 0.5}, [1.0, 0.5, 0.5] + [1.0] * 9),
        ({"frequency_penalty": 0.25}, [1.0, 0.5, 0.75] + [1.0] * 9),
        ({"presence_penalty": -1.0, "frequency_penalty": 0.25}, [1.0, 1.5, 1.75] + [1.0] * 9),
    ],
)
def test_presence_and_frequency_penalties_count_the_answer_on_both_sides_and_not_the_prompt(options, expected) -> None:
    ids = torch.tensor([[0, 3, M, M, M, M]])
    config = LLaDAGenerationConfig(mask_token_id=M, eos_token_id=0, **options)
    canvas = Canvas(ids, M, answer_start=2)
    canvas.ids[0, [2, 4, 5]] = torch.tensor([1, 2, 1])
    is_masked = canvas.start_block(2, 6)
    assert Constraints(config, ids.device)(canvas, is_masked, 2, torch.ones(1, V)).tolist() == [expected]


def test_padding_does_not_count_as_a_token_of_the_answer() -> None:
    ids, is_valid = torch.tensor([[0, 0, 3, M, M]]), torch.tensor([[False, True, True, True, True]])
    config = LLaDAGenerationConfig(mask_token_id=M, eos_token_id=0, frequency_penalty=1.0)
    canvas = Canvas(ids, M, is_valid, answer_start=3, is_given=torch.tensor([[False, True, True, False, False]]))
    is_masked = canvas.start_block(3, 5)
    assert Constraints(config, ids.device)(canvas, is_masked, 3, torch.ones(2, V)).tolist() == [[1.0] * 12] * 2


def test_an_ngram_is_not_repeated_where_the_tokens_before_it_are_known() -> None:
    rows = [[1, 2, 3, 1, 2, M], [1, 2, 3, M, 2, M], [1, M, 1, M, 4, 4]]
    assert banned(constrained(rows, no_repeat_ngram_size=3)) == [[3], [], [], [], []]
    # 1 is followed by a mask: nothing to repeat, and the mask keeps its logit.
    assert banned(constrained([[1, M, 1, M, 4, 4]], no_repeat_ngram_size=2)) == [[], []]
    assert banned(constrained([[1, 2, M, 5]], no_repeat_ngram_size=1)) == [[1, 2]]


def test_a_bad_word_is_avoided_in_whatever_order_its_tokens_come() -> None:
    words = [[1, 2, 3], [7], [0]]
    assert banned(constrained([[1, 2, M, 9]], bad_words_ids=words)) == [[3, 7]]
    assert banned(constrained([[1, M, 3, 9]], bad_words_ids=words)) == [[2, 7]]
    assert banned(constrained([[M, 2, 3, 9]], bad_words_ids=words)) == [[1, 7]]
    assert banned(constrained([[M, M, 3, 9], [3, M, 1, 2]], bad_words_ids=words)) == [[7], [7], [7]]


def test_a_bias_is_added_where_a_token_completes_its_ids() -> None:
    for bias in ({(4,): 2.0, (1, 2): -0.5}, [[[4], 2.0], [[1, 2], -0.5]]):
        processed = constrained([[1, M, 9], [9, M, 2]], sequence_bias=bias)
        changed = [{i: x for i, x in enumerate(row) if x != 1} for row in processed.tolist()]
        assert changed == [{4: 3.0, 2: 0.5}, {4: 3.0, 1: 0.5}]


def test_tokens_are_suppressed_everywhere_or_as_the_first_of_the_answer() -> None:
    processed = constrained([[1, 2, M, M]], suppress_tokens=[3], begin_suppress_tokens=[4, 5])
    assert banned(processed) == [[3, 4, 5], [3]]


def test_no_end_of_text_is_proposed_among_the_first_tokens() -> None:
    assert banned(constrained([[1, M, M, M], [1, 2, 3, M]], min_new_tokens=2)) == [[0], [0], [], [0]]


def test_the_logit_of_the_mask_is_never_changed() -> None:
    options = {"suppress_tokens": [M], "repetition_penalty": 2.0, "bad_words_ids": [[M]], "no_repeat_ngram_size": 1}
    assert (constrained([[1, M, M, M]], **options)[:, M] == 1).all()


OPTIONS = [
    {"repetition_penalty": 1.5},
    {"presence_penalty": 2.0, "frequency_penalty": 1.0},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[11], [306, 442]]},
    {"sequence_bias": [[[11], -5.0], [[27, 11], 9.0]]},
    {"suppress_tokens": [11], "begin_suppress_tokens": [27]},
    {"min_new_tokens": 5, "stop_at_eos": True, "eos_token_id": list(range(0, 480, 3)), "pad_token_id": EOS},
    {"temperature": 1.0, "min_p": 0.1, "typical_p": 0.9},
    {"temperature": 1.0, "epsilon_cutoff": 0.001, "eta_cutoff": 0.002},
]


@pytest.mark.parametrize("cache", ["none", "prefix"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_padded_batch_equals_its_rows_alone_and_the_answers_of_many(tiny_model, options, cache) -> None:
    rows = [[5, 6, 7, 11, 27], [8, 9], [11, 12, 13, 3]]
    options = {"max_new_tokens": 12, "block_length": 4, "stop_at_eos": False, "cache": cache, **options}
    generators = [torch.Generator().manual_seed(index) for index in range(3)]
    ids = torch.tensor([row + [EOS] * (5 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in rows])
    batch = tiny_model.generate(ids, mask, generator=generators, **options)[:, 5:]
    many = {a.index: a.ids for a in generate_many(tiny_model, rows, batch_size=2, seeds=0, **options)}
    plain = tiny_model.generate(ids, mask, max_new_tokens=12, block_length=4, stop_at_eos=False, cache=cache)[:, 5:]
    assert not torch.equal(batch[:, :5], plain[:, :5])
    for index, row in enumerate(rows):
        generator = torch.Generator().manual_seed(index)
        alone = tiny_model.generate(torch.tensor([row]), generator=[generator], **options)[0, len(row) :]
        assert torch.equal(batch[index, : len(alone)], alone)
        assert many[index] == alone[: len(many[index])].tolist()


def test_an_answer_has_at_least_so_many_tokens_before_its_end(tiny_model) -> None:
    options = {"max_new_tokens": 12, "block_length": 4, "eos_token_id": list(range(480)), "pad_token_id": EOS}
    assert tiny_model.generate(PROMPT, **options).shape[1] < 3 + 6
    answers = tiny_model.generate(PROMPT, min_new_tokens=6, **options)[:, 3:]
    assert answers.shape[1] > 6 and (answers[:, :6] >= 480).all()


def test_no_bad_word_appears_when_one_token_is_committed_per_pass(tiny_model) -> None:
    plain = tiny_model.generate(PROMPT, **FEW)[:, 3:].tolist()
    words = [plain[0][2:4], plain[1][5:6], plain[0][4:7]]
    text = tiny_model.generate(PROMPT, bad_words_ids=words, **FEW)[:, 3:].tolist()
    for row in text:
        for word in words:
            assert all(row[i : i + len(word)] != word for i in range(8))


def test_constraints_hold_in_infilling_too(tiny_model) -> None:
    ids = torch.tensor([[5, MASK, 7, MASK, 9]])
    filled = tiny_model.infill(ids)
    others = tiny_model.infill(ids, suppress_tokens=filled[0, [1, 3]].tolist())
    assert not set(others[0, [1, 3]].tolist()) & set(filled[0, [1, 3]].tolist())
    for name, value in {"min_new_tokens": 2, "begin_suppress_tokens": [3], "stop_strings": ".", "max_time": 1}.items():
        with pytest.raises(ValueError, match=f"`{name}` has no meaning for `infill`"):
            tiny_model.infill(ids, **{name: value})


def test_warpers_are_those_of_transformers_in_their_order() -> None:
    options = {"min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02}
    warpers = sampling_warpers(LLaDAGenerationConfig(temperature=1.0, **options))
    kinds = (MinPLogitsWarper, TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper)
    assert tuple(type(warper) for warper in warpers) == kinds
    neutral = {"min_p": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_p": 1.0}
    assert len(sampling_warpers(LLaDAGenerationConfig(temperature=1.0, **neutral))) == 0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(REFERENCE / "checkpoints" / "mha")


@pytest.mark.parametrize("length", [1, 3, 7])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(tiny_model, tokenizer, length) -> None:
    full = tiny_model.generate(PROMPT, **FEW)[:, 3:].tolist()
    stop = tokenizer.decode(full[0][:length])[-3:]
    cut = [next((n for n in range(1, 9) if stop in tokenizer.decode(row[:n])), 8) for row in full]
    for strings in (stop, [stop], ["not there", stop]):
        options = {**FEW, "stop_strings": strings, "tokenizer": tokenizer}
        output = tiny_model.generate(PROMPT, **options)
        expected = [row[:n] + [EOS] * (max(cut) - n) for row, n in zip(full, cut)]
        assert output[:, 3:].tolist() == expected
        many = {a.index: a.ids for a in generate_many(tiny_model, PROMPT.tolist(), **options)}
        assert [many[0], many[1]] == [row[:n] for row, n in zip(full, cut)]


def test_a_stop_string_before_the_end_of_text_in_its_block_comes_first(tiny_model, tokenizer) -> None:
    full = tiny_model.generate(PROMPT[:1], **FEW)[0, 3:].tolist()
    options = {**FEW, "stop_at_eos": True, "eos_token_id": full[3], "pad_token_id": EOS, "tokenizer": tokenizer}
    stop = tokenizer.decode(full[:2])
    answer = tiny_model.generate(PROMPT[:1], stop_strings=[stop], **options)[0, 3:].tolist()
    assert answer == full[: full.index(full[3]) + 1][:2]


def test_stop_strings_need_a_tokenizer(tiny_model) -> None:
    with pytest.raises(ValueError, match="`stop_strings` needs the model's tokenizer"):
        tiny_model.generate(PROMPT, stop_strings=".", **FEW)
    with pytest.raises(ValueError, match="`stop_strings` needs the model's tokenizer"):
        generate_many(tiny_model, PROMPT.tolist(), stop_strings=".", **FEW)
    for name in ("stop_strings", "max_time"):
        with pytest.raises(ValueError, match=f"`pad_token_id` is needed for `{name}`"):
            without_padding(tiny_model, name)


def without_padding(model: LLaDAModelLM, name: str) -> None:
    value = {"stop_strings": ["."], "max_time": 1.0}[name]
    config = LLaDAGenerationConfig(stop_at_eos=False, **{name: value})
    config.completed(type("Config", (), {"embedding_size": 512, "mask_token_id": MASK})())


def test_when_time_is_up_a_row_ends_before_its_first_mask(tiny_model) -> None:
    full = tiny_model.generate(PROMPT, **FEW)
    output = tiny_model.generate(PROMPT, max_time=0, return_dict_in_generate=True, output_history=True, **FEW)
    assert output.num_forward_passes.tolist() == [1, 1]
    assert output.tokens_per_forward.tolist() == [1.0, 1.0]
    assert (output.sequences != MASK).all()
    assert torch.equal(output.sequences[:, :3], PROMPT) and output.sequences.shape[1] <= 4
    assert torch.equal(tiny_model.generate(PROMPT, max_time=1000.0, **FEW), full)


def test_text_that_was_finished_in_time_is_returned(tiny_model, monkeypatch) -> None:
    full = tiny_model.generate(PROMPT, **FEW)
    clock = itertools.count()
    # A second per look at the clock: six passes, the second block is half done.
    monkeypatch.setattr(generation_llada.time, "monotonic", lambda: float(next(clock)))
    output = tiny_model.generate(PROMPT, max_time=6.0, return_dict_in_generate=True, output_history=True, **FEW)
    assert output.num_forward_passes.tolist() == [6, 6]
    whole = torch.cat((full, torch.full((2, 1), MASK)), dim=1)
    for row, text in zip(output.sequences.tolist(), whole.tolist()):
        length = next(n for n in range(len(row), 6, -1) if row[n - 1] != EOS)
        assert length >= 7 and row[:length] == text[:length]
