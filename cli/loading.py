"""Loads a LLaDA checkpoint, from a folder or the Hub, and says plainly what is wrong with one that does not load."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from llada_conversion import EXPORTED_FILES, find_exported, load_exported
from llada_core.tokenization import EOT_TOKEN, MASK_TOKEN, missing_tokens, prepare_tokenizer
from modeling_llada import LLaDAConfig, LLaDAGenerationConfig, LLaDAModelLM

DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to generate, its tokenizer, and the options its files set."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: Any  # a LLaDAGenerationConfig, whose fields are made at run time

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: end of text and end of turn."""
        ids = [self.tokenizer.eos_token_id, self.options.eot_token_id, *self.options.eos_token_ids]
        return frozenset(i for i in ids if i is not None)


def load_checkpoint(
    model: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    revision: str = "main",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load model and tokenizer.

    The installed classes are used for every checkpoint whose `model_type` is `llada`, official ones included; code
    that lies beside the weights runs only with `trust_remote_code`.

    Args:
        model: folder or Hub id; the folder may hold an exported model. None is the bundled model.
        device: a torch device. None is CUDA, else MPS, else the CPU. An exported model takes the CPU.
        dtype: one of `DTYPES`; `auto` is the checkpoint's. For an exported model see `load_exported`.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: load the class that the checkpoint brings.

    Raises:
        ValueError: for a checkpoint that is not LLaDA, is incomplete or corrupt, or whose tokenizer does not fit it,
            and for an unknown device or dtype.
        OSError: for a folder or a Hub id that does not exist or cannot be reached.
    """
    name = os.path.expanduser(model) if model is not None else _bundled_model()
    torch_dtype, torch_device = _parse_dtype(dtype), _parse_device(device)
    _check_location(name)
    config = _read_config(name, revision)
    if config.get("model_type") != LLaDAConfig.model_type:
        raise ValueError(
            f"`{name}` is not a LLaDA checkpoint: its config.json has `model_type` {config.get('model_type')!r} "
            f"where {LLaDAConfig.model_type!r} is expected; name another with --model."
        )
    tokenizer = _load_tokenizer(name, revision)
    logging.disable_progress_bar()
    if _is_exported(name):
        loaded = _load_exported(name, device, dtype, trust_remote_code)
    else:
        loaded = _load_model(name, revision, torch_dtype, trust_remote_code).to(torch_device).eval()
    _check_fit(name, tokenizer, loaded.config)
    options: Any = LLaDAGenerationConfig.from_generation_config(loaded.generation_config)
    if options.eot_token_id is None and not missing_tokens(tokenizer, [EOT_TOKEN]):
        options = options.updated(eot_token_id=tokenizer.convert_tokens_to_ids(EOT_TOKEN))
    return Checkpoint(loaded, tokenizer, options)


def _bundled_model() -> str:
    """Return the folder of the model that comes with the package."""
    from llada_checkpoints import BUNDLED_MODEL

    if not Path(BUNDLED_MODEL).is_dir():
        raise FileNotFoundError(f"The bundled model is not at `{BUNDLED_MODEL}`; name a checkpoint with --model.")
    return str(BUNDLED_MODEL)


def _parse_dtype(name: str) -> Any:
    if name not in DTYPES:
        raise ValueError(f"`--dtype` must be one of {', '.join(DTYPES)}, got {name!r}.")
    return name if name == "auto" else getattr(torch, name)


def _parse_device(name: str | None) -> torch.device:
    """Return the device `name`, or the best one at hand; it must be there."""
    if name is None:
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`--device` {name!r} cannot be used here ({reason}); pass e.g. --device cpu.") from None
    return device


def _check_location(name: str) -> None:
    """Raise if `name` is no complete checkpoint folder and cannot be a Hub id either."""
    folder = Path(name)
    if not folder.exists():
        if _HUB_ID.fullmatch(name):
            return
        raise FileNotFoundError(f"There is no folder `{name}`; `--model` takes a checkpoint folder or a Hub id.")
    if not folder.is_dir():
        raise NotADirectoryError(f"`{name}` is a file; `--model` takes the folder that holds it.")
    wanted = [("config.json",), WEIGHT_FILES + EXPORTED_FILES, ("tokenizer.json",)]
    missing = [names[0] for names in wanted if not any((folder / file).is_file() for file in names)]
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise FileNotFoundError(f"The checkpoint `{name}` is incomplete: it lacks {', '.join(missing)}.")


def _read_config(name: str, revision: str) -> dict[str, Any]:
    """Read config.json as it stands, whatever model it is of."""
    try:
        return LLaDAConfig.get_config_dict(name, revision=revision)[0]
    except OSError as error:
        place = "" if Path(name).is_dir() else " on the Hub (there is no such folder here)"
        raise OSError(f"The config.json of `{name}`{place} cannot be read: {error}") from None


def _load_tokenizer(name: str, revision: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer by its class, since AutoTokenizer would ask to run the checkpoint's code."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower for a corrupt file
        raise ValueError(f"The tokenizer.json of `{name}` is corrupt ({error}); download or save it again.") from None
    if not tokenizer.mask_token and missing_tokens(tokenizer, [MASK_TOKEN]):
        raise ValueError(
            f"The tokenizer of `{name}` has no mask token (`{MASK_TOKEN}`), without which nothing can be unmasked; "
            "use the tokenizer this checkpoint was trained with."
        )
    return prepare_tokenizer(tokenizer, missing="spell_out")


def _load_model(name: str, revision: str, dtype: Any, trust_remote_code: bool) -> Any:
    """Load the weights; every one must be in the file and have the right shape."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    model_class: Any = LLaDAModelLM
    extra: dict[str, Any] = {}
    if trust_remote_code:
        model_class, extra = AutoModelForCausalLM, {"trust_remote_code": True}
    try:
        model, report = model_class.from_pretrained(
            name, revision=revision, dtype=dtype, output_loading_info=True, **extra
        )
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"The weights of `{name}` cannot be loaded ({error}); download or save them again.") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"The weights of `{name}` are incomplete: {len(missing)} tensors are missing, such as `{missing[0]}`."
        )
    return model


def _is_exported(name: str) -> bool:
    """Whether a folder holds an exported model and no weights for PyTorch."""
    return find_exported(name) is not None and not any((Path(name) / file).is_file() for file in WEIGHT_FILES)


def _load_exported(name: str, device: str | None, dtype: str, trust_remote_code: bool) -> Any:
    """Load an exported model, which has its own device and brings no code."""
    if device not in (None, "cpu"):
        raise ValueError(f"`--device` must be cpu for the exported model `{name}`, got {device!r}; leave it out.")
    if trust_remote_code:
        raise ValueError(f"`--trust-remote-code` has no meaning for the exported model `{name}`; leave it out.")
    return load_exported(name, dtype)


def _check_fit(name: str, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Raise if the tokenizer is not the model's."""
    if tokenizer.mask_token_id != config.mask_token_id:
        raise ValueError(
            f"In `{name}` the tokenizer's mask token has the id {tokenizer.mask_token_id}, but `mask_token_id` in "
            f"config.json is {config.mask_token_id}; they must agree."
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.embedding_size:
        raise ValueError(
            f"In `{name}` the tokenizer has ids up to {largest}, but the model's embedding only "
            f"{config.embedding_size} rows; use the tokenizer this checkpoint was trained with."
        )
