"""Brings checkpoints from the Hub, and says in words what went wrong with it and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

# Configs, tokenizer, notices; then with the weights: no code, which is ours, and no card.
DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
CHECKPOINT_FILES = (*DESCRIPTIONS, "*.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# The libraries through which huggingface_hub talks, by version; their errors share no class.
_CLIENTS = ("httpx", "requests", "urllib3")


def fetch_checkpoint(
    source: str | Path, revision: str | None = None, files: tuple[str, ...] = CHECKPOINT_FILES
) -> Path:
    """Return the folder of a checkpoint: `source` itself, or its copy in the Hub's cache, downloaded if need be.

    Args:
        source: a folder or a Hub id.
        revision: branch, tag or commit on the Hub; its default branch unless given.
        files: names or patterns of what to download.

    Raises:
        FileNotFoundError: if there is no such folder and `source` cannot be a Hub id.
        NotADirectoryError: if `source` is a file.
        OSError: if the Hub cannot be reached or refuses.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"`{source}` is a file; name the folder that holds it.")
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"There is no folder `{source}`; name a checkpoint folder or a Hub id.")
    with hub_errors(str(source)):
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(files)))


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into an OSError that names the variable or flag to set.

    Raises:
        OSError: for a missing or refused token, a repository or revision that is not there, and a Hub that cannot be
            reached. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        words = _explain(repo_id, error)
        if words is None:
            raise
        raise OSError(words) from error


def _explain(repo_id: str, error: BaseException | None) -> str | None:
    """Say what stopped the Hub's client; None if it was something else. Uploads hide the reason behind their own."""
    while error is not None:
        # First, since LocalEntryNotFoundError is also the other in older versions.
        if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
            return _unreachable(repo_id, error)
        if isinstance(error, HfHubHTTPError):
            return f"{_reason(repo_id, error)} The Hub said: {error}"
        if type(error).__module__.startswith(_CLIENTS):
            return _unreachable(repo_id, error)
        error = error.__cause__
    return None


def _reason(repo_id: str, error: HfHubHTTPError) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"The Hub does not let you at `{repo_id}` without a valid token; set `HF_TOKEN`, or run `hf auth login`."
    if status == 403:
        return f"The token of `HF_TOKEN` may not do this with `{repo_id}`; make one with write access to it."
    if status == 404:
        return f"The Hub has no `{repo_id}`, or no such revision of it; check the spelling and `--revision`."
    return f"The Hub refused a request for `{repo_id}` (status {status}); try again."


def _unreachable(repo_id: str, error: BaseException) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"`{repo_id}` is on the Hub, which `HF_HUB_OFFLINE` forbids to ask; unset it."
    return (
        f"The Hub cannot be reached at {constants.ENDPOINT} for `{repo_id}` ({error}); check the network, or name "
        "another endpoint in `HF_ENDPOINT`."
    )
