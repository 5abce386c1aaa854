"""Publishes a model or a LoRA adapter on the Hub: everything it needs, in one commit, private unless asked."""

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from llada_core.card import CardFacts, published_card, read_json_object
from llada_core.hub import hub_errors, is_hub_id, require_token

from .official import check_tensors, code_files, read_config
from .secret_scan import SECRET_NAMES, secrets_in
from .weights import INDEX_NAME, is_sharded, read_header, stored_tensors, weight_files

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Weights that would be read in place of newer ones if they stayed in the repository, by kind of upload.
_WEIGHTS = {
    "model": ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*"),
    "adapter": ("adapter_model.*",),
    "space": ("model/model*.safetensors", "model/model.safetensors.index.json"),
}
# The parts of a model or an adapter. Anything else stays here: optimizer states, pickled arguments, logs.
PUBLISHED = (
    "config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja",
    "*_*llada*.py", "LICENSE*", "NOTICE*", "README.md", "training_log.jsonl", "*.png",
)  # fmt: skip


@dataclass(frozen=True)
class Upload:
    """What is going to be published.

    Attributes:
        repo_id: `user/name`.
        kind: `model`, `adapter` or `space`.
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
            config, an adapter whose base model is not on the Hub, links to what is not published, facts that cannot be
            read, and secrets, also in the card that is made.
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
    _refuse_secrets(folder, files)
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
    require_token()
    api, repo_id = HfApi(library_name="llada-hf"), upload.repo_id
    kind: dict[str, Any] = {"repo_type": "space" if upload.kind == "space" else "model"}
    with hub_errors(repo_id):
        sdk = "gradio" if upload.kind == "space" else None
        api.create_repo(repo_id, private=private, exist_ok=True, space_sdk=sdk, **kind)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True, **kind)
        stale = [
            name
            for name in api.list_repo_files(repo_id, revision=revision, **kind)
            if name not in upload.files and any(fnmatch(name, pattern) for pattern in _WEIGHTS[upload.kind])
        ]
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        text = message or f"Upload LLaDA {upload.kind}"
        return api.create_commit(repo_id, operations, commit_message=text, revision=revision, **kind).commit_url


def _check_model_folder(folder: Path, names: set[str]) -> None:
    """Raise if a part is missing without which the published folder would not load and generate."""
    needed = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    missing = [name for name in needed if name not in names]
    missing += [path.name for path in code_files(read_config(folder)) if path.name not in names]
    if missing:
        raise ValueError(
            f"`{folder}` lacks {', '.join(missing)}; save the model and its tokenizer into it with this package, or "
            "make a folder of a released checkpoint with `llada convert official`."
        )


def _published_adapter_config(folder: Path, base_model: str | None) -> dict[str, Any]:
    """Read the adapter's config; the base model it names must be one that others can load."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"The adapter `{folder}` lacks {ADAPTER_WEIGHTS}; save it again.")
    config = read_json_object(folder / ADAPTER_CONFIG)
    base = base_model or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not is_hub_id(base, with_owner=True) or Path(base).exists():
        raise ValueError(
            f"The adapter `{folder}` must name a base model on the Hub, got {base!r}, which others cannot load; pass "
            "--base-model user/name (and publish that one first)."
        )
    return {**config, "base_model_name_or_path": base}


def _select_files(folder: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """Sort the entries of `folder` into files to publish, by name, and names that stay; sub-folders stay.

    Raises:
        ValueError: for links to anything but a published file of the folder, and for files with the name of a secret;
            all are listed.
    """
    home, entries = folder.resolve(), sorted(folder.iterdir())
    chosen = [path for path in entries if _is_published(path.name)]
    strays = [path.name for path in chosen if path.is_symlink() and not _is_published_file(path.resolve(), home)]
    if strays:
        raise ValueError(
            f"Links may lead to files of `{folder}` that are uploaded themselves, but these lead elsewhere or to "
            f"nothing: {', '.join(strays)}. Put the files themselves there."
        )
    secrets = [f"`{path.name}`" for path in entries if any(fnmatch(path.name.lower(), name) for name in SECRET_NAMES)]
    _report_secrets(folder, secrets)
    published: dict[str, Path | bytes] = {path.name: path for path in chosen if path.is_file()}
    return published, [path.name for path in entries if path.name not in published]


def _is_published(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in PUBLISHED)


def _is_published_file(place: Path, home: Path) -> bool:
    return place.is_file() and place.parent == home and _is_published(place.name)


def _refuse_secrets(folder: Path, files: dict[str, Path | bytes]) -> None:
    """Raise if the text of a file seems to hold a secret; the card that was made is among them."""
    found = {name: kinds for name, content in files.items() if (kinds := secrets_in(content))}
    _report_secrets(folder, [f"text in `{name}` ({', '.join(kinds)})" for name, kinds in found.items()])


def _report_secrets(folder: Path, secrets: list[str]) -> None:
    if secrets:
        raise ValueError(
            f"In `{folder}` these look like secrets: {', '.join(secrets)}. Move them out of the folder, and change "
            "the keys if they were ever uploaded."
        )
