"""Laws of saved folders: they load and generate where this package is not installed, under both transformers."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

import modeling_llada.modeling_llada as modeling
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAGenerationConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP
from tests.helpers import CODE_FILES, REFERENCE, other_python, run_stranger

IDS = [[480, 389, 163, 172, 488, 140, 256]]

# Runs where `import modeling_llada` fails; prints one JSON object.
STRANGER = """
import json, sys
sys.modules["modeling_llada"] = sys.modules["llada_training"] = sys.modules["llada_cli"] = None
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

torch.manual_seed(0)
torch.set_grad_enabled(False)
torch.set_num_threads(int(sys.argv[4]))
folder, ids, again = sys.argv[1], torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
remote = {"trust_remote_code": True}


def facts_of(model):
    return {
        "class": type(model).__name__,
        "logits": [value.hex() for value in model.eval()(ids).logits.flatten().tolist()],
        "answer": model.generate(ids[:, :3], max_new_tokens=8, block_length=4, do_sample=False).tolist(),
        "options": model.generation_config.to_diff_dict(),
    }


result = {"version": transformers.__version__}
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
    model = auto.from_pretrained(folder, dtype=torch.float32, **remote)
    result[auto.__name__] = facts_of(model)
model.save_pretrained(again)
result["saved again"] = facts_of(AutoModel.from_pretrained(again, dtype=torch.float32, **remote))
fresh = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder, **remote), **remote)
result["deviation"] = fresh.get_input_embeddings().weight.std().item()
tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
result["tokens"] = tokenizer("a river is", add_special_tokens=False)["input_ids"]
result["chat"] = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
fill = pipeline("fill-mask", model=folder, **remote)
result["filled"] = [choice["token"] for choice in fill("a river <|mdm_mask|> long", top_k=3)]
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


def facts_found(python: Path | str, folder: Path, work: Path) -> tuple[dict, Path]:
    """What a process without this package finds in `folder`, and the folder that it saved."""
    # The number of threads decides how sums are grouped, hence the last bits.
    arguments = (str(folder), json.dumps(IDS), str(work / "again"), str(torch.get_num_threads()))
    process = run_stranger(python, work, STRANGER, *arguments)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), work / "again"


@pytest.fixture(scope="module")
def stranger(saved, tmp_path_factory) -> tuple[dict, Path]:
    return facts_found(sys.executable, saved, tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def other(saved, tmp_path_factory) -> tuple[dict, Path]:
    return facts_found(other_python(), saved, tmp_path_factory.mktemp("other"))


def options_of(config: LLaDAGenerationConfig) -> dict:
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


@torch.no_grad()
def assert_equals_installed(facts: dict, folder: Path) -> None:
    """The stranger's results are those of the installed class on `folder`, bit for bit."""
    model = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(IDS)
    assert facts["class"] == "LLaDAModelLM"
    assert facts["logits"] == [value.hex() for value in model(ids).logits.flatten().tolist()]
    answer = model.generate(ids[:, :3], max_new_tokens=8, block_length=4, do_sample=False)
    assert facts["answer"] == answer.tolist()
    facts["options"].pop("transformers_version")
    assert facts["options"] == options_of(model.generation_config)


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


def test_the_modelling_file_names_every_file_that_it_needs() -> None:
    folder = Path(modeling.__file__).parent
    named = re.findall(r"^from \.(\w+) import", (folder / "modeling_llada.py").read_text(), re.MULTILINE)
    assert {f"{name}.py" for name in [*named, "modeling_llada"]} == CODE_FILES


def test_a_process_without_this_package_loads_and_generates_by_every_auto_class(stranger, saved) -> None:
    result, _ = stranger
    assert result["version"] == transformers.__version__
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
        assert_equals_installed(result[auto], saved)


def test_what_such_a_process_saves_is_as_whole_as_what_it_loaded(stranger, saved) -> None:
    result, again = stranger
    assert_equals_installed(result["saved again"], saved)
    assert_same_code_and_auto_map(again, saved)


def test_a_model_made_from_remote_code_and_a_config_is_initialised(stranger) -> None:
    # "mitchell": 1/sqrt(64), less the 1.3 % that the cut takes.
    assert stranger[0]["deviation"] == pytest.approx(0.987 / 8, rel=0.02)


@torch.no_grad()
def test_tokenizer_chat_template_and_fill_mask_work_without_this_package(stranger, saved) -> None:
    result, _ = stranger
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    assert result["tokens"] == tokenizer("a river is", add_special_tokens=False)["input_ids"]
    assert result["chat"] == "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    ids = tokenizer("a river <|mdm_mask|> long", return_tensors="pt")["input_ids"]
    logits = LLaDAModelLM.from_pretrained(saved, dtype=torch.float32).eval()(ids).logits
    assert result["filled"] == logits[ids == 488].topk(3).indices[0].tolist()


def test_what_one_transformers_saves_the_other_loads_with_bit_equal_logits(other, saved) -> None:
    result, _ = other
    assert result["version"].split(".")[0] != transformers.__version__.split(".")[0]
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
        assert_equals_installed(result[auto], saved)


def test_what_the_other_transformers_saves_loads_here_with_bit_equal_logits(other, saved) -> None:
    result, again = other
    assert_equals_installed(result["saved again"], again)
    assert_same_code_and_auto_map(again, saved)


def assert_same_code_and_auto_map(folder: Path, origin: Path) -> None:
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (origin / name).read_bytes(), name
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
