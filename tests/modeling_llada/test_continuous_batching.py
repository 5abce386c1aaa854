"""Laws of `generate_many`: full slots change the speed, never an answer."""

from collections.abc import Iterable

import pytest
import torch
from transformers import CompileConfig

from modeling_llada import LLaDAAnswer, LLaDAGenerationConfig, LLaDAModelLM, generate_many
from modeling_llada import continuous_batching_llada as batching
from modeling_llada.continuous_batching_llada import Row, lay_out, split_by_width

EOS, MASK, EOT = 481, 488, 491
# Enough ids end a row that answers of one batch end in different blocks.
ENDING = {"stop_at_eos": True, "eos_token_id": list(range(0, 480, 11)), "pad_token_id": EOS}
BLOCKS = {"max_new_tokens": 21, "block_length": 6, "stop_at_eos": False}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 400, (length,), generator=generator).tolist() for length in lengths]


RAGGED = prompts(9, 4, 13, 4, 1, 7)


def alone(model: LLaDAModelLM, prompt: list[int], seed: int, **options) -> tuple[list[int], int]:
    """Answer and passes of `generate` for one prompt, without what follows its end of text."""
    output = model.generate(
        torch.tensor([prompt]),
        generator=[torch.Generator().manual_seed(seed)],
        return_dict_in_generate=True,
        **options,
    )
    ids = output.sequences[0, len(prompt) :].tolist()
    if options.get("stop_at_eos", True):
        eos = options.get("eos_token_id", [EOS])
        ids = ids[: next((place + 1 for place, token in enumerate(ids) if token in eos), len(ids))]
    return ids, output.num_forward_passes.item()


def in_order(answers: Iterable[LLaDAAnswer]) -> list[LLaDAAnswer]:
    return sorted(answers, key=lambda answer: answer.index)


OPTIONS = [
    {},
    ENDING,
    {"steps": 9, **ENDING},
    {"cfg_scale": 1.5, **ENDING},
    {"remasking": "margin", "steps": 8},
    {"temperature": 0.8, **ENDING},
    {"temperature": 0.8, "remasking": "random", "cfg_scale": 0.5, "steps": 8, "top_k": 50, "top_p": 0.9, **ENDING},
    {"logits_eos_inf": True, "stop_at_eos": True},
    {"confidence_eos_eot_inf": True, "eot_token_id": EOT, **ENDING},
    {"threshold": 0.1, **ENDING},
    {"factor": 2.5, "cache": "prefix", **ENDING},
    {"frechet": 0.0, "remasking": "entropy", **ENDING},
    {"entropy_bound": 3.0, "steps": 12, "cache": "dual", **ENDING},
    {"cache": "prefix", "cfg_scale": 1.5, **ENDING},
    {"cache": "prefix", "suffix_window": 4, "refresh_interval": 2, "temperature": 0.7, **ENDING},
    {"cache": "dual", "suffix_window": 4, "temperature": 0.7, **ENDING},
    {"suffix_window": 0, "steps": 21, **ENDING},
    {"remask_rate": 0.4, **ENDING},
    {"remask_rate": 0.4, "steps": 12, "temperature": 1.0, **ENDING},
    {"max_new_tokens": None, "max_length": 27, **ENDING},
    {"max_new_tokens": None, "max_length": 27, "cache": "dual", "temperature": 1.0, "threshold": 0.5, **ENDING},
    {"block_length": 21, "threshold": 0.1, **ENDING},
]


def label(options: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items() if name not in ENDING) or "plain"


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_every_answer_equals_the_one_generate_gives_for_the_prompt_alone(tiny_model, options) -> None:
    options = {**BLOCKS, **options}
    answers = list(generate_many(tiny_model, RAGGED, batch_size=4, seeds=3, **options))
    assert sorted(answer.index for answer in answers) == list(range(len(RAGGED)))
    for answer in answers:
        expected = alone(tiny_model, RAGGED[answer.index], 3 + answer.index, **options)
        assert (answer.ids, answer.num_forward_passes) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_answers_do_not_depend_on_the_number_of_slots(tiny_model, batch_size) -> None:
    options = {**BLOCKS, **ENDING, "temperature": 1.0, "cache": "dual", "threshold": 0.1, "cfg_scale": 0.5}
    answers = generate_many(tiny_model, RAGGED, batch_size=batch_size, seeds=0, **options)
    expected = [alone(tiny_model, prompt, seed, **options)[0] for seed, prompt in enumerate(RAGGED)]
    assert [answer.ids for answer in in_order(answers)] == expected


def test_a_row_that_ends_gives_its_slot_to_the_next_prompt_at_once(tiny_model) -> None:
    options = {**BLOCKS, **ENDING}
    sizes = batch_sizes(tiny_model, RAGGED * 3, batch_size=3, **options)
    blocks = [-(-len(alone(tiny_model, prompt, 0, **options)[0]) // 6) for prompt in RAGGED * 3]
    assert len(set(blocks)) > 1
    # 3 rows in every pass of a block but for the last iterations, where the prompts have run out.
    firsts = sizes[::6]
    assert firsts[: firsts.index(2)] == [3] * firsts.index(2)
    assert sum(firsts) == sum(blocks)
    assert len(firsts) <= -(-sum(blocks) // 3) + 3


def batch_sizes(model: LLaDAModelLM, prompts: list[list[int]], **options) -> list[int]:
    """Rows in every pass of the model."""
    sizes: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    list(generate_many(model, prompts, **options))
    hook.remove()
    return sizes


def row(prompt_length: int, start: int, end: int, canvas_end: int) -> Row:
    return Row(0, [], prompt_length, [(start, end, None)], canvas_end, None, LLaDAGenerationConfig())


def test_active_blocks_stand_in_the_same_columns_with_their_true_positions() -> None:
    # A prompt of 1 token at its second block of 2, and one of 2 tokens at its last, which has 1 token.
    rows = [row(1, 3, 5, 7), row(2, 6, 7, 7)]
    positions, start, end = lay_out(rows, visible_suffix=None, masks_stand_after=False)
    assert (start, end) == (6, 8)
    assert positions.tolist() == [[-1, 5, 6, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, -1]]
    positions, start, end = lay_out(rows, visible_suffix=1, masks_stand_after=True)
    assert (start, end) == (6, 8)
    assert positions.tolist() == [[-1, -1, -1, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, -1, -1]]


def test_prompts_of_one_length_fill_the_same_columns_at_every_block() -> None:
    rows = [row(5, start, start + 4, 17) for start in (5, 9, 13)]
    positions, _, _ = lay_out(rows, visible_suffix=None, masks_stand_after=False)
    assert positions.shape == (3, 17)
    assert (positions >= 0).all()


@pytest.mark.parametrize(
    "widths, groups",
    [
        ([18, 128, 20, 120, 16], [[128, 120], [20, 18, 16]]),  # 2 * 64 + 2 * 128 + 3 * 20 instead of 64 + 5 * 128
        ([30, 10, 20], [[30, 20, 10]]),
        ([100, 36, 36], [[100], [36, 36]]),  # two passes save 2 * 64 columns
        ([99, 68], [[99, 68]]),
        ([7], [[7]]),
    ],
)
def test_rows_of_very_different_widths_have_passes_of_their_own(widths, groups) -> None:
    rows = [row(1, 1, width, width) for width in widths]
    assert [[each.num_columns for each in group] for group in split_by_width(rows)] == groups


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "cfg_scale": 0.5, **ENDING}, {"suffix_window": 0, **ENDING}], ids=label
)
def test_passes_of_their_own_change_no_answer(tiny_model, monkeypatch, options) -> None:
    monkeypatch.setattr(batching, "PASS_COLUMNS", 2)
    options = {**BLOCKS, **options}
    for answer in generate_many(tiny_model, RAGGED, batch_size=4, seeds=3, **options):
        expected = alone(tiny_model, RAGGED[answer.index], 3 + answer.index, **options)
        assert (answer.ids, answer.num_forward_passes) == expected
    sizes = batch_sizes(tiny_model, RAGGED[:4], batch_size=4, **{**BLOCKS, "suffix_window": 0})
    assert sizes[: 3 * 6 : 6] == [1, 1, 2]  # prompts of 13, 9, and twice 4 tokens


def test_the_longest_prompts_come_first(tiny_model) -> None:
    answers = generate_many(tiny_model, RAGGED, batch_size=2, **BLOCKS)
    assert [answer.index for answer in answers] == [2, 0, 5, 1, 3, 4]


def test_answers_come_as_they_finish(tiny_model) -> None:
    answers = generate_many(tiny_model, RAGGED, batch_size=1, **BLOCKS)
    with torch.enable_grad():
        assert next(answers).index == 2
        assert torch.is_grad_enabled()


def test_a_seed_for_each_prompt_is_its_own(tiny_model) -> None:
    options = {**BLOCKS, "temperature": 1.0}
    together = in_order(generate_many(tiny_model, RAGGED[:3], seeds=[7, 7, 1], **options))
    assert [answer.ids for answer in together] == [
        alone(tiny_model, prompt, seed, **options)[0] for prompt, seed in zip(RAGGED, [7, 7, 1])
    ]


def test_the_method_of_the_model_is_the_function(tiny_model) -> None:
    assert list(tiny_model.generate_many(RAGGED[:2], **BLOCKS)) == list(generate_many(tiny_model, RAGGED[:2], **BLOCKS))


def test_prompts_may_be_tensors_and_none_give_no_answer(tiny_model) -> None:
    as_tensors = [torch.tensor(prompt) for prompt in RAGGED[:2]]
    assert list(generate_many(tiny_model, as_tensors, **BLOCKS)) == list(
        generate_many(tiny_model, RAGGED[:2], **BLOCKS)
    )
    assert list(generate_many(tiny_model, [], **BLOCKS)) == []


def test_a_compiled_model_gives_the_same_answers(tiny_model) -> None:
    compiled = {"compile": True, "compile_config": CompileConfig(backend="eager", mode=None)}
    options = {"max_new_tokens": 4, "block_length": 2, "steps": 2, "stop_at_eos": False}
    answers = list(generate_many(tiny_model, RAGGED[:2], **compiled, **options))
    assert answers == list(generate_many(tiny_model, RAGGED[:2], **options))


BAD_CALLS = [
    ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ({"seeds": [1, 2, 3]}, r"`seeds` must be one number or one per prompt \(2\), got 3"),
    ({"cache": "dual", "freeze_prompt": True}, "`freeze_prompt` has no meaning for `generate_many`"),
    ({"output_history": True, "return_dict_in_generate": True}, "`output_history` has no meaning"),
    ({"max_time": 0}, "`max_time` has no meaning for `generate_many`"),
    ({"num_return_sequences": 2, "temperature": 1.0}, "`num_return_sequences` must be 1 for `generate_many`"),
    ({"steps": 1}, r"^`steps` must be at least the number of blocks \(4\), got 1"),
    ({"streamer": None}, "Unknown generation option `streamer`"),
    ({"max_new_tokens": None, "max_length": 5}, "Prompt 0: `max_length` must leave room .* prompt's 9 tokens, got 5"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CALLS, ids=str)
def test_a_bad_option_is_named_before_the_first_answer(tiny_model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        generate_many(tiny_model, RAGGED[:2], **{**BLOCKS, **options})


BAD_PROMPTS = [
    ([], "Prompt 1: `input_ids` must hold at least one token"),
    ([5, 512], r"Prompt 1: `input_ids` must lie in the vocabulary, 0\.\.511, got 5\.\.512"),
    ([5, MASK], "Prompt 1: `input_ids` holds the mask token"),
    ("hello", "Prompt 1: `input_ids` must be token ids, got text"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=[message for _, message in BAD_PROMPTS])
def test_a_bad_prompt_is_named_by_its_number(tiny_model, prompt, message) -> None:
    with pytest.raises(ValueError, match=message):
        generate_many(tiny_model, [[5, 6], prompt], **BLOCKS)
