"""Laws of what callers of transformers pass as a matter of course: taken, or named; never silently different."""

import copy
import inspect
import pickle
from collections.abc import Callable

import numpy
import pytest
import torch
from transformers import CompileConfig, GenerationConfig, GenerationMixin

import modeling_llada.generation_config_llada as generation_config_llada
import modeling_llada.generation_llada as generation_llada
from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM, generate_many
from modeling_llada.generation_config_llada import DEFAULTS, HINTS, NEUTRAL
from tests.helpers import ROOT

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])
FEW = {"max_new_tokens": 8, "stop_at_eos": False}
MASK = 488


@pytest.fixture
def warnings(caplog):
    """The text of warnings, each of them as if given for the first time."""
    for logger in (generation_llada.logger, generation_config_llada.logger):
        logger.warning_once.cache_clear()
        logger.propagate = True
    return caplog


def with_default_options(model: LLaDAModelLM) -> LLaDAModelLM:
    """The same weights with a generation config of its own."""
    own = copy.copy(model)
    own.__dict__ = dict(model.__dict__)
    own.generation_config = LLaDAGenerationConfig(**FEW)
    return own


SET_LATER = {"top_h": 0.4, "logit_bias": {"5": 1.0}, "length_penalty": 1.5}


@pytest.mark.parametrize(("name", "value"), SET_LATER.items())
def test_what_is_set_on_a_config_and_is_no_option_is_named_in_one_warning(tiny_model, warnings, name, value) -> None:
    given, model = LLaDAGenerationConfig(**FEW), with_default_options(tiny_model)
    setattr(given, name, value)
    setattr(model.generation_config, name, value)
    expected = tiny_model.generate(PROMPT, **FEW)
    for _ in range(2):
        assert torch.equal(tiny_model.generate(PROMPT, generation_config=given), expected)
        assert torch.equal(model.generate(PROMPT), expected)
        list(generate_many(model, PROMPT.tolist()))
    [record] = warnings.records
    assert record.getMessage().endswith(f"are not used: {name}.")


def test_all_names_stand_in_the_same_warning(tiny_model, warnings) -> None:
    for config in (LLaDAGenerationConfig(**FEW), GenerationConfig(max_new_tokens=8)):
        for name, value in SET_LATER.items():
            setattr(config, name, value)
        tiny_model.generate(PROMPT, generation_config=config, stop_at_eos=False)
    [record] = warnings.records
    assert record.getMessage().endswith("not used: length_penalty, logit_bias, top_h.")


def test_configs_without_foreign_options_warn_of_nothing(tiny_model, warnings) -> None:
    neutral = GenerationConfig(max_new_tokens=8, num_beams=1, num_return_sequences=1, repetition_penalty=1.0)
    for config in (LLaDAGenerationConfig(**FEW), neutral, GenerationConfig(), None):
        tiny_model.generate(PROMPT, generation_config=config, max_new_tokens=8, stop_at_eos=False)
    assert not warnings.records


def test_an_option_set_on_a_config_of_ours_is_in_force_and_checked(tiny_model) -> None:
    config = LLaDAGenerationConfig(**FEW)
    config.max_new_tokens = 3
    assert tiny_model.generate(PROMPT, generation_config=config).shape == (2, 6)
    config.max_new_tokens = 0
    with pytest.raises(ValueError, match="`max_new_tokens` must be None or at least 1, got 0"):
        tiny_model.generate(PROMPT, generation_config=config)


def test_numbers_of_numpy_and_torch_count_as_pythons(tiny_model, tmp_path) -> None:
    expected = tiny_model.generate(PROMPT, steps=4, **FEW)
    for four in (numpy.int64(4), numpy.int32(4), torch.tensor(4)):
        assert torch.equal(tiny_model.generate(PROMPT, steps=four, **FEW), expected)
        config = LLaDAGenerationConfig(steps=four, temperature=numpy.float32(0.5), **FEW)
        config.save_pretrained(tmp_path)
        saved = LLaDAGenerationConfig.from_pretrained(tmp_path)
        assert (saved.steps, saved.temperature) == (4, 0.5)
        later = LLaDAGenerationConfig(**FEW)
        later.steps = four
        assert torch.equal(tiny_model.generate(PROMPT, generation_config=later), expected)
    eos = torch.tensor([3, 9])
    assert LLaDAGenerationConfig(eos_token_id=eos).eos_token_ids == (3, 9)


def test_prompts_may_be_lists_arrays_and_integers_of_any_width(tiny_model) -> None:
    expected = tiny_model.generate(PROMPT, **FEW)
    assert torch.equal(tiny_model.generate(PROMPT.tolist(), PROMPT.gt(0).tolist(), **FEW), expected)
    assert torch.equal(tiny_model.generate(PROMPT.numpy(), **FEW), expected)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        output = tiny_model.generate(PROMPT.to(dtype), **FEW)
        assert output.dtype == torch.int64 and torch.equal(output, expected)
    masked = [[5, MASK, 7]]
    assert torch.equal(tiny_model.infill(masked), tiny_model.infill(torch.tensor(masked)))


def test_values_that_change_nothing_are_as_good_as_none(tiny_model) -> None:
    options = {name: value for name, value in NEUTRAL.items() if name in DEFAULTS}
    plain = LLaDAGenerationConfig(**FEW)
    plain_file = GenerationConfig.from_pretrained(ROOT / "checkpoints" / "llada-tiny")
    for config in (
        LLaDAGenerationConfig(**FEW, **options),
        plain.updated(**options),
        LLaDAGenerationConfig.from_generation_config(plain_file),
    ):
        assert {name: getattr(config, name) for name in options} == dict.fromkeys(options)


def test_inputs_is_another_name_of_input_ids(tiny_model) -> None:
    assert torch.equal(tiny_model.generate(inputs=PROMPT, **FEW), tiny_model.generate(PROMPT, **FEW))
    with pytest.raises(ValueError, match="`inputs` and `input_ids` are the same argument; pass one of them"):
        tiny_model.generate(PROMPT, inputs=PROMPT, **FEW)


def test_what_callers_always_pass_changes_nothing(tiny_model, warnings) -> None:
    expected = tiny_model.generate(PROMPT, **FEW)
    unset = {"tokenizer": object(), "use_cache": False, "synced_gpus": False, "custom_generate": None}
    for options in (
        unset,
        dict.fromkeys(HINTS),
        NEUTRAL,
        {"synced_gpus": None, "use_cache": None, "temperature": None},
    ):
        assert torch.equal(tiny_model.generate(PROMPT, **FEW, **options), expected)
    assert len(list(generate_many(tiny_model, PROMPT.tolist(), **FEW, **unset))) == 2
    assert not warnings.records
    for _ in range(2):
        assert torch.equal(tiny_model.generate(PROMPT, use_cache=True, **FEW), expected)
    [record] = warnings.records
    assert "`use_cache=True` has no meaning for masked diffusion and is not used" in record.getMessage()


REFUSED = {
    "min_length": (5, "use `min_new_tokens`"),
    "exponential_decay_length_penalty": ((5, 1.1), "use `max_new_tokens`"),
    "forced_eos_token_id": (3, "an answer ends by itself"),
    "top_h": (0.4, "pass a `logits_processor`"),
    "token_type_ids": (PROMPT, "leave it out"),
    "inputs_embeds": (torch.zeros(1, 3, 8), "pass `input_ids`"),
    "custom_generate": ("transformers-community/dola", "leave it out"),
    "synced_gpus": (True, "let all processes make equally many passes"),
    "guidance_scale": (1.5, "use `cfg_scale`"),
    "length_penalty": (2.0, "leave it out"),
}


@pytest.mark.parametrize(("name", "value", "hint"), [(name, *row) for name, row in REFUSED.items()], ids=REFUSED)
def test_what_is_not_supported_is_named_with_a_way_out(tiny_model, name, value, hint) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is not supported here; .*{hint}"):
        tiny_model.generate(PROMPT, **FEW, **{name: value})


def test_every_argument_of_transformers_generate_is_taken_or_named_with_a_hint_of_its_own() -> None:
    ours = {*inspect.signature(LLaDAModelLM.generate).parameters, "tokenizer", "use_cache"}
    theirs = set(inspect.signature(GenerationMixin.generate).parameters) - {"kwargs"}
    assert theirs - ours <= set(HINTS)


def draw(model: LLaDAModelLM, **options) -> list:
    return model.generate(PROMPT, generator=torch.Generator().manual_seed(0), **options).tolist()


def test_do_sample_alone_draws_at_temperature_1(tiny_model) -> None:
    expected = draw(tiny_model, temperature=1.0, **FEW)
    assert expected != draw(tiny_model, **FEW)
    assert draw(tiny_model, do_sample=True, **FEW) == expected
    assert draw(tiny_model, do_sample=True, temperature=None, **FEW) == expected
    assert draw(tiny_model, generation_config=GenerationConfig(do_sample=True), **FEW) == expected
    assert draw(tiny_model, generation_config=GenerationConfig(do_sample=True, temperature=1.0), **FEW) == expected
    assert draw(tiny_model, generation_config=LLaDAGenerationConfig(do_sample=True), **FEW) == expected


def test_do_sample_keeps_a_temperature_that_is_set(tiny_model) -> None:
    cool = LLaDAGenerationConfig(temperature=0.5, **FEW)
    expected = draw(tiny_model, generation_config=cool)
    assert draw(tiny_model, generation_config=cool, do_sample=True) == expected
    assert draw(tiny_model, generation_config=GenerationConfig(do_sample=True, temperature=0.5), **FEW) == expected


def test_sampling_config_keeps_its_temperature_through_a_file(tmp_path) -> None:
    LLaDAGenerationConfig(do_sample=True).save_pretrained(tmp_path)
    loaded = LLaDAGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.do_sample, loaded.temperature) == (True, 1.0)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_a_soft_prompt_is_refused_rather_than_ignored(tiny_model, kind) -> None:
    peft = pytest.importorskip("peft")
    sizes = {"num_attention_heads": 4, "num_layers": tiny_model.config.n_layers, "token_dim": tiny_model.config.d_model}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, **sizes)
    tuned = peft.get_peft_model(copy.deepcopy(tiny_model), config)
    with pytest.raises(
        ValueError, match=r"`prepare_inputs_for_generation` was replaced .*soft prompt would be ignored"
    ):
        tuned.generate(input_ids=PROMPT, **FEW)
    with pytest.raises(ValueError, match="`model` has a soft prompt of PEFT"):
        generate_many(tuned, PROMPT.tolist(), **FEW)
    # PEFT puts the model's own method back, and the base model is as free as before.
    assert torch.equal(tuned.get_base_model().generate(PROMPT, **FEW), tiny_model.generate(PROMPT, **FEW))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(count)]


@pytest.mark.parametrize("drawn", [{"temperature": 1.0}, {"remasking": "random"}, {"do_sample": True}], ids=str)
def test_several_answers_of_a_prompt_stand_next_to_each_other(tiny_model, drawn) -> None:
    ids, mask = torch.tensor([[5, 6, 7], [3, 9, 10]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    answers = tiny_model.generate(ids, mask, num_return_sequences=3, generator=generators(6), **drawn, **FEW)
    assert torch.equal(answers[:, :3], ids.repeat_interleave(3, 0))
    repeated = tiny_model.generate(
        ids.repeat_interleave(3, 0), mask.repeat_interleave(3, 0), generator=generators(6), **drawn, **FEW
    )
    assert torch.equal(answers, repeated)
    assert not torch.equal(answers[0], answers[1])


def test_several_texts_are_filled_in_next_to_each_other(tiny_model) -> None:
    ids = torch.tensor([[5, MASK, MASK, 8], [MASK, 9, 10, 11]])
    filled = tiny_model.infill(ids, temperature=1.0, num_return_sequences=2, generator=generators(4))
    assert (filled[:, 3] == torch.tensor([8, 8, 11, 11])).all() and (filled != MASK).all()
    with pytest.raises(ValueError, match="`num_return_sequences` must be 1 where nothing is drawn"):
        tiny_model.infill(ids, num_return_sequences=2)


def end_somewhere(model: LLaDAModelLM) -> tuple[dict, list[list[int]]]:
    """Options with end-of-text tokens that end the rows of `PROMPT` at different columns; the answers up to there."""
    full = model.generate(PROMPT, max_new_tokens=32, block_length=8, stop_at_eos=False)[:, 3:].tolist()
    eos = [next(token for token in full[0] if token not in full[1]), full[1][-2]]
    options = {"max_new_tokens": 32, "block_length": 8, "eos_token_id": eos, "pad_token_id": 77}
    ends = [min(row.index(token) for token in eos if token in row) + 1 for row in full]
    return options, [row[:end] for row, end in zip(full, ends)]


def test_the_result_ends_with_the_longest_row(tiny_model) -> None:
    options, answers = end_somewhere(tiny_model)
    longest = max(map(len, answers))
    assert len(answers[0]) != len(answers[1])
    output = tiny_model.generate(PROMPT, return_dict_in_generate=True, output_history=True, **options)
    assert output.sequences[:, 3:].tolist() == [row + [77] * (longest - len(row)) for row in answers]
    assert {canvas.shape for canvas in output.history} == {output.sequences.shape}
    assert torch.equal(output.history[0], torch.nn.functional.pad(PROMPT, (0, longest), value=MASK))
    for index, answer in enumerate(answers):
        assert tiny_model.generate(PROMPT[index : index + 1], **options)[0, 3:].tolist() == answer


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self, takes_logits: bool = False) -> None:
        self._takes_logits, self.put_values, self.drafts = takes_logits, [], []

    def put(self, value: torch.Tensor) -> None:
        self.put_values.append(value.clone())

    def put_draft(self, value: torch.Tensor | None = None, logits: torch.Tensor | None = None) -> None:
        self.drafts.append((value if logits is None else logits).clone())

    def end(self) -> None:
        self.put_values.append(None)


def test_a_row_is_streamed_in_one_dimension_up_to_its_end(tiny_model) -> None:
    options, answers = end_somewhere(tiny_model)
    for index, answer in enumerate(answers):
        streamer = Recorder()
        ids = torch.nn.functional.pad(PROMPT[index : index + 1], (2, 0), value=3)
        tiny_model.generate(ids, torch.tensor([[0, 0, 1, 1, 1]]), streamer=streamer, **options)
        *put, end = streamer.put_values
        assert end is None and all(value.dim() == 1 and len(value) for value in put)
        assert torch.cat(put).tolist() == PROMPT[index].tolist() + answer
        assert torch.equal(put[0], PROMPT[index])


def test_several_rows_are_streamed_as_columns(tiny_model) -> None:
    options, _ = end_somewhere(tiny_model)
    streamer = Recorder()
    output = tiny_model.generate(PROMPT, streamer=streamer, **options)
    assert torch.equal(torch.cat(streamer.put_values[:-1], dim=1)[:, : output.shape[1]], output)


def test_a_streamer_that_takes_logits_gets_those_of_the_draft(tiny_model) -> None:
    tokens, logits = Recorder(), Recorder(takes_logits=True)
    options = {"max_new_tokens": 6, "block_length": 3, "stop_at_eos": False}
    for streamer in (tokens, logits):
        tiny_model.generate(PROMPT, streamer=streamer, **options)
    first = logits.drafts[0]
    assert first.shape == (2, 6, tiny_model.config.embedding_size)
    canvas = torch.nn.functional.pad(PROMPT, (0, 6), value=MASK)
    with torch.no_grad():
        expected = tiny_model(canvas).logits[:, 3:6]
    expected[..., MASK] = -torch.inf
    torch.testing.assert_close(first[:, :3], expected)
    assert (first[:, 3:].argmax(-1) == MASK).all()
    for draft, of_draft in zip(tokens.drafts, logits.drafts):
        is_final = draft != MASK
        assert torch.equal(of_draft.argmax(-1)[is_final], draft[is_final])


def test_a_length_of_prompt_and_answer_takes_the_place_of_a_length_of_answers(tiny_model) -> None:
    grown = tiny_model.generate(PROMPT, max_new_tokens=None, max_length=21, stop_at_eos=False)
    assert grown.shape == (2, 21)
    for config in (GenerationConfig(max_length=21), LLaDAGenerationConfig(max_length=21)):
        assert torch.equal(tiny_model.generate(PROMPT, max_length=21, stop_at_eos=False), grown)
        assert torch.equal(tiny_model.generate(PROMPT, generation_config=config, stop_at_eos=False), grown)
        # An argument of the call comes before the config's other length.
        assert tiny_model.generate(PROMPT, generation_config=config, **FEW).shape == (2, 11)
    both = GenerationConfig(max_length=21, max_new_tokens=4)
    assert tiny_model.generate(PROMPT, generation_config=both, stop_at_eos=False).shape == (2, 7)


def counting_backend() -> tuple[CompileConfig, list[int]]:
    """A backend that runs graphs as they are, and a list with one number per graph that it was given."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    return CompileConfig(backend=count, mode=None), graphs


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_compiled_model_gives_the_same_tokens_and_is_not_compiled_again_per_step(tiny_model, cache) -> None:
    compile_config, graphs = counting_backend()
    options = {"max_new_tokens": 24, "block_length": 8, "stop_at_eos": False, "cache": cache}
    plain = tiny_model.generate(PROMPT, **options)
    compiled = options | {"compile": True, "compile_config": compile_config}
    assert torch.equal(tiny_model.generate(PROMPT, **compiled), plain)
    num_graphs = len(graphs)
    assert 0 < num_graphs <= 6
    assert torch.equal(tiny_model.generate(PROMPT, **compiled), plain)
    assert len(graphs) == num_graphs


def test_a_compiled_call_runs_the_forward_that_a_library_put_in_its_place(tiny_model) -> None:
    compile_config, _ = counting_backend()
    model, passes = copy.deepcopy(tiny_model), []
    options = {"max_new_tokens": 4, "stop_at_eos": False, "compile": True, "compile_config": compile_config}
    expected = model.generate(PROMPT, **options)
    forward = model.forward

    @torch._dynamo.disable
    def counted(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    model.forward = counted
    assert torch.equal(model.generate(PROMPT, **options), expected)
    assert len(passes) == 4
    del model.forward
    assert torch.equal(model.generate(PROMPT, **options), expected)
    assert len(passes) == 4


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(tiny_model) -> None:
    compile_config, _ = counting_backend()
    options = {"max_new_tokens": 4, "stop_at_eos": False}
    compiled = options | {"compile": True, "compile_config": compile_config}
    model = copy.deepcopy(tiny_model)
    expected = model.generate(PROMPT, **compiled)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.model.transformer.ff_out.weight.mul_(-1)
        answer = other.generate(PROMPT, **options)
        assert torch.equal(other.generate(PROMPT, **compiled), answer)
        assert not torch.equal(answer, expected)
    assert torch.equal(model.generate(PROMPT, **compiled), expected)


@pytest.mark.slow
def test_the_compiler_of_torch_gives_the_same_tokens(tiny_model) -> None:
    torch._dynamo.reset()
    model = copy.deepcopy(tiny_model)
    options = {"max_new_tokens": 4, "block_length": 4, "stop_at_eos": False}
    assert torch.equal(model.generate(PROMPT, compile=True, **options), tiny_model.generate(PROMPT, **options))
