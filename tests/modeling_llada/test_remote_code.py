"""Laws of saved folders: they load and generate where this package is not installed, under both transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from modeling_llada import LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP
from modeling_llada.tokenization_llada import prepare_tokenizer, save_tokenizer
from tests.conftest import REFERENCE

ROOT = Path(__file__).parents[2]
IDS = [[480, 389, 163, 172, 488, 140, 256]]
CODE_FILES = {
    "cache_llada.py",
    "canvas_llada.py",
    "configuration_llada.py",
    "diffusion_llada.py",
    "generation_config_llada.py",
    "generation_llada.py",
    "layers_llada.py",
    "modeling_llada.py",
    "plan_llada.py",
    "prompt_llada.py",
    "unmasking_llada.py",
}

# Runs where `import modeling_llada` fails; prints one JSON object.
STRANGER = """
import json, os, sys
sys.modules["modeling_llada"] = sys.modules["llada_training"] = sys.modules["llada_cli"] = None
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

folder, ids, again = sys.argv[1], torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
result = {"version": transformers.__version__}
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(ids).logits
    answer = model.generate(ids[:, :3], max_new_tokens=8, block_length=4, stop_at_eos=False)
    result[auto.__name__] = {"class": type(model).__name__, "answer": answer.tolist()}
result["logits"] = [value.hex() for value in logits.flatten().tolist()]
result["options"] = {name: getattr(model.generation_config, name) for name in ("temperature", "top_k", "steps")}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
result["tokens"] = tokenizer("a river is", add_special_tokens=False)["input_ids"]
result["chat"] = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
fill = pipeline("fill-mask", model=folder, trust_remote_code=True)
result["filled"] = len(fill("a river <|mdm_mask|> long", top_k=3))
model.save_pretrained(again)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the tiny model, its tokenizer and an unusual generation config, saved by this environment."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = LLaDAModelLM.from_pretrained(REFERENCE / "checkpoints" / "mha", dtype=torch.float32).eval()
    model.generation_config = model.generation_config.updated(temperature=1.0, top_k=50, steps=4)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(REFERENCE / "checkpoints" / "mha")
    save_tokenizer(prepare_tokenizer(tokenizer), folder)
    return folder


def run_stranger(python: Path | str, folder: Path, tmp_path: Path) -> dict:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [str(python), "-I", "-c", STRANGER, str(folder), json.dumps(IDS), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def assert_equals_installed(result: dict, folder: Path) -> None:
    """The stranger's results are those of the installed class on the same folder, bit for bit."""
    model = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(IDS)
    with torch.no_grad():
        logits = model(ids).logits.flatten().tolist()
    torch.manual_seed(0)
    assert result["logits"] == [value.hex() for value in logits]
    assert result["options"] == {"temperature": 1.0, "top_k": 50, "steps": 4}
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
        assert result[auto]["class"] == "LLaDAModelLM"
        assert len(result[auto]["answer"][0]) == 11
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert result["tokens"] == tokenizer("a river is", add_special_tokens=False)["input_ids"]
    assert result["chat"].startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>")
    assert result["filled"] == 3


def test_a_folder_holds_weights_configs_and_the_code(saved) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors"}
    code = {name for name in names if name.endswith(".py")}
    assert code == CODE_FILES
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["LLaDAModelLM"]
    options = json.loads((saved / "generation_config.json").read_text())
    assert (options["temperature"], options["top_k"], options["remasking"]) == (1.0, 50, "low_confidence")
    assert json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_process_without_this_package_loads_and_generates_and_saves_again(saved, tmp_path) -> None:
    result = run_stranger(sys.executable, saved, tmp_path)
    assert result["version"] == transformers.__version__
    assert_equals_installed(result, saved)
    again = tmp_path / "again"
    assert {path.name for path in again.glob("*.py")} == {path.name for path in saved.glob("*.py")}
    assert json.loads((again / "config.json").read_text())["auto_map"] == AUTO_MAP
    (tmp_path / "other").mkdir()
    for path in saved.glob("tokenizer*"):
        (again / path.name).write_bytes(path.read_bytes())
    (again / "chat_template.jinja").write_bytes((saved / "chat_template.jinja").read_bytes())
    assert_equals_installed(run_stranger(sys.executable, again, tmp_path / "other"), again)


def other_python() -> Path:
    """The interpreter of the environment with the other transformers."""
    name = ".venv" if transformers.__version__.startswith("4.") else ".venv-optimum"
    python = ROOT / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not there; `make setup setup-optimum` makes both environments")
    return python


def test_what_one_transformers_saves_the_other_loads_with_bit_equal_logits(saved, tmp_path) -> None:
    result = run_stranger(other_python(), saved, tmp_path)
    assert result["version"].split(".")[0] != transformers.__version__.split(".")[0]
    assert_equals_installed(result, saved)


def test_what_the_other_transformers_saves_loads_here_with_bit_equal_logits(saved, tmp_path) -> None:
    result = run_stranger(other_python(), saved, tmp_path)
    model = LLaDAModelLM.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor(IDS)).logits.flatten().tolist()
    assert result["logits"] == [value.hex() for value in logits]
    options = model.generation_config
    assert (options.temperature, options.top_k, options.steps) == (1.0, 50, 4)
