"""The Hub: which names can be ids, how a checkpoint is fetched, and what its refusals mean for the user."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import HFValidationError, validate_repo_id

# Configs, tokenizer, notices; then with the weights: no code, which is ours, and no card.
DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
CHECKPOINT_FILES = (*DESCRIPTIONS, "*.safetensors")
# What says which model a folder holds: a checkpoint's, an adapter's.
DESCRIBING = ("config.json", "adapter_config.json")
# Longest owner and longest name that the Hub takes.
MAX_NAME = 96
# The libraries through which huggingface_hub talks, by version; their errors share no class.
_CLIENTS = ("httpx", "requests", "urllib3")


def is_hub_id(name: str | None, with_owner: bool = False) -> bool:
    """Whether the Hub would accept `name` as the id of a repository; nothing is sent.

    Args:
        name: `owner/name`, or a bare name such as `gpt2`.
        with_owner: accept `owner/name` only, for places where a bare name is a folder.
    """
    if not isinstance(name, str) or not name.isascii() or (with_owner and "/" not in name):
        return False
    if any(len(part) > MAX_NAME for part in name.split("/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def local_folder(source: str | Path) -> Path | None:
    """Return the folder that `source` names, or None if it can only be a Hub id.

    Raises:
        FileNotFoundError: if there is no such folder and `source` cannot be a Hub id.
        NotADirectoryError: if `source` is a file.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        if folder.suffix == ".gguf":
            raise NotADirectoryError(_gguf(source, f"{folder.parent} DST --gguf-file {folder.name}"))
        raise NotADirectoryError(f"`{source}` is a file; name the folder that holds it.")
    if not is_hub_id(str(source)):
        raise FileNotFoundError(f"There is no folder `{source}`; name a checkpoint folder or a Hub id.")
    return None


def check_model_name(name: str) -> None:
    """Refuse what cannot be a checkpoint by its name and the names of its files; the Hub is not asked.

    Raises:
        OSError: for a folder that does not exist or describes no model, and a file.
    """
    folder = local_folder(name)
    if folder is None or any((folder / file).is_file() for file in DESCRIBING):
        return
    if gguf := sorted(folder.glob("*.gguf")):
        raise FileNotFoundError(_gguf(name, f"{name} DST --gguf-file {gguf[0].name}"))
    if below := sorted(path.parent for file in DESCRIBING for path in folder.glob(f"*/{file}")):
        raise FileNotFoundError(f"The checkpoint `{name}` has no `{DESCRIBING[0]}`; did you mean `{below[0]}`?")
    raise incomplete(name, [DESCRIBING[0]])


def incomplete(name: str, files: list[str]) -> FileNotFoundError:
    """What is raised for a checkpoint that lacks files."""
    listed = ", ".join(f"`{file}`" for file in files)
    return FileNotFoundError(f"The checkpoint `{name}` has no {listed}; download or copy the whole checkpoint.")


def require_token() -> None:
    """Refuse to go on where nothing can be sent to the Hub.

    Raises:
        OSError: if there is no token.
    """
    if get_token() is None:
        raise OSError("There is no token for the Hub; set `HF_TOKEN` to one with write access, or run `hf auth login`.")


def fetch_checkpoint(
    source: str | Path, revision: str | None = None, files: tuple[str, ...] = CHECKPOINT_FILES
) -> Path:
    """Return the folder of a checkpoint: `source` itself, or its copy in the Hub's cache, downloaded if necessary.

    Args:
        source: a folder or a Hub id.
        revision: branch, tag or commit on the Hub; its default branch unless given.
        files: names or patterns of what to download.

    Raises:
        OSError: as `local_folder`, and if the Hub cannot be reached or refuses.
    """
    folder = local_folder(source)
    if folder is not None:
        return folder
    with hub_errors(str(source)):
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(files)))


def _gguf(name: str | Path, arguments: str) -> str:
    return (
        f"`{name}` is a GGUF file, which llama.cpp runs; name the LLaDA folder that it was exported from. A Llama's is "
        f"converted with `llada convert autoregressive {arguments}`."
    )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into an OSError that names the variable or flag to set.

    Raises:
        OSError: for a missing or refused token, a repository or revision that does not exist, and a Hub that cannot
            be reached. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error  # uploads and transformers hide the reason behind an error of their own
        while cause is not None:
            if message := _explain(repo_id, cause):
                raise OSError(message) from error
            cause = cause.__cause__
        raise


def _explain(repo_id: str, error: BaseException) -> str | None:
    """Say what stopped the Hub's client; None if it was something else."""
    # First, since LocalEntryNotFoundError is also an HfHubHTTPError in older versions.
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return _unreachable(repo_id, error)
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        reasons: dict[int | None, str] = {
            401: f"Access to `{repo_id}` was denied; set `HF_TOKEN` to a valid token, or run `hf auth login`.",
            403: f"The token in `HF_TOKEN` may not do this with `{repo_id}`; use one with write access to it, or "
            "accept the terms of a gated repository on its page.",
            404: f"The Hub has no `{repo_id}`, or no such revision of it; check the spelling and `--revision`.",
        }
        reason = reasons.get(status, f"The Hub refused a request for `{repo_id}` (status {status}); try again.")
        return f"{reason} The Hub said: {error}"
    return _unreachable(repo_id, error) if type(error).__module__.startswith(_CLIENTS) else None


def _unreachable(repo_id: str, error: BaseException) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"`{repo_id}` is on the Hub, and `HF_HUB_OFFLINE` forbids network access; unset it."
    return (
        f"The Hub cannot be reached at {constants.ENDPOINT} for `{repo_id}` ({error}); check the network, or name "
        "another endpoint in `HF_ENDPOINT`."
    )
