"""Whole runs of the harness: the same twice, after an interruption, and with two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from llada_evaluation import LLaDAHarnessModel

CHOICES = """
task: two_questions
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/questions.jsonl}
  cache_dir: FOLDER/datasets
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWERS = """
task: two_answers
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/questions.jsonl}
  cache_dir: FOLDER/datasets
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: true, temperature: 1.0}
repeats: 2
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {"question": "In the beginning God created the", "choices": ["heaven and the earth", "computer"], "gold": 0},
    {"question": "A river is a", "choices": ["kind of stone", "body of water", "bird"], "gold": 1},
]
MODEL = {"device": "cpu", "dtype": "float32", "mc_num": 8, "batch_size": 2}


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    """A folder with two tasks over one file of questions."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in [("choices", CHOICES), ("answers", ANSWERS)]:
        (tmp_path / f"{name}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    return tmp_path


def evaluate(tasks: Path, model: Any = "llada", names: tuple[str, ...] = ("two_questions", "two_answers"), **arguments):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"model_args": {**MODEL, **arguments}} if model == "llada" else {}
    return simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def outcome(results: Any) -> dict:
    """Scores, and everything that was answered."""
    answers = {name: [sample["resps"] for sample in samples] for name, samples in results["samples"].items()}
    return json.loads(json.dumps({"scores": results["results"], "answers": answers}))


class Interrupted(Exception):
    pass


def test_a_run_gives_the_same_results_twice_and_records_its_settings(tasks):
    results = evaluate(tasks)
    assert outcome(evaluate(tasks)) == outcome(results)
    assert results["config"]["llada_settings"]["likelihood"]["num_samples"] == 8
    assert results["config"]["model_num_parameters"] == 7720704
    assert results["max_length"] == 512
    answers = outcome(results)["answers"]["two_answers"]
    assert [len(repeats) for (repeats,) in answers] == [2, 2]
    assert all(first != second for ((first, second),) in answers)
    assert all(is_greedy is False for ((_, is_greedy),), *_ in outcome(results)["answers"]["two_questions"])


def test_an_interrupted_run_goes_on_to_the_same_results_and_computes_nothing_twice(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("llada_evaluation.harness.PAIRS_PER_GROUP", 2)
    monkeypatch.setattr("llada_evaluation.harness.BATCHES_PER_GROUP", 1)
    whole, num_passes = run_counted(tasks)
    cache = str(tmp_path / "results")
    with pytest.raises(Interrupted):
        run_counted(tasks, stop_after=num_passes - 2, result_cache=cache)
    with pytest.raises(Interrupted):
        run_counted(tasks, stop_after=2, result_cache=cache)
    resumed, num_left = run_counted(tasks, result_cache=cache)
    assert resumed == whole
    assert 0 < num_left < num_passes / 2
    assert run_counted(tasks, result_cache=cache) == (whole, 0)
    assert run_counted(tasks, result_cache=cache, mc_num=9)[1] > 0


def run_counted(tasks: Path, stop_after: int | None = None, **arguments: Any) -> tuple[dict, int]:
    """Evaluate, count the passes of the model, and break off at one of them."""
    model = LLaDAHarnessModel(**{**MODEL, **arguments})
    passes: list = []

    def count(*_: Any) -> None:
        passes.append(1)
        if len(passes) == stop_after:
            raise Interrupted

    model.model.register_forward_pre_hook(count)
    return outcome(evaluate(tasks, model)), len(passes)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tasks, tmp_path):
    alone = outcome(evaluate(tasks))
    model_args = f"dtype=float32,mc_num=8,result_cache={tmp_path / 'results'}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "llada_evaluation", "--model", "llada", "--batch_size", "2"]
    command += ["--device", "cpu", "--model_args", model_args]
    command += ["--tasks", "two_questions,two_answers", "--include_path", str(tasks), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["config"]["num_processes"] == 2
    assert len(list((tmp_path / "results").iterdir())) == 2
    for name, scores in alone["scores"].items():
        for metric in scores.keys() & {"acc,none", "acc_norm,none", "exact_match,none", "sample_len"}:
            assert results["results"][name][metric] == scores[metric]
    (path,) = (tmp_path / "out").rglob("samples_two_answers*.jsonl")
    samples = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["resps"] for sample in samples] == alone["answers"]["two_answers"]
