"""Publishes a model or a LoRA adapter on the Hub: everything it needs, in one commit, private unless asked."""

import json
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from llada_core.card import CardFacts, published_card
from llada_core.hub import hub_errors, is_hub_id

from .official import check_tensors, code_files, read_config
from .weights import INDEX_NAME, is_sharded, read_header, stored_tensors, weight_files

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Weights that would be read in place of newer ones if they stayed in the repository, by kind of upload.
_WEIGHTS = {
    "model": ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*"),
    "adapter": ("adapter_model.*",),
}
# The parts of a model or an adapter. Anything else stays here: optimizer states, pickled arguments, logs.
PUBLISHED = (
    "config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja",
    "*_llada.py", "LICENSE*", "NOTICE*", "README.md", "training_log.jsonl", "*.png",
)  # fmt: skip
# Names under which keys and passwords are kept, wherever they lie in the folder.
SECRET_NAMES = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", "*.token", "token", "token.txt", "id_rsa*", "id_ed25519*", "id_ecdsa*",
    ".netrc", ".npmrc", ".pypirc", ".git-credentials", "*credential*", "*secret*", "*password*",
)  # fmt: skip
# A Hub token, a private key, an AWS or an OpenAI key.
_SECRET_TEXT = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{32,}"
)
_BINARY = (".safetensors", ".png")


@dataclass(frozen=True)
class Upload:
    """What is going to be published.

    Attributes:
        repo_id: `user/name`.
        kind: `model` or `adapter`.
        files: name in the repository to a file, or to the bytes themselves.
        left_out: entries of the folder that stay.
    """

    repo_id: str
    kind: str
    files: dict[str, Path | bytes]
    left_out: tuple[str, ...]

    def size(self, name: str) -> int:
        """Bytes of one file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare_upload(folder: str | Path, repo_id: str, facts: CardFacts | None = None) -> Upload:
    """Check a folder and collect what is published of it; nothing is sent.

    Args:
        folder: what `save_pretrained`, a trainer or a conversion wrote: a whole model with code and tokenizer, or a
            LoRA adapter.
        repo_id: `user/name` on the Hub.
        facts: what the card says beside what the files do; see `CardFacts`.

    Raises:
        ValueError: for another `repo_id`, a folder that lacks parts (all are listed), weights that do not fit their
            config, an adapter whose base model is not on the Hub, links out of the folder, and secrets.
        FileNotFoundError: if there is no such folder.
    """
    folder, facts = Path(folder).expanduser(), facts or CardFacts()
    if not is_hub_id(repo_id, with_owner=True):
        raise ValueError(f"`repo_id` must be user/name, got {repo_id!r}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; name the folder of a model or an adapter.")
    files, left_out = _select_files(folder)
    is_adapter = ADAPTER_CONFIG in files
    if is_adapter:
        config = _published_adapter_config(folder, facts.base_model)
        facts = replace(facts, base_model=config["base_model_name_or_path"])
        files[ADAPTER_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
        tensors, weights = read_header(folder / ADAPTER_WEIGHTS), {ADAPTER_WEIGHTS}
    else:
        _check_model_folder(folder, set(files))
        tensors = stored_tensors(folder)
        check_tensors(folder, read_config(folder), tensors)
        weights = {path.name for path in weight_files(folder)} | ({INDEX_NAME} if is_sharded(folder) else set())
    strays = [name for name in files if ".safetensors" in name and name not in weights]
    files = {name: content for name, content in files.items() if name not in strays}
    num_parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    files["README.md"] = published_card(folder, repo_id, facts, num_parameters, is_adapter).encode()
    return Upload(repo_id, "adapter" if is_adapter else "model", dict(sorted(files.items())), (*left_out, *strays))


def push_upload(upload: Upload, private: bool = True, revision: str | None = None, message: str | None = None) -> str:
    """Create the repository if necessary and send everything in one commit: all of it arrives, or none.

    Weight files of an earlier upload that are no longer part of it are deleted in the same commit.

    Args:
        upload: from `prepare_upload`.
        private: visibility of a new repository; one that exists keeps its own.
        revision: branch to commit to, made if it does not exist. None is the default branch.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        OSError: without a token (`HF_TOKEN`), or for what the Hub refuses; see `hub_errors`.
    """
    if get_token() is None:
        raise OSError("There is no token for the Hub; set `HF_TOKEN` to one with write access, or run `hf auth login`.")
    api, repo_id = HfApi(library_name="llada-hf"), upload.repo_id
    with hub_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(repo_id, revision=revision)
            if name not in upload.files and any(fnmatch(name, pattern) for pattern in _WEIGHTS[upload.kind])
        ]
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        text = message or f"Upload LLaDA {upload.kind}"
        return api.create_commit(repo_id, operations, commit_message=text, revision=revision).commit_url


def _check_model_folder(folder: Path, names: set[str]) -> None:
    """Raise if a part is missing without which the published folder would not load and generate."""
    needed = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    missing = [name for name in [*needed, *(path.name for path in code_files())] if name not in names]
    if missing:
        raise ValueError(
            f"`{folder}` lacks {', '.join(missing)}; save the model and its tokenizer into it with this package, or "
            "make a folder of a released checkpoint with `llada convert official`."
        )


def _published_adapter_config(folder: Path, base_model: str | None) -> dict[str, Any]:
    """Read the adapter's config; the base model it names must be one that others can load."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"The adapter `{folder}` lacks {ADAPTER_WEIGHTS}; save it again.")
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = base_model or config.get("base_model_name_or_path")
    if not is_hub_id(base, with_owner=True) or Path(base).exists():
        raise ValueError(
            f"The adapter `{folder}` must name a base model on the Hub, got {base!r}, which others cannot load; pass "
            "--base-model user/name (and publish that one first)."
        )
    return {**config, "base_model_name_or_path": base}


def _select_files(folder: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """Sort the entries of `folder` into files to publish, by name, and names that stay; sub-folders stay.

    Raises:
        ValueError: for links that lead out of the folder or nowhere, and for files whose name or text looks like a
            secret; all are listed.
    """
    home, entries = folder.resolve(), sorted(folder.iterdir())
    chosen = [path for path in entries if any(fnmatch(path.name, pattern) for pattern in PUBLISHED)]
    strays = [path.name for path in chosen if not (path.exists() and home in path.resolve().parents)]
    if strays:
        raise ValueError(
            f"Nothing outside `{folder}` is uploaded, but these are links out of it or to nothing: "
            f"{', '.join(strays)}. Put the files themselves there."
        )
    published: dict[str, Path | bytes] = {path.name: path for path in chosen if path.is_file()}
    secrets = [f"`{path.name}`" for path in entries if any(fnmatch(path.name.lower(), name) for name in SECRET_NAMES)]
    secrets += [f"text in `{path.name}`" for path in chosen if path.is_file() and _holds_secret(path)]
    if secrets:
        raise ValueError(
            f"In `{folder}` these look like secrets: {', '.join(secrets)}. Move them out of the folder, and change "
            "the keys if they were ever uploaded."
        )
    return published, [path.name for path in entries if path.name not in published]


def _holds_secret(path: Path) -> bool:
    return path.suffix not in _BINARY and bool(_SECRET_TEXT.search(path.read_bytes()))
