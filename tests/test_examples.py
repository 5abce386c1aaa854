"""What the documents and examples say: their code runs, their tables and names are those of the code."""

import ast
import contextlib
import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import jinja2
import jinja2.meta
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from llada_cli.main import app
from llada_core.card import new_card
from llada_core.records import write_record
from modeling_llada.generation_config_llada import OPTIONS
from modeling_llada.modeling_llada import LLaDAModelLM
from tests.helpers import ROOT, run_script
from tests.score_records import make_record

CODE_FOLDERS = (
    "modeling_llada",
    "core",
    "training",
    "conversion",
    "evaluation",
    "serving",
    "cli",
    "checkpoints",
    "experiments",
    "examples",
    "benchmarks",
)
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/architecture.md",
    "docs/generation.md",
    "docs/training.md",
    "docs/post-training.md",
    "docs/conversion.md",
    "docs/decoding.md",
    "docs/evaluation.md",
    "docs/serving.md",
    "examples/llada_tiny/README.md",
)
REFERENCE = ROOT / "tests" / "reference" / "checkpoints" / "mha"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the documents' relative paths work and nothing of ours is written to."""
    for name in ("checkpoints", "recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(*command: str, folder: Path) -> str:
    """Run a command offline, with the environment's commands on the path, and return what it printed."""
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": binaries + os.pathsep + os.environ["PATH"],
        "HF_HUB_OFFLINE": "1",
        # Two versions of transformers must not share copies of remote code.
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_example(name: str, *arguments: str, folder: Path) -> str:
    """Run a script of examples/ in this process, and return what it printed."""
    done = run_script(ROOT / "examples" / name, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(document: str, language: str) -> list[str]:
    """The document's code blocks in a language, without those marked `no-run`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md", "docs/generation.md", "docs/evaluation.md"])
def test_the_python_code_of_a_document_runs_from_top_to_bottom(document, folder) -> None:
    code = blocks(document, "python")
    assert code
    run(sys.executable, "-c", "\n".join(code), folder=folder)


@pytest.mark.slow
def test_the_command_lines_of_the_readme_run(folder) -> None:
    commands = blocks("README.md", "bash")
    assert len(commands) == 1
    assert '"forward_passes"' in run("bash", "-e", "-c", "\n".join(commands), folder=folder)


@pytest.mark.slow
def test_the_command_lines_of_the_quickstart_run(folder) -> None:
    commands = blocks("docs/quickstart.md", "bash")
    assert len(commands) == 3
    output = run("bash", "-e", "-c", "\n".join(commands), folder=folder)
    assert '"forward_passes"' in output
    for name in ("my-sft", "my-text"):
        assert (folder / "runs" / name / "loss_curve.png").exists()


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_command_lines_of_post_training_run(folder) -> None:
    commands = blocks("docs/post-training.md", "bash")
    assert commands
    run("bash", "-e", "-c", "\n".join(commands), folder=folder)
    for name in ("my-dpo", "my-grpo"):
        assert (folder / "runs" / name / "loss_curve.png").exists()


# What keeps a block from a test: time, a machine, the network, an environment of its own, or a test elsewhere.
REASONS = re.compile(
    r"hour|minutes|\d GB|GPU|the Hub|environment of|installs packages|Ctrl-C|the server|a test |run by a"
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_block_that_does_not_run_says_why(document) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for reason in re.findall(r"^```\w+ no-run(.*)$", text, flags=re.MULTILINE):
        assert REASONS.search(reason), f"`no-run{reason}` in {document} gives no reason that a test could not meet"


# Lines of blocks that do not run as they stand: what replaces the names in them, and what makes them short.
TRAINED_ON = {"DIR": str(REFERENCE), "DST": str(REFERENCE), "checkpoints/llada-tiny": str(REFERENCE)}
ONE_STEP = ("--max_steps", "1", "--save_strategy", "no")
LINES = [
    ("docs/training.md", "llada train sft --model checkpoints/llada-tiny", TRAINED_ON, ONE_STEP),
    ("docs/training.md", "llada train pretrain --model checkpoints/llada-tiny", TRAINED_ON, ONE_STEP),
    ("docs/training.md", "llada train sft --model DIR --output_dir runs/mixed", TRAINED_ON, ONE_STEP),
    ("docs/training.md", "llada train sft --model DIR --train_data my.jsonl", TRAINED_ON, ONE_STEP),
    ("docs/training.md", "llada train pretrain --model DST", TRAINED_ON | {"1024": "64"}, ONE_STEP),
    ("docs/conversion.md", "llada convert autoregressive SRC DST", {"SRC": "llama", "DST": "converted"}, ()),
    ("docs/conversion.md", "llada push DIR user/name --license mit --dry-run", {"DIR": "checkpoints/llada-tiny"}, ()),
    ("docs/evaluation.md", "llada evaluate compare base base-prefix-cache", {}, ()),
    ("docs/evaluation.md", "llada evaluate card base LLaDA-8B-Base", {}, ()),
]


@pytest.fixture
def prepared(folder, monkeypatch) -> Path:
    """A folder with the files that the lines name, as small as they can be."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    for name in ("my-examples", "my", "chats", "more"):
        (folder / f"{name}.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 4)
    datasets.Dataset.from_list([{"messages": said}] * 4).to_parquet("pairs.parquet")
    (folder / "my-text.txt").write_text("The cat sleeps on the warm stove.\n")
    (folder / "text.jsonl").write_text('{"text": "The cat sleeps on the warm stove."}\n')
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=512)).save_pretrained("llama")
    PreTrainedTokenizerFast.from_pretrained(REFERENCE).save_pretrained("llama")
    for name, steps in (("base", 256), ("base-prefix-cache", 128)):
        write_record(folder / name, make_record(settings={"options": {"steps": steps}}))
    (folder / "LLaDA-8B-Base").mkdir()
    (folder / "LLaDA-8B-Base" / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    return folder


@pytest.mark.slow
@pytest.mark.newest_only
@pytest.mark.parametrize("document, start, names, further", LINES, ids=[start for _, start, *_ in LINES])
def test_a_line_with_names_to_replace_runs_when_they_are_replaced(document, start, names, further, prepared) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    [line] = re.findall(rf"^{re.escape(start)}.*$", text, flags=re.MULTILINE)[:1]
    words = [names.get(word, word) for word in shlex.split(line, comments=True)]
    result = CliRunner().invoke(app, [*words[1:], *further])
    assert result.exit_code == 0, result.output
    assert "Warning" not in result.output


@pytest.mark.slow
def test_the_causal_mask_of_the_conversion_document_is_one_that_the_model_takes() -> None:
    text = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
    code = text.split("```python no-run: names to replace; a test runs it\n")[1].split("```")[0]
    ids = torch.arange(5)[None]
    run_there = {"torch": torch, "length": 5, "ids": ids, "model": LLaDAModelLM.from_pretrained(REFERENCE).eval()}
    exec(code.replace("model(ids", "logits = model(ids"), run_there)
    changed = run_there["model"](torch.tensor([[0, 1, 2, 9, 9]]), attention_mask=run_there["causal"]).logits
    torch.testing.assert_close(run_there["logits"][:, :3], changed[:, :3])


@pytest.mark.slow
def test_the_generation_example_runs(folder) -> None:
    output = run_example("generate.py", folder=folder)
    for part in ("Greedy", "passes of the model", "Drawn", "Guided", "Infilled", "Streamed"):
        assert part in output


def test_the_animation_of_the_readme_is_made_by_its_script(folder) -> None:
    run_example("animate.py", "canvas.svg", folder=folder)
    made, committed = (
        path.read_text(encoding="utf-8") for path in (folder / "canvas.svg", ROOT / "docs/images/canvas.svg")
    )
    label = re.search('aria-label="(.*?)"', made)
    assert label is not None and label[0] in committed
    assert "The largest planet in the solar system is Jupiter." in label[1]


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_notebook_runs_from_top_to_bottom(folder) -> None:
    nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs would tell of an older model"
    done = nbclient.NotebookClient(
        notebook, timeout=240, startup_timeout=120, resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = "".join(str(output) for cell in done.cells for output in cell.get("outputs", []))
    for part in ("million parameters", "passes)", "is Rome.", "image/svg+xml", "nats"):
        assert part in shown
    assert (folder / "answer.svg").exists()


@pytest.mark.slow
def test_the_picture_of_tensorboard_is_taken(folder) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `track`")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium on the path; `make test-browser` installs it")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "run")) as writer:
        for step in range(3):
            writer.add_scalar("train/loss", 3.0 - step, step)
    run_example("tensorboard_picture.py", "run", "picture.png", folder=folder)
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_pretraining_example_learns_its_sentences(folder) -> None:
    output = run_example("pretrain_from_scratch.py", "--output", "toy", "--steps", "600", folder=folder)
    assert "the frog sings beside the pond" in output
    assert "the owl hunts mice in the dark" in output
    assert (folder / "toy" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_lora_example_learns_its_facts_and_merges_them(folder) -> None:
    output = run_example("finetune_lora.py", "--output", "lora", folder=folder)
    before, adapted, merged = (part.splitlines() for part in re.split(r"\n.*reloaded.*\n", output))
    for fact in ("The ship is called the Silver Heron.", "The cook makes fish soup with onions."):
        assert [any(fact in line for line in part) for part in (before, adapted, merged)] == [False, True, True]
    for name in ("adapter", "merged"):
        assert (folder / "lora" / name / "README.md").exists()


def modules_with_examples() -> list[str]:
    return [path.stem for path in sorted((ROOT / "modeling_llada").glob("*.py")) if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_docstrings_examples_give_what_they_show(name, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(f"modeling_llada.{name}"))
    assert result.attempted > 0 and result.failed == 0


# --- the model card --------------------------------------------------------------------------------------------------


def template() -> str:
    return (ROOT / "model_card.md").read_text(encoding="utf-8")


def described_variables() -> set[str]:
    """The names in the comment at the template's head."""
    head = template().split("-#}")[0]
    return set(re.findall(r"^    (\w+)  ", head, flags=re.MULTILINE))


def test_the_card_template_describes_every_variable_it_uses_and_no_other() -> None:
    assert described_variables() == jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template()))


def test_a_card_with_nothing_optional_has_neither_gaps_nor_empty_parts() -> None:
    card = str(new_card(model_name="m", model_id="me/m", summary="A model.", license="mit", prompt="Once"))
    headings = re.findall("^#+ .*$", card, flags=re.MULTILINE)
    assert headings == ["# m", "## Usage", "## Licence and notices", "## Citation"]
    assert "None" not in card
    assert "\n\n\n" not in card
    assert ModelCard(card).data.to_dict()["license"] == "mit"
    assert card.endswith("```\n")


def test_a_misspelt_variable_of_the_card_raises() -> None:
    with pytest.raises(TypeError, match=r"Unknown variables of the model card: sample; see model_card\.md\."):
        new_card(model_name="m", model_id="me/m", summary="A model.", sample=[])


@pytest.fixture
def finished_run(folder) -> tuple[Path, Path]:
    """The folders of a training run of two steps and of its text."""
    data = folder / "data"
    data.mkdir()
    texts = ["The cat sat on the mat.", "The dog lay on the rug."] * 8
    for name in ("corpus.jsonl", "validation.jsonl"):
        (data / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sizes = {"documents": 1, "characters": 2, "tokens": 3}
    counts = dict.fromkeys(("wordnet", "bible", "chitchat", "quiz", "all"), sizes)
    statistics = {"packages": ["a_package"], "corpus": counts, "validation": counts, "corpus_sha256": "0"}
    (data / "statistics.json").write_text(json.dumps(statistics))
    (data / "NOTICE.md").write_text("# Notices\n")
    sizes = ["--sequence_length", "32", "--max_steps", "2", "--logging_steps", "1"]
    places = ["--model", str(REFERENCE), "--train_data", "data/corpus.jsonl", "--output_dir", "run"]
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, ["train", "pretrain", *places, *sizes])
    assert result.exit_code == 0, result.output
    return folder / "run", data


@pytest.mark.slow
def test_a_finished_run_becomes_a_folder_with_a_card_that_loads_as_the_card_says(finished_run, folder) -> None:
    run_folder, data = (str(path) for path in finished_run)
    places = ["--run", run_folder, "--data", data, "--output", "model"]
    run_example("llada_tiny/write_card.py", *places, folder=folder)
    card = ModelCard((folder / "model" / "README.md").read_text(encoding="utf-8"))
    assert card.data.to_dict()["library_name"] == "transformers"
    for part in ("Usage", "Training data", "Training procedure", "Evaluation", "Samples", "Limits"):
        assert f"\n## {part}\n" in card.text
    for name in re.findall(r"\]\((\S+)\)", card.text):
        assert (folder / "model" / name).exists()
    options = json.loads((folder / "model" / "generation_config.json").read_text())
    assert (options["max_new_tokens"], options["eot_token_id"]) == (64, 491)
    log = [json.loads(line) for line in (folder / "model" / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log][:2] == [1, 2]
    usage = re.findall(r"^```python\n(.*?)^```$", card.text, flags=re.DOTALL | re.MULTILINE)
    assert len(usage) == 2
    run(sys.executable, "-c", "\n".join(usage), folder=folder)


# --- tables, names, links --------------------------------------------------------------------------------------------


def test_the_table_of_options_is_the_one_of_the_code() -> None:
    text = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8").split("## Options")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.+) \|$", text, flags=re.MULTILINE)
    expected = [(name, default, meaning) for name, (default, _, _, meaning) in OPTIONS.items()]
    assert [(name, ast.literal_eval(default), meaning) for name, default, meaning in rows] == expected


def source_files() -> list[Path]:
    return [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]


@pytest.fixture(scope="module")
def defined_names() -> set[str]:
    """Every function and class of the repository, methods also as `Class.method`."""
    names = set()
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_function_and_class_that_a_document_names_exists(document, defined_names) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`([\w.]+)\(\)`", text)) | set(re.findall(r"`(LLaDA\w+)`", text)) - {"LLaDAMoEModelLM"}
    # Names of transformers and of PEFT.
    assert named - defined_names - {"post_init", "LoraConfig"} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_or_links_exists(document) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    near = (ROOT / document).parent
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (near / link).exists(), link
    names = {path.name for path in source_files()}
    for name in set(re.findall(r"`([\w./-]+\.(?:py|yaml|toml))`", text)):
        assert (ROOT / name).exists() or (near / name).exists() or name in names, name


def test_the_readme_is_one_screen_and_shows_the_canvas_and_the_pipelines_first() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert text.index("docs/images/canvas.svg") < text.index('pipeline("fill-mask"') < text.index('pipeline("text-gen')
    assert len(blocks("README.md", "python")[0].replace("\n\n", "\n").splitlines()) <= 6


def test_the_tree_of_the_architecture_holds_every_file_of_the_hub_code_and_every_package() -> None:
    tree = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## What lies where")[1].split("```")[1]
    for path in (ROOT / "modeling_llada").glob("*_llada.py"):
        assert path.name in tree
    for folder in CODE_FOLDERS:
        assert f"{folder}/" in tree
