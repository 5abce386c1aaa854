"""Suites: what they hold of the paper's tables, and how a wrong one is refused."""

import re

import pytest
import yaml
from lm_eval.tasks import TaskManager

from llada_evaluation.suite import (
    TASKS,
    Benchmark,
    Suite,
    check_tasks,
    choose,
    leaf_configs,
    read_suite,
    suite_names,
)

ROW = {"task": "piqa", "shots": 0, "method": "likelihood", "metric": "acc,none"}


def write_suite(folder, **fields):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"description": "Mine.", "benchmarks": {"PIQA": ROW}} | fields), encoding="utf-8")
    return path


def published(name: str) -> dict[str, float | None]:
    return {row.name: row.published for row in read_suite(name).benchmarks}


def test_the_suites_that_come_with_the_package():
    assert suite_names() == ["offline", "paper-base", "paper-base-guidance", "paper-instruct"]


def test_paper_base_holds_table_1_of_the_paper():
    # arXiv:2502.09992, Table 1, column LLaDA 8B.
    assert published("paper-base") == {
        "MMLU": 65.9, "BBH": 49.7, "ARC-C": 45.9, "HellaSwag": 70.5, "TruthfulQA": 46.1, "WinoGrande": 74.8,
        "PIQA": 73.6, "GSM8K": 70.3, "Math": 31.4, "GPQA": 25.2, "HumanEval": 35.4, "MBPP": 40.0, "CMMLU": 69.9,
        "C-Eval": 70.5,
    }  # fmt: skip


def test_paper_instruct_holds_table_2_and_the_blocks():
    # arXiv:2502.09992, Table 2, column LLaDA 8B; in blocks as the authors report beside it.
    assert published("paper-instruct") == {
        "MMLU": 65.5, "MMLU-Pro": 37.0, "HellaSwag": 74.6, "ARC-C": 88.5, "GSM8K": 69.4, "GSM8K in blocks": 78.6,
        "Math": 31.9, "Math in blocks": 42.2, "GPQA": 33.3, "HumanEval": 49.4, "MBPP": 41.0,
    }  # fmt: skip


def test_paper_base_draws_one_sample_where_the_answer_is_a_letter_and_128_elsewhere():
    samples = {
        row.name: row.options["mc_num"] for row in read_suite("paper-base").benchmarks if "mc_num" in row.options
    }
    assert {name for name, number in samples.items() if number == 1} == {"MMLU", "CMMLU", "C-Eval"}
    assert {number for name, number in samples.items() if name not in ("MMLU", "CMMLU", "C-Eval")} == {128}


@pytest.mark.parametrize("name", ["paper-base", "paper-instruct"])
def test_what_is_generated_takes_as_many_steps_as_tokens(name):
    for row in read_suite(name).benchmarks:
        assert row.options.get("steps") == row.options.get("max_new_tokens"), row.name
        assert (row.method == "generation") == ("steps" in row.options), row.name


def test_paper_instruct_has_the_end_of_text_options_of_the_paper():
    # App. B.4: the logit of the end of text for HumanEval, its confidence for GSM8K, Math, GPQA and MBPP.
    rows = read_suite("paper-instruct").benchmarks
    assert [row.name for row in rows if row.options.get("logits_eos_inf")] == ["HumanEval"]
    assert [row.name for row in rows if row.options.get("confidence_eos_eot_inf")] == ["GSM8K", "Math", "GPQA", "MBPP"]


def test_the_tolerance_is_two_binomial_standard_errors_and_the_allowance():
    benchmark = Benchmark("X", task="x", metric="acc,none", num_questions=400, published=50.0)
    suite = Suite("s", "S.", (benchmark,), source="a paper", allowance=1.5)
    # sqrt(0.5 * 0.5 / 400) = 0.025; over the first 100 questions it is 0.05.
    score = suite.published_score(benchmark, 400)
    assert (score.metric, score.value, score.source) == ("acc,none", 0.5, "a paper")
    assert score.tolerance == pytest.approx(2 * 0.025 + 0.015)
    assert suite.published_score(benchmark, 100).tolerance == pytest.approx(2 * 0.05 + 0.015)


def test_nothing_is_compared_where_nothing_was_published():
    suite = read_suite("offline")
    assert [suite.published_score(row, 10) for row in suite.benchmarks] == [None] * 5


@pytest.mark.slow
def test_every_task_and_metric_of_the_suites_is_one_of_the_harness():
    manager = TaskManager(include_path=str(TASKS))
    for name in suite_names():
        suite = read_suite(name)
        check_tasks(suite, manager.all_tasks)
        for row in suite.benchmarks:
            assert row.metric in metrics_of(manager, row.task), (name, row.name)


def metrics_of(manager: TaskManager, task: str) -> set[str]:
    """Names that a task, or a group's first one, gives its metrics: name and filter, joined by a comma."""
    config = next(leaf_configs(manager, task))
    filters = [row["name"] for row in config.get("filter_list") or [{"name": "none"}]]
    names = []
    for row in config["metric_list"]:
        function = row["metric"].rsplit(".", 1)[-1]
        names += [f"pass@{k}" for k in row["k"]] if function == "pass_at_k" else [function]
    return {f"{name},{chosen}" for name in names for chosen in filters}


def test_a_suite_of_ones_own_is_read_from_its_file(tmp_path):
    suite = read_suite(write_suite(tmp_path, chat=True))
    assert (suite.name, suite.chat, suite.benchmarks[0].name, suite.benchmarks[0].task) == (
        "mine",
        True,
        "PIQA",
        "piqa",
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"descripton": "x"}, "`descripton` in mine.yaml is unknown; .* Did you mean `description`?"),
        ({"benchmarks": {"PIQA": ROW | {"shot": 5}}}, "`shot` in mine.yaml: PIQA is unknown; .*`shots`?"),
        ({"benchmarks": {"PIQA": {"shots": 5}}}, "`task` is missing in mine.yaml: PIQA; add it."),
        ({"benchmarks": {"PIQA": "piqa"}}, "`benchmarks` of the suite `.*mine.yaml` must map each benchmark's name"),
        ({"benchmarks": {}}, "must map each benchmark's name to its settings, got {}"),
        ({"benchmarks": {"PIQA": ROW | {"method": "guess"}}}, "`method` of PIQA must be one of .*, got 'guess'"),
        ({"benchmarks": {"PIQA": ROW | {"published": 50}}}, "`published` of PIQA must be in per cent, with `metric`"),
        (
            {"benchmarks": {"PIQA": ROW | {"published": 123, "num_questions": 9}}},
            "`published` of PIQA must be in per cent, .* got 123, acc,none and 9",
        ),
    ],
)
def test_a_wrong_suite_is_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        read_suite(write_suite(tmp_path, **fields))


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.yaml` is not YAML"):
        read_suite(tmp_path / "broken.yaml")


def test_an_unknown_suite_lists_the_known_ones():
    message = "`--suite` must be one of offline, paper-base, paper-base-guidance, paper-instruct, .* got 'papers'"
    with pytest.raises(ValueError, match=message):
        read_suite("papers")


def test_a_task_that_the_harness_lacks_is_named_with_the_nearest_ones():
    suite = Suite("mine", "Mine.", (Benchmark("PIQA", task="piqua"),))
    message = re.escape("The harness has no task piqua (near: piqa), which `mine` asks for")
    with pytest.raises(ValueError, match=message):
        check_tasks(suite, ["piqa", "gsm8k"])


def test_benchmarks_of_a_suite_are_chosen_by_name_or_task():
    assert [row.name for row in choose("paper-base", ["gsm8k", "MMLU"]).benchmarks] == ["MMLU", "GSM8K"]
    assert [row.name for row in choose("paper-instruct", ["gsm8k_cot"]).benchmarks] == ["GSM8K", "GSM8K in blocks"]


def test_tasks_without_a_suite_run_as_the_harness_has_them():
    assert choose(None, ["lambada_openai"]).benchmarks == (Benchmark("lambada_openai", task="lambada_openai"),)


@pytest.mark.parametrize(
    "suite, names, message",
    [
        (None, [], r"`--suite` \(.*\) or `--tasks` must say what to run, got neither"),
        ("offline", ["GSM8K"], r"`--tasks` must name benchmarks of offline \(MMLU, .*\), got 'GSM8K'"),
    ],
)
def test_a_choice_of_nothing_is_refused(suite, names, message):
    with pytest.raises(ValueError, match=message):
        choose(suite, names)
