"""The flags of `llada`: one vocabulary, checked before anything heavy is imported, as the options' table says."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llada_cli.export import WEIGHTS
from llada_cli.main import COMMANDS, SPELLINGS, app, spelling
from llada_cli.options import ANIMATIONS, BOUNDS, DTYPES, GENERATION_OPTIONS, MODEL_OPTIONS, check_options
from llada_cli.screen import model_title
from llada_conversion import gguf_file
from llada_core import animation, loading
from modeling_llada import LLaDAGenerationConfig, generation_config_llada
from modeling_llada.generation_config_llada import LISTS, OPTIONS

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"


def run(*arguments: str, **environment: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", **environment})


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_option_of_generation_that_has_a_flag_is_one_of_the_generation_config():
    without_flag = {name for name, (_, kind, *_) in OPTIONS.items() if kind == "id" or kind in {*LISTS} - {"texts"}}
    without_flag |= {"do_sample", "return_dict_in_generate", "output_history", "num_return_sequences"}
    assert [row.name for row in GENERATION_OPTIONS] == [*(n for n in OPTIONS if n not in without_flag), "seed"]
    for name, kind, text, rule in GENERATION_OPTIONS[:-1]:
        _, known_kind, known_rule, meaning = OPTIONS[name]
        assert (kind.__name__, known_kind) in [(kind.__name__, kind.__name__), ("list", "texts")]
        assert rule == known_rule and text[1:].partition(". ")[0].rstrip(".") in meaning and len(text) <= 200, name
        if rule in ("None or at least 1", "at least 1"):
            assert text.endswith("At least 1."), name
    assert BOUNDS.keys() == generation_config_llada.BOUNDS.keys()


@pytest.mark.parametrize("row", GENERATION_OPTIONS[:-1], ids=lambda row: row.name)
def test_a_value_is_refused_at_once_if_and_as_the_generation_config_refuses_it(row):
    values = {int: (-1, 0, 1, 2, 2**31), float: (-1.0, 0.0, 0.5, 1.0, 3.0), str: ("none", "random")}.get(row.kind, ())
    for value in values:
        try:
            LLaDAGenerationConfig(**{row.name: value, **({"max_new_tokens": 2**31 - 1} if "min" in row.name else {})})
            expected = ""
        except ValueError as error:
            expected = str(error)
        try:
            check_options({row.name: value}, [row])
            message = ""
        except ValueError as error:
            message = str(error)
        # Of options that need another one, which the checkpoint may set, only the range is checked here.
        if f"`{row.name}` must be" in expected or message:
            assert message == expected.replace("None or ", "")


@pytest.mark.parametrize(
    "given",
    [
        {"threshold": 0.9, "factor": 1.0},
        {"frechet": 0.2, "entropy_bound": 0.1},
        {"max_new_tokens": 8, "max_length": 20},
        {"steps": 8, "max_length": 20},
        {"compile": True, "pack_weights": True},
        {"min_new_tokens": 9, "max_new_tokens": 8},
    ],
    ids=str,
)
def test_options_that_exclude_each_other_are_refused_at_once_as_by_the_generation_config(given):
    with pytest.raises(ValueError):
        LLaDAGenerationConfig(**given)
    with pytest.raises(ValueError, match=r"exclude each other; pass one of them|must be at most `max_new_tokens`"):
        check_options(given, GENERATION_OPTIONS)


def test_the_choices_are_those_of_the_packages():
    assert DTYPES == loading.DTYPES and animation.SUFFIXES == ANIMATIONS and WEIGHTS["gguf"] == gguf_file.WEIGHTS


# --- before anything is imported --------------------------------------------------------------------------------------

NOWHERE = "./nowhere"
# What is wrong at first sight, and how the message reads.
EARLY = {
    "generate a --temperature -1": "`temperature` must be 0, or from 1e-6 to 1e6, got -1.0.",
    "generate a --remasking lowconf": "`remasking` must be one of low_confidence, margin, entropy, random, got",
    "generate a --dtype float99": "`dtype` must be one of auto, float32, bfloat16, float16, got 'float99'.",
    "generate a --threshold 0.5 --factor 1": "`threshold` and `factor` exclude each other; pass one of them.",
    "generate a --model ./nowhere": "There is no folder `./nowhere`",
    "generate a --chat --infill": "`--chat` and `--infill` exclude each other",
    "generate a --system kind": "`--system` opens a chat; pass `--chat` too.",
    "generate a --infill -n 4": "`--max-new-tokens` has no effect",
    "generate": "There is no prompt",
    "generate a --animate a.png": "`--animate` must name a file that ends in .svg or .gif",
    "generate --input nowhere --output a": "There is no file `nowhere`; `--input` takes a file of prompts.",
    "generate --force": "`--input`, `--output` and `--force` belong together",
    "chat --steps 0": "`steps` must be at least 1, got 0.",
    "chat --animate a.png": "`--animate` must name a file",
    "serve ./nowhere": "There is no folder `./nowhere`",
    "serve --log-level loud": "`--log-level` must be critical, error",
    "demo ./nowhere": "There is no folder `./nowhere`",
    "evaluate --suite nosuch": "`--suite` must be one of offline, paper-base",
    "evaluate --limit 3": "`--suite` (offline, paper-base, paper-base-guidance, paper-instruct) or `--tasks` must say",
    "push ./nowhere a/b": "There is no folder `nowhere`",
    "push tests a": "`repo_id` must be user/name, got 'a'.",
    "push tests a/b": "There is no token for the Hub; set `HF_TOKEN`",
    "convert official ./nowhere a": "There is no folder `./nowhere`",
    "convert official tests a --layout x": "`layout` must be one of official, llama, got 'x'.",
    "convert autoregressive tests a --dtype x": "`dtype` must be one of auto",
    "export onnx tests a --weights int4": "`weights` must be one of float32, int8, got 'int4'.",
    "export gguf ./nowhere a": "There is no folder `./nowhere`",
}
IN_ONE_PROCESS = """
import json, sys
from typer.testing import CliRunner
from llada_cli.main import app
told = {}
for line in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
    heavy = sorted({"torch", "transformers", "lm_eval", "modeling_llada", "datasets"} & set(sys.modules))
    told[line] = [result.exit_code, result.stderr, heavy]
print(json.dumps(told))
"""


def test_what_is_wrong_at_first_sight_is_told_before_anything_heavy_is_imported(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path), "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps([*EARLY])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    for line, (code, stderr, heavy) in json.loads(done.stdout).items():
        assert (code, heavy) == (2, []), (line, stderr)
        assert stderr.startswith("Error: ") and EARLY[line] in stderr, line


def test_a_gguf_file_or_its_folder_is_told_from_a_checkpoint(tmp_path):
    (tmp_path / "model.gguf").touch()
    for name in (tmp_path, tmp_path / "model.gguf"):
        result = run("generate", "a", "--model", str(name))
        assert result.exit_code == 2
        assert f"`{name}` is a GGUF file, which llama.cpp runs" in result.stderr
        assert f"`llada convert autoregressive {tmp_path} DST --gguf-file model.gguf`" in result.stderr


def test_a_folder_above_a_checkpoint_names_it(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    result = run("chat", "--model", str(tmp_path))
    assert f"has no `config.json`; did you mean `{tmp_path / 'adapter'}`?" in result.stderr


# --- one vocabulary ---------------------------------------------------------------------------------------------------


def test_underscores_and_other_spellings_are_taken_everywhere():
    for flags in (["--block_length", "0"], ["--block-length", "0"]):
        assert "`block_length` must be at least 1, got 0." in run("generate", "a", *flags).stderr
    assert "`max_new_tokens` must be at least 1" in run("chat", "--gen_length", "0").stderr
    assert "belong together" in run("generate", "--overwrite").stderr
    assert isinstance(run("generate", "a", "--steps", "0", "--traceback").exception, ValueError)
    assert "There is no folder" in run("generate", "a", "--model_name_or_path", NOWHERE).stderr
    for command in COMMANDS:
        shown = run(command, "--help").stdout if command != "train" else ""
        assert not any(f"--{other} " in shown for other in SPELLINGS)
    assert spelling("max_new_tokens") == "max-new-tokens"


def test_help_shows_the_commands_in_the_order_of_the_task_with_examples():
    shown = run("--help").stdout
    places = [shown.index(f"│ {command} ") for command in COMMANDS]
    assert places == sorted(places)
    for line in ("llada chat --model runs/my-sft", "llada push runs/my-sft user/name --dry-run"):
        assert line in shown


def test_a_model_is_named_by_its_folder_or_its_id():
    assert model_title(None) == "the bundled model"
    assert model_title(str(FOLDER)) == "mha"
    assert model_title("GSAI-ML/LLaDA-8B-Base") == "GSAI-ML/LLaDA-8B-Base"
    assert {row.name for row in MODEL_OPTIONS} == {"model", "device", "dtype", "revision", "trust_remote_code"}


# --- lengths ----------------------------------------------------------------------------------------------------------

MODEL = ["--model", str(FOLDER), "--device", "cpu"]


def test_what_is_longer_than_the_model_reads_is_refused_unless_it_is_forced(tmp_path):
    result = run("generate", "hello", *MODEL, "-n", "252")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "The prompt and its answer would have 257 tokens, but the model reads 256" in result.stderr
    assert "pass a smaller `--max-new-tokens`, or pass `--force-length`" in result.stderr
    result = run("generate", "hello", *MODEL, "--max-length", "257")
    assert "would have 257 tokens" in result.stderr
    result = run("generate", "<|mdm_mask|>" * 257, "--infill", *MODEL)
    assert "would have 257 tokens, but the model reads 256" in result.stderr and "shorten it" in result.stderr
    (tmp_path / "p.txt").write_text("hello\n")
    files = ["--input", str(tmp_path / "p.txt"), "--output", str(tmp_path / "a.jsonl")]
    assert "p.txt:1 and its answer would have 257 tokens" in run("generate", *files, *MODEL, "-n", "252").stderr
    forced = run("generate", "hello", *MODEL, "-n", "252", "--force-length", "--steps", "8")
    assert forced.exit_code == 0 and forced.stdout


def test_the_instruction_of_generate_is_that_of_chat():
    first = run("generate", "hello", "--chat", "--system", "Be kind.", *MODEL, "-n", "8")
    second = CliRunner().invoke(app, ["chat", "--system", "Be kind.", *MODEL, "-n", "8"], input="hello\n")
    assert first.exit_code == 0 and first.stdout == second.stdout != ""


def test_an_adapter_folder_answers(tmp_path):
    peft = pytest.importorskip("peft")
    from modeling_llada import LLaDAModelLM

    model = LLaDAModelLM.from_pretrained(FOLDER)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "adapter"
    )
    flags = ["--model", str(tmp_path / "adapter"), "--device", "cpu", "-n", "4"]
    answer, plain = run("generate", "hello", *flags), run("generate", "hello", *MODEL, "-n", "4")
    assert answer.exit_code == 0 and answer.stdout == plain.stdout  # a fresh adapter changes nothing
    assert CliRunner().invoke(app, ["chat", *flags], input="hello\n").exit_code == 0


def test_nothing_is_drawn_beside_a_pipe():
    console = Console(file=io.StringIO(), force_terminal=False)
    assert not console.is_terminal
    assert run("generate", "hello", *MODEL, "-n", "2").stderr == ""
