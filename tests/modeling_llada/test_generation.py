"""Laws of `generate` and `infill`."""

import itertools

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
    TextStreamer,
)

import modeling_llada.generation_llada as generation_llada
import modeling_llada.unmasking_llada as unmasking_llada
from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM
from modeling_llada.generation_config_llada import OPTIONS as TABLE

EOS, MASK, EOT = 481, 488, 491
DECODE = {"stop_at_eos": False, "eot_token_id": EOT, "return_dict_in_generate": True, "output_history": True}


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 400, (1, length), generator=generator) for length in lengths]


def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    width = max(row.shape[1] for row in rows)
    padded, masks = [], []
    for row in rows:
        missing = width - row.shape[1]
        amounts = (missing, 0) if side == "left" else (0, missing)
        padded.append(torch.nn.functional.pad(row, amounts, value=EOS))
        masks.append(torch.nn.functional.pad(torch.ones_like(row), amounts))
    return torch.cat(padded), torch.cat(masks)


def is_comparable(case: dict) -> bool:
    """Whether ours must equal the recording; see tests/reference/README.md."""
    suppresses_at_temperature = case["kwargs"].get("confidence_eos_eot_inf") and case["kwargs"]["temperature"] > 0
    return case["robust"] and not suppresses_at_temperature and "infill" not in case["name"]


def assert_equals_recording(model: LLaDAModelLM, case: dict) -> None:
    output = model.generate(case["prompt"], case["attention_mask"], **DECODE, **case["kwargs"])
    history = torch.stack(output.history)
    # The official loop also runs the model at steps that commit nothing; ours does not.
    steps = case["steps_x"].long()
    changes = [0] + [i for i in range(1, len(steps)) if not torch.equal(steps[i], steps[i - 1])]
    assert torch.equal(output.sequences, case["output"]), case["name"]
    assert torch.equal(history, steps[changes]), case["name"]
    assert output.num_forward_passes.tolist() == [len(changes) - 1] * len(case["prompt"])


def test_greedy_tokens_equal_the_official_sampler_at_every_step(reference) -> None:
    model, recorded = reference
    cases = [case for case in recorded["generate"] if is_comparable(case)]
    assert len(cases) >= 40
    for case in cases:
        assert_equals_recording(model, case)


def test_seeded_tokens_equal_the_official_sampler_when_its_draws_are_replayed(reference, monkeypatch) -> None:
    model, recorded = reference
    cases = [case for case in recorded["generate_random"] if is_comparable(case)]
    assert len(cases) >= 20
    for case in cases:
        replay_official_draws(monkeypatch, model, case)
        assert_equals_recording(model, case)


def replay_official_draws(monkeypatch: pytest.MonkeyPatch, model: LLaDAModelLM, case: dict) -> None:
    """Draw as the official sampler does: Gumbel noise in float64, and confidences, over the whole canvas."""
    temperature, block_length = case["kwargs"]["temperature"], case["kwargs"]["block_length"]
    start = case["prompt"].shape[1]
    kinds = itertools.cycle(["noise"] * (temperature > 0) + ["order"] * (case["kwargs"]["remasking"] == "random"))

    def draw(canvas, is_masked: Tensor, width: int) -> Tensor:
        first = int((canvas.ids[0, start:] == MASK).nonzero()[0]) // block_length * block_length + start
        size = tuple(canvas.ids.shape)
        if next(kinds) == "noise":
            numbers = torch.rand(*size, model.config.embedding_size, dtype=torch.float64)
        else:
            numbers = torch.rand(size)
        return numbers[:, first : first + is_masked.shape[1]][is_masked]

    def gumbel_max(logits: Tensor, noise: Tensor) -> Tensor:
        return ((logits.double() * temperature).exp() / (-noise.log()) ** temperature).argmax(-1)

    torch.manual_seed(case["seed"])
    monkeypatch.setattr(generation_llada.Canvas, "draw", draw)
    monkeypatch.setattr(unmasking_llada, "sample", gumbel_max)


OPTIONS = [
    {},
    {"steps": 6},
    {"steps": 24, "block_length": 24},
    {"block_length": 7},
    {"cfg_scale": 1.5},
    {"remasking": "margin"},
    {"remasking": "entropy", "steps": 8},
    {"remasking": "random"},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9},
    {"temperature": 0.8, "remasking": "random", "cfg_scale": 0.5, "steps": 8},
    {"logits_eos_inf": True},
    {"confidence_eos_eot_inf": True, "eot_token_id": EOT},
    {"threshold": 0.1},
    {"factor": 2.5, "cache": "prefix"},
    {"frechet": 0.0, "remasking": "margin"},
    {"entropy_bound": 3.0, "steps": 12, "cache": "dual"},
    {"threshold": 0.9, "remasking": "random", "cfg_scale": 1.0, "cache": "dual"},
    {"cache": "prefix", "cfg_scale": 1.5},
    {"cache": "dual", "suffix_window": 4, "temperature": 0.7},
    {"cache": "dual", "freeze_prompt": True, "factor": 2.0, "cfg_scale": 0.5},
    {"cache": "prefix", "freeze_prompt": True, "refresh_interval": 3},
    {"suffix_window": 0},
    {
        "cache": "dual",
        "threshold": 0.1,
        "stop_at_eos": True,
        "eos_token_id": list(range(0, 480, 7)),
        "temperature": 1.0,
    },
    {"stop_at_eos": True},
    {"stop_at_eos": True, "eos_token_id": [3, 9, 30, 77, 200, 310, 404, 481], "temperature": 1.0},
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_ragged_batch_equals_its_rows_run_alone(tiny_model, options, side) -> None:
    rows = prompts(9, 4, 13)
    options = {"max_new_tokens": 24, "block_length": 8, "stop_at_eos": False, **options}
    ids, mask = pad(rows, side)
    batch = tiny_model.generate(ids, mask, generator=generators(3), **options)
    for index, row in enumerate(rows):
        alone = tiny_model.generate(row, generator=[generators(3)[index]], **options)
        answer, own = batch[index, ids.shape[1] :], alone[0, row.shape[1] :]
        # The batch goes on to its longest row's end.
        assert torch.equal(answer[: len(own)], own) and (answer[len(own) :] == EOS).all()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(count)]


def test_one_generator_reproduces_a_draw_and_another_seed_changes_it(tiny_model) -> None:
    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return tiny_model.generate(prompts(5)[0], max_new_tokens=16, temperature=1.0, generator=generator)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_list_of_generators_must_have_one_per_row(tiny_model) -> None:
    with pytest.raises(ValueError, match=r"one per row \(1\), got a list of 2"):
        tiny_model.generate(prompts(5)[0], max_new_tokens=4, temperature=1.0, generator=generators(2))


def test_random_order_at_temperature_one_draws_from_the_any_order_mixture(toy_model) -> None:
    prompt, length, num_draws = torch.tensor([[0]]), 2, 4000
    expected = any_order_mixture(toy_model, prompt, length)
    texts = toy_model.generate(
        prompt.expand(num_draws, -1),
        max_new_tokens=length,
        block_length=length,
        temperature=1.0,
        remasking="random",
        stop_at_eos=False,
        generator=torch.Generator().manual_seed(0),
    )[:, 1:]
    counts = torch.bincount(texts[:, 0] * 3 + texts[:, 1], minlength=9).double()
    chi_square = ((counts - num_draws * expected) ** 2 / (num_draws * expected)).sum()
    # The 99.9 % quantile with 8 degrees of freedom.
    assert chi_square < 26.1


@torch.no_grad()
def any_order_mixture(model: LLaDAModelLM, prompt: Tensor, length: int) -> Tensor:
    """Probability of every text over tokens 0..2, averaged over the orders in which its tokens are drawn."""
    mixture = torch.zeros(3**length, dtype=torch.float64)
    orders = list(itertools.permutations(range(length)))
    for index, text in enumerate(itertools.product(range(3), repeat=length)):
        for order in orders:
            canvas = torch.cat((prompt, torch.full((1, length), 3)), dim=1)
            probability = 1.0
            for position in order:
                logits = model(canvas).logits[0, prompt.shape[1] + position, :3].double()
                probability *= logits.softmax(-1)[text[position]].item()
                canvas[0, prompt.shape[1] + position] = text[position]
            mixture[index] += probability / len(orders)
    return mixture


def test_stopping_at_eos_keeps_the_text_before_it_and_pads_after_it(tiny_model) -> None:
    prompt = prompts(6)[0]
    full = tiny_model.generate(prompt, max_new_tokens=32, block_length=8, stop_at_eos=False)[0, 6:]
    eos = int(full[10])
    first = int((full == eos).nonzero()[0])
    output = tiny_model.generate(
        prompt, max_new_tokens=32, block_length=8, eos_token_id=eos, pad_token_id=77, return_dict_in_generate=True
    )
    answer = output.sequences[0, 6:]
    assert torch.equal(answer[: first + 1], full[: first + 1])
    assert len(answer) == first + 1
    assert output.num_forward_passes.item() <= (first // 8 + 1) * 8


def test_a_finished_row_takes_part_in_no_further_pass(tiny_model) -> None:
    rows = prompts(6, 6)
    full = tiny_model.generate(torch.cat(rows), max_new_tokens=32, block_length=8, stop_at_eos=False)[:, 6:]
    only_first = [token for token in full[0, :16].tolist() if token not in full[1].tolist()]
    output = tiny_model.generate(
        torch.cat(rows), max_new_tokens=32, block_length=8, eos_token_id=only_first[0], return_dict_in_generate=True
    )
    assert output.num_forward_passes[0] <= 16
    assert output.num_forward_passes[1] == 32
    assert output.tokens_per_forward[1] == 1.0
    assert torch.equal(output.sequences[1, 6:], full[1])
    assert output.sequences.shape == (2, 38)


def test_no_mask_is_left_and_the_prompt_is_kept(tiny_model) -> None:
    prompt = prompts(5)[0]
    for steps, block_length in ((1, 11), (2, 6), (5, 3), (11, 4), (30, 11)):
        output = tiny_model.generate(
            prompt, max_new_tokens=11, steps=steps, block_length=block_length, stop_at_eos=False,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert (output.sequences[0, 5:] != MASK).all()
        assert torch.equal(output.sequences[:, :5], prompt)
        assert output.num_forward_passes.item() == min(steps, 11)


def test_gen_length_is_another_name_of_max_new_tokens(tiny_model) -> None:
    assert tiny_model.generate(prompts(5)[0], gen_length=7, block_length=7).shape == (1, 12)
    with pytest.raises(ValueError, match="same option"):
        tiny_model.generate(prompts(5)[0], gen_length=7, max_new_tokens=7)


def test_infill_fills_every_mask_and_touches_nothing_else(tiny_model) -> None:
    ids = torch.cat(prompts(20, 20))
    is_masked = torch.zeros_like(ids, dtype=torch.bool)
    is_masked[0, [2, 3, 9]], is_masked[1, [0, 5, 6, 12, 19]] = True, True
    noisy = ids.masked_fill(is_masked, MASK)
    for options in ({}, {"steps": 2}, {"block_length": 6}, {"temperature": 1.0}, {"cfg_scale": 1.0}):
        filled = tiny_model.infill(noisy, **options)
        assert torch.equal(filled[~is_masked], ids[~is_masked])
        assert (filled != MASK).all()


def test_infilled_rows_of_a_batch_equal_the_rows_run_alone(tiny_model) -> None:
    rows = [row.clone() for row in prompts(12, 7)]
    rows[0][0, [3, 8, 9]], rows[1][0, [0, 6]] = MASK, MASK
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        batch = tiny_model.infill(ids, mask)
        for index, row in enumerate(rows):
            assert torch.equal(batch[index][mask[index].bool()], tiny_model.infill(row)[0])


def test_infilling_the_end_equals_generating_it(tiny_model) -> None:
    prompt = prompts(6)[0]
    canvas = torch.nn.functional.pad(prompt, (0, 12), value=MASK)
    generated = tiny_model.generate(prompt, max_new_tokens=12, block_length=12, stop_at_eos=False)
    assert torch.equal(tiny_model.infill(canvas), generated)


def test_infilling_sees_the_text_after_a_mask_also_where_answers_have_open_length(tiny_model) -> None:
    ids = prompts(20)[0]
    ids[0, 4:8] = MASK
    growing = LLaDAGenerationConfig(max_new_tokens=None, max_length=200)
    assert torch.equal(tiny_model.infill(ids, generation_config=growing), tiny_model.infill(ids))


def test_a_logits_processor_sees_the_canvas_of_every_scored_position(tiny_model) -> None:
    seen = []

    def forbid_even_tokens(ids: Tensor, logits: Tensor) -> Tensor:
        assert ids.shape == (logits.shape[0], 5 + 8)
        seen.append(len(logits))
        logits[:, ::2] = -torch.inf
        return logits

    output = tiny_model.generate(
        prompts(5)[0], max_new_tokens=8, stop_at_eos=False, logits_processor=LogitsProcessorList([forbid_even_tokens])
    )
    assert (output[0, 5:] % 2 == 1).all()
    assert seen == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_stopping_criterion_ends_a_row_after_a_block(tiny_model) -> None:
    lengths = []

    def stop_first_row(ids: Tensor, scores: None) -> Tensor:
        lengths.append(tuple(ids.shape))
        return torch.arange(len(ids)) == (0 if len(ids) == 2 else -1)

    ids = torch.cat(prompts(5, 5))
    output = tiny_model.generate(
        ids, max_new_tokens=12, block_length=4, stop_at_eos=False,
        stopping_criteria=StoppingCriteriaList([stop_first_row]),
    )  # fmt: skip
    assert lengths == [(2, 9), (1, 13), (1, 17)]
    assert (output[0, 9:] == EOS).all() and (output[0, 5:9] != EOS).all()
    assert (output[1] != MASK).all()
    stopped = tiny_model.generate(
        ids, max_new_tokens=12, block_length=4, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)])
    )
    assert stopped.shape == (2, 9)


class RecordingStreamer:
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def put(self, value: Tensor) -> None:
        self.events.append(("put", value.clone()))

    def put_draft(self, value: Tensor) -> None:
        self.events.append(("draft", value.clone()))

    def end(self) -> None:
        self.events.append(("end", None))


def test_a_streamer_gets_the_prompt_every_draft_every_block_and_the_end(tiny_model) -> None:
    prompt, streamer = prompts(5)[0], RecordingStreamer()
    output = tiny_model.generate(prompt, max_new_tokens=6, block_length=3, stop_at_eos=False, streamer=streamer)
    assert [kind for kind, _ in streamer.events] == ["put"] + (["draft"] * 3 + ["put"]) * 2 + ["end"]
    put = [value for kind, value in streamer.events if kind == "put"]
    assert torch.equal(torch.cat(put), output[0])
    drafts = [value for kind, value in streamer.events if kind == "draft"]
    assert [int((draft == MASK).sum()) for draft in drafts] == [5, 4, 3, 2, 1, 0]


def test_an_infilled_text_is_streamed_as_drafts_and_put_whole(tiny_model) -> None:
    ids, streamer = prompts(8)[0], RecordingStreamer()
    ids[0, [2, 5]] = MASK
    output = tiny_model.infill(ids, streamer=streamer)
    assert [kind for kind, _ in streamer.events] == ["put", "draft", "draft", "put", "end"]
    assert torch.equal(streamer.events[0][1], ids[0]) and torch.equal(streamer.events[3][1], output[0])


def test_a_plain_text_streamer_prints_the_answer(tiny_model, capsys) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model.name_or_path)
    output = tiny_model.generate(
        prompts(5)[0], max_new_tokens=8, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    )
    answer = tokenizer.decode(output[0, 5:], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == answer.strip()


def test_options_come_from_the_call_then_the_given_config_then_the_model(tiny_model) -> None:
    prompt = prompts(5)[0]
    given = LLaDAGenerationConfig(max_new_tokens=6, block_length=6)
    assert tiny_model.generate(prompt).shape == (1, 133)
    assert tiny_model.generate(prompt, generation_config=given).shape == (1, 11)
    assert tiny_model.generate(prompt, generation_config=given, max_new_tokens=3).shape == (1, 8)
    assert given.max_new_tokens == 6


def test_history_is_kept_only_when_asked_for(tiny_model) -> None:
    output = tiny_model.generate(prompts(5)[0], max_new_tokens=4, return_dict_in_generate=True)
    assert output.history is None
    assert isinstance(tiny_model.generate(prompts(5)[0], max_new_tokens=4), Tensor)


def test_the_mask_token_is_never_proposed(tiny_model) -> None:
    def prefer_mask(ids: Tensor, logits: Tensor) -> Tensor:
        logits[:, MASK] = 1e4
        return logits

    for temperature in (0.0, 1.0):
        output = tiny_model.generate(
            prompts(5)[0], max_new_tokens=8, temperature=temperature, stop_at_eos=False, logits_processor=[prefer_mask]
        )
        assert (output != MASK).all()


def test_the_choices_of_an_option_are_those_that_the_loop_knows() -> None:
    assert TABLE["remasking"][2] == (*unmasking_llada.CONFIDENCE_MEASURES, "random")
    assert set(unmasking_llada.COMMIT_RULES) <= set(TABLE)
    assert TABLE["fallback"][2] == unmasking_llada.FALLBACKS


def test_without_a_rule_the_leftmost_fallback_decodes_from_left_to_right(tiny_model) -> None:
    output = tiny_model.generate(
        prompts(5)[0], max_new_tokens=6, fallback="leftmost", stop_at_eos=False,
        return_dict_in_generate=True, output_history=True,
    )  # fmt: skip
    masked = [(canvas == MASK)[0].nonzero()[:, 0].tolist() for canvas in output.history]
    assert masked == [list(range(first, 11)) for first in range(5, 12)]


def test_the_docstring_explains_every_option_of_the_table() -> None:
    for name, (*_, meaning) in TABLE.items():
        assert f"        {name}: {meaning}.\n" in (LLaDAGenerationConfig.__doc__ or "")


BAD_CALLS = [
    ({"stepss": 4}, "Unknown generation option `stepss`; did you mean `steps`"),
    ({"num_beams": 4}, "`num_beams` is not supported here; leave it out"),
    ({"steps": 1, "max_new_tokens": 64}, r"`steps` must be at least the number of blocks \(2\), got 1; pass steps=2"),
    ({"steps": 0}, "`steps` must be None or at least 1, got 0"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be None or at least 1, got 0"),
    ({"max_new_tokens": None, "steps": 4}, "`steps` has no meaning with `max_new_tokens=None`"),
    ({"max_new_tokens": None, "suffix_window": 4}, "`suffix_window` has no meaning with `max_new_tokens=None`"),
    ({"max_new_tokens": None, "max_length": 5}, "`max_length` must leave room for an answer after the prompt's 5"),
    ({"max_length": 50, "max_new_tokens": 8}, "`max_length` .50. needs `max_new_tokens=None`, got 8"),
    ({"max_length": 50, "steps": 4}, "`steps` has no meaning with `max_new_tokens=None` or `max_length`"),
    ({"num_return_sequences": 2}, "`num_return_sequences` must be 1 where nothing is drawn, .* got 2; pass a `temp"),
    ({"num_return_sequences": 0}, "`num_return_sequences` must be None or at least 1, got 0"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, r"`min_new_tokens` must be at most `max_new_tokens` \(8\), got 9"),
    ({"max_time": -1}, "`max_time` must be None or at least 0, got -1"),
    ({"stop_strings": "."}, "`stop_strings` needs the model's tokenizer, got None; pass `tokenizer=tokenizer`"),
    ({"stop_strings": [""]}, r"`stop_strings` must be None, a text or a list of texts, got \[''\]"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be None or above 0, got 0"),
    ({"bad_words_ids": [4]}, r"`bad_words_ids` must be None or lists of token ids, got \[4\]"),
    ({"bad_words_ids": [[4, 512]]}, r"`bad_words_ids` must lie in the vocabulary, 0\.\.511, got 512"),
    ({"suppress_tokens": [-1]}, r"`suppress_tokens` must be None or a list of token ids, got \[-1\]"),
    ({"sequence_bias": [[[4], "1"]]}, "`sequence_bias` must be None or pairs of token ids and a number"),
    ({"sequence_bias": {(4, 999): 1.0}}, "`sequence_bias` must lie in the vocabulary"),
    ({"min_p": 1.5}, r"`min_p` must be None or in \[0, 1\], got 1.5"),
    ({"compile_config": {"mode": "default"}}, "`compile_config` needs `compile=True`; pass both"),
    ({"compile_config": 3, "compile": True}, "`compile_config` must be None or a `CompileConfig`, got 3"),
    ({"block_length": 0}, "`block_length` must be"),
    ({"temperature": -1}, "`temperature` must be 0, or from 1e-6 to 1e6, got -1"),
    ({"temperature": float("nan")}, "`temperature` must be"),
    ({"top_p": 0.0}, r"`top_p` must be None or in \(0, 1\], got 0.0"),
    ({"top_k": 0}, "`top_k` must be None or at least 1, got 0"),
    ({"remasking": "lowconf"}, "`remasking` must be one of low_confidence, margin, entropy, random, got 'lowconf'"),
    ({"cfg_scale": -0.1}, "`cfg_scale` must be"),
    ({"do_sample": True, "temperature": 0}, "`do_sample=True` needs `temperature` above 0"),
    ({"output_history": True}, "`output_history=True` needs `return_dict_in_generate=True`"),
    ({"stop_at_eos": "yes"}, "`stop_at_eos` must be True or False"),
    ({"threshold": 0.0}, r"`threshold` must be None or in \(0, 1\], got 0.0"),
    ({"threshold": 1.1}, "`threshold` must be"),
    ({"factor": 0}, "`factor` must be None or above 0, got 0"),
    ({"frechet": 1.0}, r"`frechet` must be None or in \[0, 1\), got 1.0"),
    ({"entropy_bound": -0.1}, "`entropy_bound` must be None or at least 0, got -0.1"),
    ({"threshold": 0.9, "frechet": 0.2}, "`threshold` and `frechet` are two commit rules; pass one"),
    ({"cache": "both"}, "`cache` must be one of none, prefix, dual, got 'both'"),
    ({"refresh_interval": 2}, "`refresh_interval` needs a cache"),
    ({"freeze_prompt": True}, "`freeze_prompt` needs a cache"),
    ({"cache": "dual", "refresh_interval": 0}, "`refresh_interval` must be None or at least 1, got 0"),
    ({"suffix_window": -1}, "`suffix_window` must be None or at least 0, got -1"),
    ({"suffix_window": 1.5}, "`suffix_window` must be None or at least 0, got 1.5"),
    ({"steps": 10**30}, "`steps` must be at most 2147483647, got 10{30}"),
    ({"mask_token_id": 512}, r"`mask_token_id` must lie in the vocabulary, 0\.\.511, got 512"),
    ({"mask_token_id": -1}, r"`mask_token_id` must lie in the vocabulary, 0\.\.511, got -1"),
    ({"eos_token_id": [3, 999], "logits_eos_inf": True}, r"`eos_token_id` must lie in .* got \[3, 999\]"),
    ({"eot_token_id": 999, "confidence_eos_eot_inf": True}, "`eot_token_id` must lie in the vocabulary"),
    ({"eos_token_id": []}, r"`eos_token_id` must be None or a token id, or a list of token ids, got \[\]"),
    ({"pad_token_id": [0]}, r"`pad_token_id` must be None or a token id, got \[0\]"),
    ({"mask_token_id": "488"}, "`mask_token_id` must be None or a token id, got '488'"),
    ({"confidence_eos_eot_inf": True}, "`eot_token_id` is needed for `confidence_eos_eot_inf`"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CALLS, ids=str)
def test_a_bad_option_is_named_with_its_rule(tiny_model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(prompts(5)[0], **options)


BAD_PROMPTS = [
    (None, None, "`input_ids` must hold at least one token per row"),
    (torch.zeros(1, 0, dtype=torch.long), None, "`input_ids` must hold at least one token per row"),
    (torch.tensor([1, 2]), None, "`input_ids` must hold"),
    ([1, 2], None, "`input_ids` must hold"),
    ([[1, 2], [3]], None, "rows of token ids of one length; pad them"),
    ([[10**30]], None, "rows of token ids of one length"),
    (torch.tensor([[1.0, 2.0]]), None, r"`input_ids` must be whole numbers, int64 .batch, seq., got torch\.float32"),
    (torch.tensor([[True]]), None, r"`input_ids` must be whole numbers, int64 .batch, seq., got torch\.bool"),
    ("In the beginning", None, "`input_ids` must be token ids, got text; encode it"),
    (["In the beginning"], None, "`input_ids` must be token ids, got text; encode it "),
    ({"input_ids": [[1]]}, None, r"got a whole encoding; pass it as `\*\*encoding`"),
    (torch.tensor([[5, 512]]), None, r"vocabulary, 0\.\.511, got 5\.\.512"),
    (torch.tensor([[5, -1]]), None, r"vocabulary, 0\.\.511, got -1\.\.5"),
    (torch.tensor([[5, 6], [MASK, MASK]]), None, "nothing but mask tokens"),
    (torch.tensor([[5, MASK]]), None, "call `infill`"),
    (torch.tensor([[5, 6], [481, 481]]), torch.tensor([[1, 1], [0, 0]]), "Row 1 of `attention_mask` is all padding"),
    (torch.tensor([[5, 6]]), torch.tensor([[1, 1, 1]]), "`attention_mask` must have the shape of `input_ids`"),
]


@pytest.mark.parametrize(("ids", "mask", "message"), BAD_PROMPTS, ids=[m for _, _, m in BAD_PROMPTS])
def test_a_bad_prompt_is_named_with_a_way_out(tiny_model, ids, mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(ids, mask, max_new_tokens=4)


def test_infill_refuses_what_has_no_meaning_there(tiny_model) -> None:
    ids = prompts(6)[0]
    with pytest.raises(ValueError, match="holds no mask token"):
        tiny_model.infill(ids)
    ids[0, 2] = MASK
    for name in ("max_new_tokens", "gen_length", "max_length", "stop_at_eos", "freeze_prompt", "suffix_window"):
        with pytest.raises(ValueError, match=f"`{name}` has no meaning for `infill`"):
            tiny_model.infill(ids, **{name: 4})


def test_required_token_ids_that_are_not_set_are_asked_for(toy_model) -> None:
    prompt = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="`eos_token_id` is needed for `stop_at_eos`"):
        toy_model.generate(prompt, max_new_tokens=2)
    with pytest.raises(ValueError, match="`pad_token_id` is needed for `stop_at_eos`"):
        toy_model.generate(prompt, max_new_tokens=2, eos_token_id=1)
    with pytest.raises(ValueError, match="`pad_token_id` is needed for `stopping_criteria`"):
        toy_model.generate(
            prompt, max_new_tokens=2, stop_at_eos=False, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(1)])
        )


def test_padding_without_an_attention_mask_is_warned_of(tiny_model, caplog) -> None:
    generation_llada.logger.warning_once.cache_clear()
    generation_llada.logger.propagate = True
    tiny_model.generate(torch.tensor([[EOS, 5], [6, 7]]), max_new_tokens=2)
    assert "no `attention_mask` was given" in caplog.text
