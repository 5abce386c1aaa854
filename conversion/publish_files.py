"""Decides which files of a folder may be published: the parts of a model or an adapter, and nothing secret."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

# The parts of a model or an adapter. Anything else stays here: optimizer states, pickled arguments, logs.
PUBLISHED = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*_llada.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
    "README.md",
    "training_log.jsonl",
    "*.png",
)
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
class Selection:
    """Files of a folder by name: what is published, and what stays."""

    published: dict[str, Path]
    left_out: tuple[str, ...]


def select_files(folder: Path) -> Selection:
    """Sort the entries of `folder` into what is published and what stays; sub-folders stay.

    Raises:
        ValueError: for links that lead out of the folder or nowhere, and for files whose name or text looks like a
            secret; all are listed.
    """
    home, entries = folder.resolve(), sorted(folder.iterdir())
    chosen = [path for path in entries if any(fnmatch(path.name, pattern) for pattern in PUBLISHED)]
    strays = [path.name for path in chosen if not _lies_in(path, home)]
    if strays:
        raise ValueError(
            f"Nothing outside `{folder}` is uploaded, but these are links out of it or to nothing: "
            f"{', '.join(strays)}. Put the files themselves there."
        )
    published = {path.name: path for path in chosen if path.is_file()}
    secrets = [f"`{path.name}`" for path in entries if any(fnmatch(path.name.lower(), name) for name in SECRET_NAMES)]
    secrets += [f"text in `{name}`" for name, path in published.items() if _holds_secret(path)]
    if secrets:
        raise ValueError(
            f"In `{folder}` these look like secrets: {', '.join(secrets)}. Move them out of the folder, and change "
            "the keys if they were ever uploaded."
        )
    return Selection(published, tuple(path.name for path in entries if path.name not in published))


def _lies_in(path: Path, home: Path) -> bool:
    return path.exists() and home in path.resolve().parents


def _holds_secret(path: Path) -> bool:
    return path.suffix not in _BINARY and bool(_SECRET_TEXT.search(path.read_bytes()))
