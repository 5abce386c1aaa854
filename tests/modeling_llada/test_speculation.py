"""Laws of `speculate`: text, history and drafts shown are those of plain decoding; only the passes are fewer."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM, generate_many
from modeling_llada.continuous_batching_llada import Budget, make_row
from tests.helpers import REFERENCE
from tests.modeling_llada.test_generation import is_comparable

EOS, EOT = 481, 491
BLOCKS = {"max_new_tokens": 20, "block_length": 8, "stop_at_eos": False}
# Enough ids end a row that rows leave at different steps.
ENDING = {"stop_at_eos": True, "eos_token_id": list(range(0, 480, 11)), "pad_token_id": EOS}


def ragged_prompts() -> tuple[Tensor, Tensor]:
    """Three prompts of 9, 4 and 13 tokens, padded on the left, and their mask."""
    ids = torch.randint(0, 400, (3, 13), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(13) >= torch.tensor([[4], [9], [0]])
    return ids.masked_fill(~mask, EOS), mask


def run(model: LLaDAModelLM, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(row) for row in range(len(ids))]
    kept = {"return_dict_in_generate": True, "output_history": True}
    return model.generate(ids, mask, generator=generators, **kept, **options)


def assert_same_text(output: Any, expected: Any) -> None:
    assert torch.equal(output.sequences, expected.sequences)
    assert len(output.history) == len(expected.history)
    assert all(map(torch.equal, output.history, expected.history))
    assert (output.num_forward_passes <= expected.num_forward_passes).all()


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 4])
def test_every_recorded_case_is_the_official_text_at_every_step_in_fewer_passes(reference, num_drafts) -> None:
    model, recorded = reference
    cases = [case for case in recorded["generate"] if is_comparable(case)]
    num_passes = num_steps = 0
    for case in cases:
        options = {**case["kwargs"], "stop_at_eos": False, "eot_token_id": EOT, "speculate": num_drafts}
        output = run(model, case["prompt"], case["attention_mask"], **options)
        # The official loop also runs the model at steps that commit nothing.
        steps = case["steps_x"].long()
        steps = [steps[0]] + [step for before, step in itertools.pairwise(steps) if not torch.equal(step, before)]
        assert torch.equal(output.sequences, case["output"]), case["name"]
        assert torch.equal(torch.stack(output.history), torch.stack(steps)), case["name"]
        num_passes += int(output.num_forward_passes.sum())
        num_steps += (len(steps) - 1) * len(case["prompt"])
    assert len(cases) >= 40 and num_passes < num_steps


OPTIONS: list[dict[str, Any]] = [
    {},
    ENDING,
    {"steps": 7, "remasking": "margin", **ENDING},
    {"threshold": 0.1, "fallback": "leftmost", **ENDING},
    {"entropy_bound": 3.0, "steps": 12, **ENDING},
    {"cfg_scale": 1.5, **ENDING},
    {"remask_rate": 0.3, "steps": 12},
    {"temperature": 0.8, "remasking": "random", **ENDING},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5, **ENDING},
    {"max_new_tokens": None, "max_length": 30},
    {"cache": "dual", **ENDING},
    {"cache": "prefix", "cfg_scale": 0.5, **ENDING},
    {"cache": "dual", "refresh_interval": 3, "factor": 2.5, **ENDING},
    {"cache": "prefix", "freeze_prompt": True, "suffix_window": 4, **ENDING},
    {"cache": "dual", "refresh_interval": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_ragged_batch_has_the_same_text_at_every_step_with_every_cache_and_rule(tiny_model, options) -> None:
    ids, mask = ragged_prompts()
    options = {**BLOCKS, **options}
    assert_same_text(run(tiny_model, ids, mask, speculate=3, **options), run(tiny_model, ids, mask, **options))


def test_a_pass_is_counted_for_a_row_where_the_model_ran_and_no_other(tiny_model, monkeypatch) -> None:
    ids, num_rows = ragged_prompts()[0][:1], []
    forward = tiny_model.forward
    monkeypatch.setattr(
        tiny_model, "forward", lambda input_ids, **k: num_rows.append(len(input_ids)) or forward(input_ids, **k)
    )
    output = run(tiny_model, ids, speculate=2, **BLOCKS)
    assert output.num_forward_passes.tolist() == [len(num_rows)]
    assert len(num_rows) < len(output.history) - 1
    assert max(num_rows) == 3, "its own canvas, and at most two drafts"


def test_refreshing_at_every_pass_leaves_no_draft(tiny_model) -> None:
    ids, options = ragged_prompts()[0], {**BLOCKS, "cache": "dual", "refresh_interval": 1}
    assert run(tiny_model, ids, speculate=3, **options).num_forward_passes.tolist() == [20] * 3


class Noting(LogitsProcessor):
    """A processor with a state: it counts its calls, and forbids another token each time."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        self.seen.append(ids.clone())
        logits[:, len(self.seen)] = -torch.inf
        return logits


class Streamer:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def put(self, ids: Tensor) -> None:
        self.seen.append(ids)

    put_draft = put

    def end(self) -> None:
        pass


def test_processors_with_a_state_and_streamers_see_what_they_see_without(tiny_model) -> None:
    ids, seen = ragged_prompts()[0][:1], []
    for num_drafts in (0, 3):
        processor, streamer = Noting(), Streamer()
        processors = LogitsProcessorList([processor])
        run(tiny_model, ids, logits_processor=processors, streamer=streamer, speculate=num_drafts, **BLOCKS)
        seen.append([*processor.seen, *streamer.seen])
    assert len(seen[0]) == len(seen[1]) and all(map(torch.equal, *seen))


def test_a_stop_string_ends_the_same_text(tiny_model) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(REFERENCE / "checkpoints" / "mha")
    ids = ragged_prompts()[0][:1]
    plain = tiny_model.generate(ids, **BLOCKS)
    options = {**BLOCKS, "stop_strings": [tokenizer.decode(plain[0, 13:18])[-3:]], "pad_token_id": EOS}
    expected = tiny_model.generate(ids, tokenizer=tokenizer, **options)
    assert expected.shape[1] < plain.shape[1]
    assert torch.equal(tiny_model.generate(ids, tokenizer=tokenizer, speculate=2, **options), expected)


def test_many_prompts_and_infilling_have_the_same_text(tiny_model) -> None:
    prompts = [row[keep].tolist() for row, keep in zip(*ragged_prompts(), strict=True)]
    options = {**BLOCKS, **ENDING, "seeds": 0}
    plain, drafted = (
        sorted(generate_many(tiny_model, prompts, batch_size=2, speculate=count, **options), key=lambda a: a.index)
        for count in (0, 2)
    )
    assert [answer.ids for answer in drafted] == [answer.ids for answer in plain]
    text = ragged_prompts()[0].index_fill(1, torch.tensor([2, 3, 6, 7, 8, 11]), tiny_model.config.mask_token_id)
    assert torch.equal(tiny_model.infill(text, speculate=4), tiny_model.infill(text))


def test_a_compiled_model_drafts_too(tiny_model) -> None:
    ids, compiled = ragged_prompts()[0], {"compile": True, "compile_config": CompileConfig(backend="eager", mode=None)}
    output = tiny_model.generate(ids, speculate=2, **compiled, **BLOCKS)
    assert torch.equal(output, tiny_model.generate(ids, **BLOCKS))


def test_the_drafts_of_a_row_count_as_logits_of_the_batch(tiny_model) -> None:
    def rows(num_drafts: int) -> list:
        config = LLaDAGenerationConfig(max_new_tokens=8, block_length=8, speculate=num_drafts).completed(
            tiny_model.config
        )
        return [make_row(tiny_model, index, [5, 6], config) for index in range(4)]

    budget = Budget(max_logits_bytes=4 * 4 * 8 * 512)
    assert [len(budget.choose(rows(count), 512)) for count in (0, 1, 3)] == [4, 2, 1]
