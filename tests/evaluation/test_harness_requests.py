"""From arguments and requests to options and token ids: every one is used, refused or reported."""

from types import SimpleNamespace

import pytest
import torch

from llada_evaluation.harness import (
    Truncation,
    choose_device,
    cut_before,
    draw_seed,
    repeat_numbers,
    rolling_windows,
    stands_alone,
)
from llada_evaluation.harness_options import HarnessOptions, read_arguments, read_task_options


def request(task: str = "task", doc: int = 0, repeats: int = 1) -> SimpleNamespace:
    return SimpleNamespace(task_name=task, doc_id=doc, repeats=repeats)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_every_part_gets_the_arguments_it_reads():
    options = read_arguments(
        {"pretrained": "folder", "mc_num": 32, "cfg_scale": 0.5, "seed": 7, "gen_length": 64, "steps": 16}
    )
    assert (options.pretrained, options.seed) == ("folder", 7)
    assert (options.likelihood.num_samples, options.likelihood.cfg_scale, options.likelihood.seed) == (32, 0.5, 7)
    assert options.generation == {"max_new_tokens": 64, "steps": 16, "cfg_scale": 0.5}


def test_a_batch_size_may_be_text_as_the_harnesss_command_passes_it():
    assert read_arguments({"batch_size": "16"}).batch_size == 16


def test_without_arguments_everything_is_the_default():
    assert read_arguments({}) == HarnessOptions()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step": 4}, "Unknown argument `step` of the model `llada`; did you mean `steps`?"),
        ({"mc_nun": 4}, "did you mean `mc_num`?"),
        ({"qqqqqq": 4}, "Unknown argument `qqqqqq` of the model `llada`; known ones: pretrained, .*mc_num"),
        ({"freeze_prompt": True}, "Unknown argument `freeze_prompt`"),
        ({"mc_num": 4, "num_samples": 4}, "`num_samples` was given in two spellings, one of them `num_samples`"),
        ({"max_new_tokens": 4, "gen_length": 4}, "`max_new_tokens` was given in two spellings"),
        ({"batch_size": "auto"}, "`batch_size` must be a whole number of at least 1, got 'auto'"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"scoring": "elbo"}, "`scoring` must be one of likelihood, confidence_order, got 'elbo'"),
        ({"greedy_check": "yes"}, "`greedy_check` must be None, True or False, got 'yes'"),
        ({"pretrained": "folder", "tokenizer": object()}, "`tokenizer` must be given with a `pretrained` that is"),
        ({"pretrained": object()}, "`tokenizer` must be given with a `pretrained` that is a model"),
        ({"num_samples": 0}, "`num_samples`"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_arguments(arguments)


def test_the_longest_text_is_the_models_or_less():
    assert HarnessOptions().longest_text(512) == 512
    assert HarnessOptions(max_length=100).longest_text(512) == 100
    for length in (1, 513):
        with pytest.raises(ValueError, match=rf"`max_length` must lie in 2\.\.512, what the model takes, got {length}"):
            HarnessOptions(max_length=length).longest_text(512)


def test_a_gpu_that_is_not_there_is_the_cpu_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda:0") == choose_device(None) == torch.device("cpu")
    (record,) = caplog.records
    assert record.message == "`device` is cuda:0, but no GPU is available; computing on the CPU."


# --- requests ---------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_harness_and_do_not_overlap_in_what_they_score():
    assert rolling_windows([1, 2, 3, 4, 5, 6, 7], prefix_id=0, max_length=4) == [
        ((0,), (1, 2, 3)),
        ((3,), (4, 5, 6)),
        ((4, 5, 6), (7,)),
    ]
    assert rolling_windows([1, 2], prefix_id=0, max_length=4) == [((0,), (1, 2))]
    assert rolling_windows([], prefix_id=0, max_length=4) == []


@pytest.mark.parametrize("length", [1, 5, 6, 7, 23])
@pytest.mark.parametrize("max_length", [2, 3, 6, 30])
def test_windows_cover_every_token_once_and_are_never_too_long(length, max_length):
    windows = rolling_windows(range(1, length + 1), 0, max_length)
    assert [token for _, scored in windows for token in scored] == list(range(1, length + 1))
    for context, scored in windows:
        assert len(context) + len(scored) <= max_length
        assert context[-1] == scored[0] - 1


def test_a_request_stands_alone_if_its_question_has_no_other_one():
    first, second, other, elsewhere = request(doc=0), request(doc=0), request(doc=1), request("b", doc=1)
    assert stands_alone([first, second, other, other, elsewhere]) == [False, False, True, True, True]


def test_repeats_are_numbered_and_those_that_only_fill_up_begin_again():
    twice, once = request(repeats=2), request()
    assert repeat_numbers([twice, once, twice, twice, once]) == [0, 0, 1, 0, 0]


def test_what_is_too_long_loses_its_beginning_and_is_counted():
    lost = Truncation()
    assert [lost.fit(ids, 2) for ids in ([1, 2, 3, 4], [1], [1, 2, 3])] == [(3, 4), (1,), (2, 3)]
    assert lost == Truncation(num_requests=2, num_tokens=3)
    assert lost.fit([1, 2], 0) == ()


@pytest.mark.parametrize(
    "kwargs, named, expected",
    [
        ({}, [], ([], {}, [])),
        ({"until": "\n", "max_gen_toks": 8}, [], (["\n"], {"max_new_tokens": 8}, [])),
        ({"until": None, "max_gen_toks": 8, "max_tokens": 9}, [], ([], {"max_new_tokens": 8}, ["max_tokens"])),
        ({"max_gen_toks": 8, "max_new_tokens": 9}, [], ([], {"max_new_tokens": 8}, ["max_new_tokens"])),
        ({"gen_length": 8, "max_gen_toks": 9}, [], ([], {"max_new_tokens": 8}, ["max_gen_toks"])),
        ({"gen_length": 8}, [], ([], {"max_new_tokens": 8}, [])),
        ({"max_gen_toks": 8, "steps": 4}, ["max_new_tokens"], ([], {"steps": 4}, ["max_gen_toks"])),
        ({"do_sample": False, "temperature": 0.0}, [], ([], {"do_sample": False, "temperature": 0.0}, [])),
        ({"do_sample": True}, [], ([], {"do_sample": True, "temperature": 1.0}, [])),
        ({"do_sample": True}, ["temperature"], ([], {}, ["do_sample"])),
        ({"do_sample": False, "top_p": 0.9}, ["temperature"], ([], {}, ["do_sample", "top_p"])),
        ({"num_beams": 2, "max_length": 7}, [], ([], {}, ["max_length", "num_beams"])),
    ],
)
def test_the_options_of_a_task_are_translated_and_those_that_are_not_used_named(kwargs, named, expected):
    assert read_task_options(kwargs, named) == expected


def test_until_must_be_text():
    with pytest.raises(ValueError, match="`until` must be text or a list of texts, got \\['a', 3\\]"):
        read_task_options({"until": ["a", 3]}, [])


def test_a_text_ends_before_the_first_of_its_ends_wherever_it_stands_in_the_list():
    assert cut_before("one two three", ["three", "two"]) == "one "
    assert cut_before("one", ["four", ""]) == "one"
    assert cut_before("one", []) == "one"


def test_draws_depend_on_seed_prompt_and_repeat():
    seeds = {draw_seed(0, (1, 2), 0), draw_seed(1, (1, 2), 0), draw_seed(0, (1, 3), 0), draw_seed(0, (1, 2), 1)}
    assert len(seeds) == 4
    assert draw_seed(0, (1, 2), 0) == draw_seed(0, [1, 2], 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
