"""LLaDA as a model of the harness: what it answers to requests, and what it says when it cannot."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

import llada_evaluation.harness
from llada_evaluation import LikelihoodOptions, LLaDAHarnessModel, estimate_log_likelihoods, score_in_confidence_order
from modeling_llada import LLaDAConfig, LLaDAModelLM

MHA = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"  # takes 256 tokens
LONG = " ".join(["A text that is longer than the model takes."] * 20)


def make(**arguments: Any) -> LLaDAHarnessModel:
    return LLaDAHarnessModel(**{"pretrained": str(MHA), "device": "cpu", "dtype": "float32", "mc_num": 4, **arguments})


@pytest.fixture(scope="module")
def harness_model() -> LLaDAHarnessModel:
    return make()


@pytest.fixture(scope="module")
def bundled_model() -> LLaDAHarnessModel:
    return LLaDAHarnessModel(device="cpu", dtype="float32", mc_num=4)


def ask(kind: str, *arguments: Any, doc: int = 0, repeats: int = 1, task: str = "task") -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=(task, doc, repeats))


def likelihood_requests(*pairs: tuple[str, str]) -> list[Instance]:
    return [ask("loglikelihood", *pair) for pair in pairs]


def count_passes(model: LLaDAHarnessModel) -> list:
    """A list that grows with every pass of the model."""
    passes: list = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def estimates(model: LLaDAHarnessModel, *pairs: tuple[list[int], list[int]]) -> list[float]:
    return [found.log_likelihood for found in estimate_log_likelihoods(model.model, pairs, model.options.likelihood)]


# --- likelihoods ------------------------------------------------------------------------------------------------------


def test_likelihoods_are_the_estimates_of_the_pairs(harness_model):
    encode = harness_model.tok_encode
    requests = likelihood_requests(("The sky", " is blue"), ("Water", " is wet"), ("The sky", " is"))
    pairs = [(encode("The sky"), encode(" is blue")), (encode("Water"), encode(" is wet"))]
    pairs.append((encode("The sky"), encode(" is")))
    assert [score for score, _ in harness_model.loglikelihood(requests)] == pytest.approx(
        estimates(harness_model, *pairs), abs=1e-4
    )


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(harness_model):
    (moved, _), (plain, _) = harness_model.loglikelihood(likelihood_requests(("The sky  ", "is"), ("The sky", "  is")))
    assert moved == plain


def test_before_an_empty_context_stands_the_beginning_of_text_but_not_twice(harness_model):
    ids, bos = harness_model.tok_encode("The sky"), harness_model.prefix_token_id
    assert bos == 480
    requests = likelihood_requests(("", "The sky"), ("", harness_model.tokenizer.bos_token + "The sky"))
    expected = estimates(harness_model, ([bos], ids))[0]
    assert [score for score, _ in harness_model.loglikelihood(requests)] == pytest.approx([expected] * 2, abs=1e-4)


def test_neither_the_order_of_requests_nor_a_second_time_changes_a_bit_of_any_result(harness_model):
    requests = likelihood_requests(*[("The sky" * (n % 5), " is blue" * (1 + n % 7)) for n in range(20)])
    results = harness_model.loglikelihood(requests)
    assert harness_model.loglikelihood(requests) == results
    assert harness_model.loglikelihood(requests[::-1]) == results[::-1]
    assert make().loglikelihood(requests) == results


def test_another_seed_gives_other_estimates():
    requests = likelihood_requests(("The sky", " is blue"))
    assert make(seed=1).loglikelihood(requests) != make(seed=2).loglikelihood(requests)


def test_confidence_order_scores_are_returned_on_request():
    model = make(scoring="confidence_order")
    pair = (model.tok_encode("The sky"), model.tok_encode(" is blue"))
    ((score, _),) = model.loglikelihood(likelihood_requests(("The sky", " is blue")))
    assert score == score_in_confidence_order(model.model, [pair])[0]


def test_guidance_is_that_of_the_likelihood():
    model = make(cfg_scale=1.5)
    pair = (model.tok_encode("The sky"), model.tok_encode(" is blue"))
    options = LikelihoodOptions(num_samples=4, cfg_scale=1.5)
    ((score, _),) = model.loglikelihood(likelihood_requests(("The sky", " is blue")))
    assert score == estimate_log_likelihoods(model.model, [pair], options)[0].log_likelihood


def test_greedy_decoding_is_compared_where_a_question_has_one_request_or_on_request(bundled_model):
    context = "In the beginning God created the"
    (greedy,) = answer(bundled_model, context, max_gen_toks=1)
    assert greedy.startswith(" ")
    passes = count_passes(bundled_model)
    requests = [ask("loglikelihood", context, text, doc=n) for n, text in enumerate([greedy, " zebra"])]
    assert [is_greedy for _, is_greedy in bundled_model.loglikelihood(requests)] == [True, False]
    num_with_checks = len(passes)
    choices = [ask("loglikelihood", context, text, doc=0) for text in (greedy, " zebra")]
    assert [is_greedy for _, is_greedy in bundled_model.loglikelihood(choices)] == [False, False]
    assert len(passes) - num_with_checks < num_with_checks
    always = LLaDAHarnessModel(bundled_model.model, tokenizer=bundled_model.tokenizer, mc_num=1, greedy_check=True)
    assert [is_greedy for _, is_greedy in always.loglikelihood(choices)] == [True, False]


def test_without_the_greedy_check_a_warning_says_so(caplog):
    make(greedy_check=False).loglikelihood(likelihood_requests(("The sky", " is")))
    assert "`greedy_check` is False" in caplog.text


@pytest.mark.parametrize("context", ["", "The sky"])
def test_an_empty_continuation_is_refused_with_its_question(harness_model, context):
    message = r"`continuation` must have 1 to 256 tokens, got 0 in question 3 of the task `sky` \(''\); correct the"
    with pytest.raises(ValueError, match=message):
        harness_model.loglikelihood([ask("loglikelihood", context, "", doc=3, task="sky")])


def test_a_continuation_longer_than_the_model_is_refused(harness_model):
    with pytest.raises(ValueError, match="`continuation` must have 1 to 256 tokens, got"):
        harness_model.loglikelihood(likelihood_requests(("The sky", LONG)))


def test_a_context_that_is_too_long_loses_its_beginning_which_is_counted_and_reported_once(caplog):
    model = make(max_length=20)
    context, continuation = model.tok_encode(LONG), model.tok_encode(" is blue")
    requests = likelihood_requests((LONG, " is blue"), ("The sky", " is"))
    room = 20 - len(continuation)
    (expected,) = estimates(model, (context[-room:], continuation))
    results = model.loglikelihood([*requests, requests[0]])
    assert results[0][0] == pytest.approx(expected, abs=1e-4)
    assert results[0] == results[2]
    (record,) = caplog.records
    assert "loglikelihood: 1 requests were longer than 20 tokens" in record.message
    assert f"{len(context) - room} tokens in all" in record.message
    assert model.get_model_info()["num_truncated"] == {"loglikelihood": 1}


def test_rolling_likelihoods_add_up_the_windows_and_nothing_of_an_empty_text():
    model = make(max_length=16)
    ids, bos = model.tok_encode("A text of some thirty or so tokens."), 480
    assert 30 < len(ids) <= 45
    expected = estimates(model, ([bos], ids[:15]), (ids[14:15], ids[15:30]), (ids[-16 : 30 - len(ids)], ids[30:]))
    texts = ["A text of some thirty or so tokens.", ""]
    results = model.loglikelihood_rolling([ask("loglikelihood_rolling", text) for text in texts])
    assert results == [pytest.approx(sum(expected), abs=1e-4), 0.0]


def test_confidence_order_has_no_perplexity():
    with pytest.raises(ValueError, match="`loglikelihood_rolling` needs `scoring=likelihood`, got 'confidence_order'"):
        make(scoring="confidence_order").loglikelihood_rolling([ask("loglikelihood_rolling", "The sky")])


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(model: LLaDAHarnessModel, *prompts: str, repeats: int = 1, **options: Any) -> list[str]:
    requests = [ask("generate_until", prompt, options, doc=n, repeats=repeats) for n, prompt in enumerate(prompts)]
    return model.generate_until([request for request in requests for _ in range(repeats)])


def test_answers_are_those_of_generate_whatever_the_batch(bundled_model):
    prompts = ["The lord is my", "A river is a", "In the beginning God created the heaven and the earth. And"]
    tokenizer, expected = bundled_model.tokenizer, []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        row = bundled_model.model.generate(ids, max_new_tokens=12, block_length=4)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(row, skip_special_tokens=True))
    named = LLaDAHarnessModel(bundled_model.model, tokenizer=tokenizer, batch_size=2, block_length=4)
    assert all(expected)
    assert answer(named, *prompts, max_gen_toks=12) == expected
    assert answer(named, *prompts[::-1], max_gen_toks=12) == expected[::-1]


def test_an_answer_ends_before_the_first_string_of_until(bundled_model):
    (whole,) = answer(bundled_model, "The lord is my", max_gen_toks=16)
    words = whole.split()
    assert len(words) > 3
    assert answer(bundled_model, "The lord is my", max_gen_toks=16, until=[words[3], words[1]]) == [
        whole[: min(whole.find(words[1]), whole.find(words[3]))]
    ]


def test_special_tokens_end_an_answer_and_are_no_part_of_it(harness_model):
    config, decode = harness_model.generation_config, harness_model._decode
    encode = harness_model.tok_encode
    assert config.eot_token_id == 491
    assert decode([*encode("blue"), 491, *encode("red")], config, []) == "blue"
    assert decode([*encode("blue"), 481, *encode("red")], config, []) == "blue"
    (start,) = encode("<|start_header_id|>")
    assert decode([*encode("blue"), start, *encode("red")], config, []) == "bluered"
    assert decode([*encode("blue"), start, *encode("red")], config, ["<|start_header_id|>"]) == "blue"
    assert decode(encode("blue. red"), config, ["."]) == "blue"


def test_options_of_the_arguments_come_before_the_tasks_and_a_warning_names_what_is_not_used(caplog):
    model = make(max_new_tokens=4, stop_at_eos=False)
    until, config = model._prepare_request({"until": ["\n"], "max_gen_toks": 64, "temperature": 0.5, "num_beams": 2})
    assert (until, config.max_new_tokens, config.temperature) == (["\n"], 4, 0.5)
    (record,) = caplog.records
    assert record.message.endswith("no such option: max_gen_toks=64, num_beams=2.")


def test_each_task_has_its_own_options(bundled_model):
    requests = [
        ask("generate_until", "The lord is my", {"max_gen_toks": length}, doc=n) for n, length in enumerate([4, 32, 4])
    ]
    short, long, again = bundled_model.generate_until(requests)
    assert short == again
    assert len(long) > len(short)


def test_repeats_of_a_request_draw_anew_and_the_same_seed_draws_the_same(harness_model):
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    drawn = answer(harness_model, "The sky", "Water", repeats=3, **options)
    assert len(set(drawn)) == 6
    assert answer(harness_model, "The sky", "Water", repeats=3, **options) == drawn
    assert answer(harness_model, "Water", "The sky", repeats=3, **options) == drawn[3:] + drawn[:3]
    assert answer(make(seed=1), "The sky", repeats=3, **options) != drawn[:3]


def test_repeats_of_a_greedy_answer_are_computed_once():
    model = make()
    passes = count_passes(model)
    (once,) = answer(model, "The sky", max_gen_toks=4)
    num_passes = len(passes)
    assert answer(model, "The sky", max_gen_toks=4, repeats=3) == [once] * 3
    assert len(passes) == 2 * num_passes


def test_an_empty_prompt_is_the_beginning_of_text(harness_model):
    assert answer(harness_model, "", max_gen_toks=4) == answer(
        harness_model, harness_model.tokenizer.bos_token, max_gen_toks=4
    )


def test_a_prompt_that_is_too_long_loses_its_beginning_which_is_reported(caplog):
    model = make(max_length=16)
    ids = model.tok_encode(LONG)
    assert answer(model, LONG, max_gen_toks=4) == answer(model, model.tokenizer.decode(ids[-12:]), max_gen_toks=4)
    assert "generate_until: 1 requests were longer than 16 tokens" in caplog.text


def test_a_canvas_that_leaves_no_room_for_a_prompt_is_refused(harness_model):
    with pytest.raises(
        ValueError, match="`max_new_tokens` must leave room for a prompt in the model's 256 tokens, got"
    ):
        answer(harness_model, "The sky", max_gen_toks=256)


def test_a_canvas_that_grows_ends_at_the_longest_text():
    model = make(max_length=24, max_new_tokens=None, block_length=4, stop_at_eos=False)
    _, config = model._prepare_request({})
    assert (config.max_new_tokens, config.max_length) == (None, 24)
    assert len(answer(model, "The sky")) == 1


# --- chat, information, loading ---------------------------------------------------------------------------------------


def test_a_conversation_goes_through_the_chat_template_and_gets_one_beginning_of_text(harness_model):
    history = [{"role": "user", "content": "Hi"}]
    text = harness_model.apply_chat_template(history)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert harness_model.tok_encode(text).count(480) == 1
    begun = harness_model.apply_chat_template(
        [*history, {"role": "assistant", "content": "The answer is"}], add_generation_prompt=False
    )
    assert begun == text + "The answer is"
    assert harness_model.chat_template(True) == harness_model.tokenizer.chat_template
    assert "/" not in harness_model.tokenizer_name


def test_the_harness_is_told_every_setting():
    info = make(steps=8, result_cache=None).get_model_info()
    assert info["llada_settings"]["likelihood"]["num_samples"] == 4
    assert info["llada_settings"]["generation"]["steps"] == 8
    assert info["llada_settings"]["max_length"] == 256
    assert info["llada_settings"]["generation_named"] == ["steps"]
    assert info["model_dtype"] == "torch.float32"
    assert len(info["model_digest"]) == 64


def test_other_weights_have_another_digest():
    model = make()
    digest = model.get_model_info()["model_digest"]
    assert make().get_model_info()["model_digest"] == digest
    with torch.no_grad():
        model.model.model.transformer.ln_f.weight.mul_(2)
    assert model.get_model_info()["model_digest"] != digest


def test_a_checkpoint_that_is_no_llada_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"is not a LLaDA checkpoint: its config\.json has `model_type` 'llama'"):
        LLaDAHarnessModel(str(tmp_path), device="cpu")


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    shutil.copytree(MHA, tmp_path / "mha")
    weights = load_file(MHA / "model.safetensors")
    weights.pop("model.transformer.ln_f.weight")
    save_file(weights, tmp_path / "mha" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensor\(s\), such as `model\.transformer\.ln_f\.weight`"):
        make(pretrained=str(tmp_path / "mha"))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="`dtype` must be one of auto, float32, bfloat16, float16, got 'int8'"):
        make(dtype="int8")


def test_the_tokenizer_of_another_model_is_refused(harness_model):
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32, "vocab_size": 512}
    config = LLaDAConfig(**sizes, mask_token_id=7, eos_token_id=481, pad_token_id=481)
    with pytest.raises(ValueError, match="`mask_token_id` must be the same in model and tokenizer, got 7 and 488"):
        LLaDAHarnessModel(LLaDAModelLM(config), tokenizer=harness_model.tokenizer)


# --- being found ------------------------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_adds_the_model_beside_the_harnesss_own_and_loads_nothing_heavy():
    code = """
import sys, llada_evaluation
from lm_eval.api.registry import model_registry
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
print("llada" in model_registry, "hf" in model_registry, sorted(heavy))
"""
    assert run_python(code) == "True True []"


def test_without_the_harness_the_package_works_and_the_model_says_what_is_missing():
    code = """
import sys
sys.modules["lm_eval"] = None
import llada_evaluation
print(llada_evaluation.checkpoint_hash.__name__)
try:
    llada_evaluation.LLaDAHarnessModel
except ImportError as error:
    print(error)
"""
    message = '`LLaDAHarnessModel` needs the package `lm_eval`; install it with: pip install ".[eval]" in the checkout'
    assert run_python(code).splitlines() == ["checkpoint_hash", message]


def test_a_name_that_is_not_there_is_an_attribute_error():
    assert "LLaDAHarnessModel" in dir(llada_evaluation)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        llada_evaluation.nonsense  # noqa: B018


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(llada_evaluation.harness)
    assert result.attempted and not result.failed
