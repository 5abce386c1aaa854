"""Laws of caches and parallel rules within `generate`."""

import pytest
import torch
from torch import Tensor

from modeling_llada import LLaDAModelLM
from modeling_llada.cache_llada import BlockCache
from tests.helpers import REFERENCE

EOS, MASK = 481, 488
RULES = [{}, {"threshold": 0.1}, {"factor": 2.5}, {"frechet": 0.0}, {"entropy_bound": 3.0}]


def prompts(*shape: int) -> Tensor:
    return torch.randint(0, 400, shape, generator=torch.Generator().manual_seed(5))


def test_fixed_schedules_and_thresholds_equal_fast_dllm_with_every_cache(tiny_model) -> None:
    recorded = torch.load(REFERENCE / "recorded" / "fast_dllm.pt", weights_only=True)
    num_compared = 0
    for case in recorded["cases"]:
        # That code's factor rule takes one token more than its inequality allows, and its dual cache may leave masks.
        if not case["robust"] or case["left_masks"] or "factor" in case["kwargs"]:
            continue
        options = {"max_new_tokens" if k == "gen_length" else k: v for k, v in case["kwargs"].items()}
        if "threshold" in options:
            options.pop("steps", None)
        output = tiny_model.generate(
            recorded[f"prompt_{case['batch']}"], cache=case["cache"], stop_at_eos=False, **options
        )
        assert torch.equal(output, case["output"]), (case["cache"], options)
        num_compared += 1
    assert num_compared >= 95


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_cache_that_is_refreshed_at_every_pass_is_exact(tiny_model, cache, rule) -> None:
    options = {"max_new_tokens": 24, "block_length": 8, "stop_at_eos": False, "cfg_scale": 0.5, **rule}
    exact = tiny_model.generate(prompts(2, 7), **options)
    assert torch.equal(tiny_model.generate(prompts(2, 7), cache=cache, refresh_interval=1, **options), exact)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_with_one_step_per_block_is_exact(tiny_model, cache) -> None:
    options = {"max_new_tokens": 24, "block_length": 4, "steps": 6, "stop_at_eos": False}
    exact = tiny_model.generate(prompts(2, 7), **options)
    assert torch.equal(tiny_model.generate(prompts(2, 7), cache=cache, **options), exact)


def test_a_cached_pass_with_fresh_neighbours_gives_the_logits_of_a_full_pass(tiny_model) -> None:
    ids = prompts(2, 12)
    ids[:, 5:8] = MASK
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :3] = False
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        full = tiny_model(ids, mask, position_ids=position_ids).logits
        cache = BlockCache(2, 12)
        cache.set_window(0, 12, ids.device)
        first = tiny_model(ids, mask, position_ids=position_ids, past_key_values=cache).logits
        cache.set_window(5, 8, ids.device)
        block = tiny_model(ids[:, 5:8], mask, position_ids=position_ids[:, 5:8], past_key_values=cache).logits
    assert torch.equal(first, full)
    assert torch.allclose(block, full[:, 5:8], atol=1e-5)


def test_a_frozen_prompt_is_computed_once(tiny_model, monkeypatch) -> None:
    lengths = forward_lengths(tiny_model, monkeypatch, cache="dual", freeze_prompt=True)
    assert lengths == [19, 4, 4, 4, 12, 4, 4, 4, 12, 4, 4, 4]
    assert forward_lengths(tiny_model, monkeypatch, cache="dual") == [19, 4, 4, 4] * 3
    assert forward_lengths(tiny_model, monkeypatch, cache="prefix") == [19, 12, 12, 12, 19, 8, 8, 8, 19, 4, 4, 4]
    assert forward_lengths(tiny_model, monkeypatch, cache="none") == [19] * 12
    assert forward_lengths(tiny_model, monkeypatch, suffix_window=2) == [13] * 4 + [17] * 4 + [19] * 4
    refreshed = forward_lengths(tiny_model, monkeypatch, cache="dual", refresh_interval=2)
    assert refreshed == [19, 4] * 6


def forward_lengths(model: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch, **options) -> list[int]:
    """Columns computed by each pass for a prompt of 7 tokens and 3 blocks of 4."""
    lengths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(prompts(1, 7), max_new_tokens=12, block_length=4, stop_at_eos=False, **options)
    hook.remove()
    return lengths


@pytest.mark.parametrize("rule", RULES[1:], ids=str)
def test_a_rule_with_steps_never_needs_more_passes_than_steps(tiny_model, rule) -> None:
    options = {"max_new_tokens": 24, "block_length": 8, "stop_at_eos": False, "return_dict_in_generate": True}
    output = tiny_model.generate(prompts(3, 7), steps=6, **options, **rule)
    assert (output.num_forward_passes <= 6).all()
    assert (output.sequences != MASK).all()


def test_rows_of_a_batch_finish_their_blocks_at_their_own_pace(tiny_model) -> None:
    options = {"max_new_tokens": 24, "block_length": 8, "stop_at_eos": False, "return_dict_in_generate": True}
    output = tiny_model.generate(prompts(6, 7), threshold=0.08, **options)
    assert len(set(output.num_forward_passes.tolist())) > 1
    alone = tiny_model.generate(prompts(6, 7)[3:4], threshold=0.08, **options)
    assert alone.num_forward_passes[0] == output.num_forward_passes[3]
    assert torch.allclose(output.tokens_per_forward, 24 / output.num_forward_passes)


def test_an_answer_of_open_length_equals_a_canvas_that_ends_with_the_same_block(tiny_model) -> None:
    prompt = prompts(1, 7)
    whole = tiny_model.generate(prompt, max_new_tokens=16, block_length=8, suffix_window=0, stop_at_eos=False)
    grown = tiny_model.generate(prompt, max_new_tokens=None, max_length=23, block_length=8, stop_at_eos=False)
    assert torch.equal(grown, whole)
    eos = int(whole[0, 10])
    ended = tiny_model.generate(prompt, max_new_tokens=None, block_length=8, eos_token_id=eos, pad_token_id=0)
    end = int((whole[0, 7:] == eos).nonzero()[0]) + 8
    assert torch.equal(ended[0, :end], whole[0, :end])
    assert ended.shape[1] == end
    first_block = tiny_model.generate(prompt, max_new_tokens=8, block_length=8, stop_at_eos=False)
    assert torch.equal(first_block, whole[:, :15])


def test_infill_works_with_every_cache(tiny_model) -> None:
    ids = prompts(2, 20)
    ids[0, [2, 3, 9]], ids[1, [5, 12, 19]] = MASK, MASK
    for cache in ("prefix", "dual"):
        filled = tiny_model.infill(ids, cache=cache, block_length=6, threshold=0.1)
        assert (filled != MASK).all()
        exact = tiny_model.infill(ids, cache=cache, block_length=6, refresh_interval=1)
        assert torch.equal(exact, tiny_model.infill(ids, block_length=6))


def test_self_correction_changes_committed_tokens_and_needs_no_more_passes(tiny_model) -> None:
    options = {"max_new_tokens": 24, "block_length": 12, "steps": 12, "stop_at_eos": False}
    plain = tiny_model.generate(prompts(2, 7), **options)
    output = tiny_model.generate(
        prompts(2, 7), remask_rate=0.4, return_dict_in_generate=True, output_history=True, **options
    )
    assert (output.num_forward_passes == 12).all()
    assert (output.sequences != MASK).all()
    assert not torch.equal(output.sequences, plain)
    history = torch.stack(output.history)
    was_masked_again = (history[:-1] != MASK) & (history[1:] == MASK)
    assert was_masked_again.any() and not was_masked_again[:, :, :7].any()
    assert torch.equal(output.tokens_per_forward, torch.tensor([2.0, 2.0]))
    one_per_token = tiny_model.generate(
        prompts(1, 7), max_new_tokens=6, remask_rate=0.4, stop_at_eos=False, return_dict_in_generate=True
    )
    assert one_per_token.num_forward_passes.tolist() == [6]


def test_outside_the_window_are_the_columns_that_a_pass_does_not_compute() -> None:
    cache = BlockCache(num_layers=1, num_columns=4)
    cache.set_window(0, 4, torch.device("cpu"))
    assert cache.outside_window()[0] == [(None, None)]
    states = torch.arange(4.0).view(1, 1, 4, 1)
    cache.update(states, -states, 0)
    cache.set_window(1, 3, torch.device("cpu"))
    [(keys, values)], is_inside = cache.outside_window()
    assert keys.flatten().tolist() == [0.0, 3.0] and values.flatten().tolist() == [0.0, -3.0]
    assert is_inside.tolist() == [False, True, True, False]
