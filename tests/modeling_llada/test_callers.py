"""Laws of what callers of transformers pass as a matter of course: taken, or named; never silently different."""

import copy
import inspect

import numpy
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

import modeling_llada.generation_config_llada as generation_config_llada
import modeling_llada.generation_llada as generation_llada
from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM, generate_many
from modeling_llada.generation_config_llada import HINTS, NEUTRAL

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


SET_LATER = {"stop_strings": ["."], "frequency_penalty": 0.5, "logit_bias": {"5": 1.0}, "repetition_penalty": 1.5}


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
    assert record.getMessage().endswith("not used: frequency_penalty, logit_bias, repetition_penalty, stop_strings.")


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
    "num_return_sequences": (2, "repeat the row of the prompt"),
    "stop_strings": (["."], "cut the decoded answer"),
    "bad_words_ids": ([[4]], "pass a `logits_processor`"),
    "repetition_penalty": (1.2, "pass a `logits_processor`"),
    "token_type_ids": (PROMPT, "leave it out"),
    "inputs_embeds": (torch.zeros(1, 3, 8), "pass `input_ids`"),
    "custom_generate": ("transformers-community/dola", "leave it out"),
    "synced_gpus": (True, "let all processes make equally many passes"),
    "max_time": (1.0, "`MaxTimeCriteria`"),
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


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"])
def test_the_inherited_continuous_batching_says_what_to_use(tiny_model, name) -> None:
    with pytest.raises(NotImplementedError, match=f"`{name}`.* use `generate_many`"):
        getattr(tiny_model, name)(PROMPT.tolist(), generation_config=None)


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
