"""Laws of the search for secrets: every usual kind is found wherever it stands, and files of models raise no alarm."""

import base64
import json
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from llada_conversion import secret_scan
from llada_conversion.secret_scan import secrets_in
from tests.helpers import REFERENCE

ROOT = Path(__file__).parents[2]
TINY = ROOT / "checkpoints" / "llada-tiny"
RANDOM = "a1B2c3D4e5" * 10  # letters and digits of which the examples are made


def jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "me"})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, RANDOM[:43]])


# Put together here, so that no other scanner takes this file for a leak.
SECRETS = {
    "hub": "hf_" + RANDOM[:34],
    "hub after a letter": "xhf_" + RANDOM[:34],
    "hub after a bar": "my_hf_" + RANDOM[:34],
    "github": "ghp_" + RANDOM[:36],
    "github, fine": "github_pat_" + RANDOM[:22] + "_" + RANDOM[:59],
    "gitlab": "glpat-" + RANDOM[:20],
    "npm": "npm_" + RANDOM[:36],
    "slack": "xoxb-123456789012-1234567890123-" + RANDOM[:24],
    "slack, app": "xapp-1-A0123-" + RANDOM[:24],
    "google": "AIza" + RANDOM[:35],
    "jwt": jwt(),
    "aws id": "AKIA" + "Z2" * 8,
    "aws key": "aws_secret_access_key = " + RANDOM[:30] + "/+" + RANDOM[:8],
    "azure": "AccountKey=" + RANDOM[:86] + "==",
    "wandb": "WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567",
    "json": '"client_secret": "' + RANDOM[:32] + '"',
    "basic": "https://user:pass" + "word@host.example/x",
    "openai": "sk-" + RANDOM[:48],
    "openai, project": "sk-proj-" + RANDOM[:60],
    "pem": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "pem, encrypted": "-----BEGIN ENCRYPTED " + "PRIVATE KEY-----",
    "openssh": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "pgp": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
}
HARMLESS = (
    'client = OpenAI(base_url="http://localhost:8000/v1", api_key="EMPTY")',
    "Set `HF_TOKEN` to a token with write access; `WANDB_API_KEY=...` is read too, or password: yours.",
    "login(token=os.environ['HF_TOKEN']); key = get_secret('name')",
    "sha256: " + "0123456789abcdef" * 4,
    "See https://user.example/a:b and git@github.com:me/repo.git; 3.141.59.265 is no address.",
    '"mask_token": "<|mdm_mask|>", "eos_token_id": 126081, "num_key_value_heads": 32',
    "risk-averse-and-other-long-words-with-many-hyphens-in-them-2024",
    "| key | value |\\n|---|---|\\n" + "-" * 44,
)


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS.keys())
def test_every_usual_kind_of_secret_is_found_wherever_it_stands(text, tmp_path) -> None:
    for before, after in (("", ""), ("# Card\n\nIt is ", " .\n"), ('{"a": "', '", "b": "é"}'), ("x" * 65_500, "")):
        assert secrets_in(f"{before} {text}{after}".encode())
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00" + text.encode())
    assert secrets_in(picture)


@pytest.mark.parametrize("text", HARMLESS)
def test_text_that_only_talks_of_secrets_raises_no_alarm(text) -> None:
    assert secrets_in(text.encode()) == []


def test_files_of_models_and_this_projects_texts_raise_no_alarm() -> None:
    folders = [TINY, *(REFERENCE / "checkpoints").iterdir(), ROOT / "modeling_llada", ROOT / "docs"]
    files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
    files += [ROOT / "README.md", ROOT / "LICENSE", *(ROOT / "recipes").glob("*.yaml")]
    assert len(files) > 50
    assert {str(path): found for path in files if (found := secrets_in(path))} == {}


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "many lines"])
def test_a_large_tokenizer_is_searched_in_time_and_raises_no_alarm(indent) -> None:
    small = json.loads((TINY / "tokenizer.json").read_text())
    words = [f"Ġ{word}{number}" for number in range(14) for word in small["model"]["vocab"]]
    small["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    content = json.dumps(small, ensure_ascii=False, indent=indent).encode()
    assert len(content) > 2_000_000
    started = time.process_time()
    assert secrets_in(content) == []
    assert time.process_time() - started < 10  # half a second where nothing else runs


def test_time_grows_with_the_length_only_whatever_the_text() -> None:
    """Patterns that look far ahead are asked at every `//` of a text without line breaks."""
    started = time.process_time()
    assert secrets_in(b"// AccountKey= aws key eyJ. password = " * 10_000) == []
    assert time.process_time() - started < 10


def test_of_weights_the_header_is_read_and_nothing_else(tmp_path) -> None:
    header = json.dumps({"__metadata__": {"note": SECRETS["hub"]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 100)
    assert secrets_in(path) == ["Hugging Face Token"]
    path.write_bytes((2).to_bytes(8, "little") + b"{}" + header)
    assert secrets_in(path) == []
    shutil.copy(path, tmp_path / "weights.png")
    assert secrets_in(tmp_path / "weights.png") == ["Hugging Face Token"]


def test_nobody_is_asked_whether_a_key_is_valid(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for text in SECRETS.values():
        assert secrets_in(text.encode())


def test_without_the_scanner_nothing_is_published_and_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "detect_secrets.plugins.base", None)
    monkeypatch.setattr(secret_scan, "_detectors", secret_scan._detectors.__wrapped__)
    with pytest.raises(ImportError, match=r"needs detect-secrets; `pip install detect-secrets`"):
        secrets_in(b"text")
