"""Laws of publishing, against a Hub of our own: all of a folder or nothing arrives, nothing else does, and it loads."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llada_cli.main import app
from llada_conversion import CardFacts, convert_official, prepare_upload, push_upload
from modeling_llada import LLaDAModelLM
from tests.helpers import CODE_FILES, REFERENCE, other_python, run_stranger
from tests.hub_server import Blob, Commit, HubServer, Repo

ROOT = Path(__file__).parents[2]
MODEL, ADAPTER = "tester/tiny", "tester/tiny-lora"
MIT = CardFacts(license="mit")
PROMPT = [[480, 389, 163, 172]]
OPTIONS = {"max_new_tokens": 8, "block_length": 4}
PARTS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}

# Runs where our packages cannot be imported; loads by id, runs the cards' examples, prints one JSON object.
STRANGER = """
import json, re, sys
sys.modules["modeling_llada"] = sys.modules["llada_conversion"] = sys.modules["llada_training"] = None
import torch
import transformers
from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
model_id, adapter_id, ids, options = json.loads(sys.argv[1])
ids, result = torch.tensor(ids), {"version": transformers.__version__}
base = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.float32, trust_remote_code=True).eval()
result["model"] = base.generate(ids, **options).tolist()
result["adapter"] = PeftModel.from_pretrained(base, adapter_id).eval().generate(input_ids=ids, **options).tolist()
result["tokenizer"] = AutoTokenizer.from_pretrained(model_id, trust_remote_code=True).mask_token
for name, repo in (("model", model_id), ("adapter", adapter_id)):
    card = open(hf_hub_download(repo, "README.md"), encoding="utf-8").read()
    examples = re.findall("^```python\\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    exec("\\n".join(examples).replace("generate(**prompt)", "generate(**prompt, max_new_tokens=4)"), {})
    result[name + " examples"] = len(examples)
print(json.dumps(result))
"""

# What the libraries' own ways to the Hub send: of a model, a tokenizer, an adapter and a trainer.
PUBLISHER = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from modeling_llada import LLaDAModelLM
from llada_core.tokenization import prepare_tokenizer

source, output = sys.argv[1:]
model = LLaDAModelLM.from_pretrained(source)
tokenizer = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(source))
model.push_to_hub("tester/by-model", private=True)
tokenizer.push_to_hub("tester/by-model")
args = LLaDAPretrainingConfig(
    output_dir=output, hub_model_id="tester/by-trainer", hub_private_repo=True, push_to_hub=True, report_to="none",
    max_steps=1, per_device_train_batch_size=1, use_cpu=True,
)
data = [{"input_ids": torch.tensor([480, 1, 2, 481]), "example_id": 0}]
trainer = LLaDAPretrainingTrainer(model, args, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
lora.push_to_hub("tester/by-adapter", private=True)
"""


def push(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["push", *(str(argument) for argument in arguments)])
    return done.exit_code, " ".join(done.output.split())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_the_whole_folder_and_a_card_arrive_in_one_commit_of_a_private_repository(hub, converted) -> None:
    url = push_upload(prepare_upload(converted, MODEL, MIT))
    repo = hub.repos[MODEL]
    assert repo.private
    assert [commit.message for commit in repo.branches["main"]] == ["initial commit", "Upload LLaDA model"]
    assert url == f"{hub.url}/{MODEL}/commit/{repo.branches['main'][-1].oid}"
    files = hub.files(MODEL)
    assert set(files) >= {*PARTS, *CODE_FILES, "model.safetensors", "README.md"}
    assert {name: content for name, content in files.items() if name != "README.md"} == contents(converted)
    assert repo.branches["main"][-1].files["model.safetensors"].is_lfs
    assert any(re.fullmatch(r"PUT /lfs/\w+/3", request) for request in hub.requests)


def test_shards_arrive_with_their_index(hub, tmp_path) -> None:
    folder = convert_official(REFERENCE / "checkpoints" / "mha_sharded", tmp_path / "tiny")
    push_upload(prepare_upload(folder, MODEL, MIT))
    shards = {f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)}
    assert set(hub.files(MODEL)) >= {*shards, "model.safetensors.index.json"}


def test_an_update_deletes_the_weights_it_replaces_and_nothing_else(hub, own) -> None:
    push_upload(prepare_upload(own, MODEL, MIT))
    hub.repos[MODEL].branches["main"][-1].files["notes.txt"] = hub.repos[MODEL].commit("main").files["README.md"]
    weights = load_file(own / "model.safetensors")
    for number, part in enumerate((list(weights)[:10], list(weights)[10:]), start=1):
        save_file({name: weights[name] for name in part}, own / f"model-0000{number}-of-00002.safetensors")
    places = {name: f"model-0000{1 if i < 10 else 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    (own / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (own / "model.safetensors").unlink()
    push_upload(prepare_upload(own, MODEL, MIT), message="In shards")
    assert "model.safetensors" not in hub.files(MODEL)
    assert set(hub.files(MODEL)) >= {"notes.txt", *places.values(), "model.safetensors.index.json"}
    assert [commit.message for commit in hub.repos[MODEL].branches["main"]][1:] == ["Upload LLaDA model", "In shards"]


def test_a_revision_is_a_branch_and_main_stays(hub, converted) -> None:
    push_upload(prepare_upload(converted, MODEL, MIT), revision="dev")
    assert hub.files(MODEL) == {}
    assert "model.safetensors" in hub.files(MODEL, "dev")
    push_upload(prepare_upload(converted, MODEL, MIT), revision="dev")
    assert len(hub.repos[MODEL].branches["dev"]) == 2


def test_a_new_repository_is_public_only_when_that_is_asked_for(hub, converted) -> None:
    assert push(converted, MODEL, "--license", "mit", "--public")[0] == 0
    assert not hub.repos[MODEL].private


@pytest.mark.parametrize("request_refused", [r"PUT /lfs/\w+/2", "POST /lfs/.*/complete", "POST .*/commit/main"])
def test_an_upload_that_breaks_in_the_middle_commits_nothing_and_can_be_repeated(
    hub, converted, request_refused
) -> None:
    hub.refused = request_refused
    with pytest.raises(OSError, match=rf"token in `HF_TOKEN` may not do this with `{MODEL}`; .*write access"):
        push_upload(prepare_upload(converted, MODEL, MIT))
    assert hub.files(MODEL) == {}
    hub.refused = None
    push_upload(prepare_upload(converted, MODEL, MIT))
    assert set(hub.files(MODEL)) >= {*contents(converted), "README.md"}


def test_an_adapter_arrives_with_the_id_of_its_base_model(hub, adapter) -> None:
    before = (adapter / "adapter_config.json").read_bytes()
    push_upload(prepare_upload(adapter, ADAPTER, CardFacts(license="mit", base_model=MODEL)))
    files = hub.files(ADAPTER)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == MODEL
    assert (adapter / "adapter_config.json").read_bytes() == before
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == (MODEL, "peft")
    assert f'PeftModel.from_pretrained(base, "{ADAPTER}")' in card.text


def test_the_hub_of_these_tests_answers_the_clients_other_questions(hub, converted) -> None:
    api = HfApi()
    assert api.whoami()["name"] == "tester"
    push_upload(prepare_upload(converted, MODEL, MIT))
    assert [commit.title for commit in api.list_repo_commits(MODEL)] == ["Upload LLaDA model", "initial commit"]
    api.delete_repo(MODEL)
    assert not api.repo_exists(MODEL)


# --- who loads it ----------------------------------------------------------------------------------------------------


def convert(hub: HubServer, work: Path, *arguments: str) -> tuple[int, str]:
    """Run `llada convert official` in a fresh process."""
    code = "from llada_cli.main import app; app()"
    done = run_stranger(sys.executable, work, code, "convert", "official", *arguments, **hub.environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("which", ["this environment", pytest.param("the other environment", marks=pytest.mark.slow)])
def test_what_is_published_generates_where_our_package_is_not(which, hub, converted, adapter, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    python = sys.executable if which == "this environment" else other_python()
    push_upload(prepare_upload(converted, MODEL, MIT))
    push_upload(prepare_upload(adapter, ADAPTER, CardFacts(license="mit", base_model=MODEL)))
    done = run_stranger(python, tmp_path, STRANGER, json.dumps([MODEL, ADAPTER, PROMPT, OPTIONS]), **hub.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    model = LLaDAModelLM.from_pretrained(converted, dtype=torch.float32).eval()
    plain = model.generate(torch.tensor(PROMPT), **OPTIONS).tolist()
    tuned = peft.PeftModel.from_pretrained(model, adapter).eval().generate(input_ids=torch.tensor(PROMPT), **OPTIONS)
    assert plain != tuned.tolist()
    assert (result["model"], result["adapter"]) == (plain, tuned.tolist())
    assert (result["model examples"], result["adapter examples"], result["tokenizer"]) == (2, 1, "<|mdm_mask|>")


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_libraries_own_push_to_hub_sends_code_weights_and_options(hub, converted, tmp_path) -> None:
    done = run_stranger(sys.executable, tmp_path, PUBLISHER, str(converted), str(tmp_path / "run"), **hub.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = {*PARTS, *CODE_FILES, "model.safetensors", "README.md"}
    assert set(hub.files("tester/by-model")) >= whole
    assert set(hub.files("tester/by-trainer")) >= whole
    assert set(hub.files("tester/by-adapter")) >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert all(repo.private for repo in hub.repos.values())


def test_a_checkpoint_on_the_hub_is_converted_and_its_download_verified(hub, converted, tmp_path) -> None:
    push_upload(prepare_upload(converted, MODEL, MIT), revision="dev")
    ours = tmp_path / "ours"
    code, output = convert(hub, tmp_path, MODEL, str(ours), "--revision", "dev", "--verify")
    assert (code, f"LLaDA checkpoint: {ours} (verified)" in output) == (0, True), output
    assert (ours / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()
    assert not (ours / "model.safetensors").is_symlink()


def test_another_model_on_the_hub_is_refused_before_its_weights_are_downloaded(hub, tmp_path) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"many bytes"}
    commit = Commit({name: Blob(content, is_lfs=False) for name, content in files.items()}, "")
    hub.repos[MODEL] = Repo(private=False, branches={"main": [commit]})
    code, output = convert(hub, tmp_path, MODEL, str(tmp_path / "ours"))
    assert code == 2 and "`model_type` must be 'llada' or 'illada', got 'llama'" in output
    assert any("config.json" in request for request in hub.requests)
    assert not any("safetensors" in request for request in hub.requests)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_sent_and_the_variable_is_named(hub, converted, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    code, output = push(converted, MODEL, "--license", "mit")
    assert code == 2
    assert "There is no token for the Hub; set `HF_TOKEN` to one with write access, or run `hf auth login`." in output
    assert hub.requests == []


def test_a_refused_token_is_named(hub, converted, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    with pytest.raises(OSError, match=rf"Access to `{MODEL}` was denied; set `HF_TOKEN` to a valid token, or run"):
        push_upload(prepare_upload(converted, MODEL, MIT))


def test_a_hub_that_cannot_be_reached_is_named(hub, converted, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        OSError, match=r"cannot be reached at http://127\.0\.0\.1:9 .*another endpoint in `HF_ENDPOINT`"
    ):
        push_upload(prepare_upload(converted, MODEL, MIT))


def test_another_refusal_is_passed_on_with_its_status(hub, converted) -> None:
    hub.refused, hub.refusal = "POST .*/commit/main", 412
    with pytest.raises(OSError, match=r"refused a request for `tester/tiny` \(status 412\); try again\. The Hub said"):
        push_upload(prepare_upload(converted, MODEL, MIT))


def test_a_repository_that_is_not_there_is_named(hub, tmp_path) -> None:
    with pytest.raises(OSError, match=rf"The Hub has no `{MODEL}`, or no such revision of it; check the spelling and"):
        convert_official(MODEL, tmp_path / "ours")


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "LICENSE"])
@pytest.mark.parametrize("place", ["../outside", "private/notes", "notes.txt", "nowhere", "private"])
def test_a_link_to_what_is_not_uploaded_is_refused(own, tmp_path, name, place) -> None:
    (own / "private").mkdir()
    for path in (tmp_path / "outside", own / "private" / "notes", own / "notes.txt"):
        path.write_text("private")
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to(place)
    words = (
        rf"Links may lead to files of `.*` that are uploaded .* lead elsewhere or to nothing: {name}\. Put the files"
    )
    with pytest.raises(ValueError, match=words):
        prepare_upload(own, MODEL, MIT)


def test_a_link_to_a_file_that_is_uploaded_is_that_file(own, hub) -> None:
    (own / "LICENSE").write_text("Apache")
    (own / "NOTICE").symlink_to("LICENSE")
    push_upload(prepare_upload(own, MODEL, MIT))
    assert hub.files(MODEL)["NOTICE"] == b"Apache"


@pytest.mark.parametrize("name", [".env", "hub.token", "id_rsa", "my_secrets.json", "credentials.json", "server.pem"])
def test_files_with_the_name_of_a_secret_are_refused(own, name) -> None:
    (own / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"these look like secrets: `{re.escape(name)}`\. Move them out"):
        prepare_upload(own, MODEL, MIT)


TOKEN = "hf_" + "aB3" * 12
IN_TEXT = r"these look like secrets: text in `{}` \(Hugging Face Token\)\. Move them out of the folder, and change the"


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "loss_curve.png", "training_log.jsonl", "tokenizer_config.json"]
)
def test_files_with_the_text_of_a_secret_are_refused_whatever_they_are_called(own, name) -> None:
    text = (own / name).read_text() if (own / name).exists() else "# Card\n"
    (own / name).write_text(text.replace("{", f'{{"x": "{TOKEN}", ', 1) if "{" in text else text + TOKEN)
    with pytest.raises(ValueError, match=IN_TEXT.format(re.escape(name))):
        prepare_upload(own, MODEL, MIT)


def test_a_secret_in_the_metadata_of_the_weights_is_found(own) -> None:
    path = own / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "note": TOKEN})
    with pytest.raises(ValueError, match=IN_TEXT.format(r"model\.safetensors")):
        prepare_upload(own, MODEL, MIT)


def test_a_secret_that_only_the_new_card_holds_is_found(own, tmp_path) -> None:
    (tmp_path / "sft.yaml").write_text(f"note: {TOKEN}\n")
    for facts in ({"prompt": f"My token is {TOKEN}"}, {"recipe": tmp_path / "sft.yaml"}):
        with pytest.raises(ValueError, match=IN_TEXT.format(r"README\.md")):
            prepare_upload(own, MODEL, CardFacts(license="mit", **facts))


def test_what_is_no_part_of_a_model_stays_here(own) -> None:
    parts = {*contents(own), "README.md"}
    strays = ("optimizer.pt", "training_args.bin", "trainer_state.json", "notes.txt", "model.safetensors.index.json")
    for name in (*strays, "model-00001-of-00002.safetensors"):
        (own / name).write_text("{}")
    (own / "checkpoint-10").mkdir()
    (own / "checkpoint-10" / "model.safetensors").touch()
    upload = prepare_upload(own, MODEL, MIT)
    assert set(upload.files) == parts
    assert set(upload.left_out) == {*strays, "model-00001-of-00002.safetensors", "checkpoint-10"}


def test_a_folder_that_would_not_load_is_refused(own, tmp_path) -> None:
    for name in ("tokenizer.json", "cache_llada.py"):
        (own / name).unlink()
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json, cache_llada\.py; save the model .*convert official"):
        prepare_upload(own, MODEL, MIT)
    with pytest.raises(
        FileNotFoundError, match="There is no folder `nowhere`; name the folder of a model or an adapter"
    ):
        prepare_upload("nowhere", MODEL, MIT)


@pytest.mark.parametrize("name", ["tiny", "a/..", "../x", "./.", "müller/modell", "a/" + "b" * 300, "a b/c", ""])
def test_a_name_that_the_hub_would_refuse_is_refused_before_anything_is_read(name) -> None:
    code, output = push("nowhere", name, "--license", "mit", "--dry-run")
    assert code == 2
    assert "`repo_id` must be user/name" in output


def test_weights_that_do_not_fit_their_config_are_refused(own) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "mlp_hidden_size": 100}))
    with pytest.raises(ValueError, match=r"ff_out\.weight` has shape \[64, 176\], not \[64, 100\]"):
        prepare_upload(own, MODEL, MIT)


def test_an_adapter_needs_a_base_model_that_others_have(adapter, tmp_path) -> None:
    words = r"must name a base model on the Hub, got '.*tiny', which others cannot load; pass --base-model user/name"
    with pytest.raises(ValueError, match=words):
        prepare_upload(adapter, ADAPTER, MIT)
    own = Path(shutil.copytree(adapter, tmp_path / "lora"))
    (own / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"The adapter `.*` lacks adapter_model\.safetensors; save it again"):
        prepare_upload(own, ADAPTER, MIT)


ADAPTER_CONFIGS = {
    "null": "must hold a JSON object, got NoneType",
    "[]": "must hold a JSON object, got list",
    "{": "is not valid JSON",
    '{"base_model_name_or_path": 5}': "must name a base model on the Hub, got 5",
    "{}": "must name a base model on the Hub, got None",
}


@pytest.mark.parametrize("text, message", ADAPTER_CONFIGS.items(), ids=ADAPTER_CONFIGS.keys())
def test_a_damaged_config_of_an_adapter_is_refused(adapter, tmp_path, text, message) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "lora"))
    (own / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare_upload(own, ADAPTER, MIT)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_file_and_asks_nobody(hub, own, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (own / "optimizer.pt").touch()
    code, output = push(own, MODEL, "--license", "mit", "--dry-run", "--revision", "dev")
    assert code == 0
    assert f"would go to {MODEL} (dev):" in output and "667,064 model.safetensors" in output
    assert all(name in output for name in (*PARTS, *CODE_FILES, "README.md"))
    assert output.endswith("Not uploaded: optimizer.pt")
    assert hub.requests == []


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.record.json", '{"results": {}}', "is not an evaluation record: `name` must be text"),
        ("lm.json", '{"results": {"a": {"acc": NaN}}}', "The result `a: acc` must be a finite number, got nan"),
        ("sft.yaml", "5: a", "The options of the recipe"),
        ("trainer_state.json", '{"log_history": 5}', "`log_history` in"),
        ("README.md", "---\na: [\n---\n", "The metadata at the head of"),
    ],
)
def test_a_dry_run_names_a_file_that_it_cannot_use_on_one_line(own, name, text, message) -> None:
    (own / name).write_text(text)
    flags = {".json": "--results", ".yaml": "--recipe"}
    given = [flags[Path(name).suffix], own / name] if name in ("a.record.json", "lm.json", "sft.yaml") else []
    done = CliRunner().invoke(app, ["push", str(own), MODEL, "--license", "mit", "--dry-run", *map(str, given)])
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and done.output.count("\n") == 1 and message in done.output


def test_the_command_publishes_and_prints_the_address(hub, converted) -> None:
    flags = ["--tag", "a", "--tag", "b", "--language", "en", "--dataset", "me/d", "--base-model", "me/b", "--chat"]
    code, output = push(converted, MODEL, "--license", "mit", "--message", "First", "--prompt", "Hi", *flags)
    assert code == 0, output
    assert f"{hub.url}/{MODEL}/commit/{hub.repos[MODEL].branches['main'][-1].oid}" in output
    data = ModelCard(hub.files(MODEL)["README.md"].decode()).data.to_dict()
    assert (data["tags"][-2:], data["language"], data["datasets"]) == (["a", "b"], ["en"], ["me/d"])
    assert hub.repos[MODEL].branches["main"][-1].message == "First"
