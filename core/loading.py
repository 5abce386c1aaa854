"""The loader: a model with its tokenizer and options from a folder or the Hub, and a plain word on what does not load.

Every command loads through this file, so that a checkpoint gets the same answer from each. What it takes: a checkpoint
of LLaDA (official or ours, whole or sharded), a LoRA adapter, and an exported model.
"""

import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from llada_checkpoints import BUNDLED_MODEL
from modeling_llada import ILLaDAForCausalLM, LLaDAGenerationConfig, LLaDAModelLM, LLaDAMoEModelLM
from modeling_llada.configuration_llada import MODEL_TYPES, RELATIVES, read_json_object, read_weight_index
from modeling_llada.generation_config_llada import READERS, is_read

from .host import avoid_broken_amx
from .hub import DESCRIBING, check_model_name, hub_errors, incomplete, local_folder
from .lazy import install_line
from .tokenization import missing_tokens, prepare_tokenizer, special_tokens

DTYPES = ("auto", "float32", "bfloat16", "float16")
# By the name in `architectures`; LLaDA-MoE shares LLaDA's model type.
MODEL_CLASSES = {one.__name__: one for one in (LLaDAModelLM, ILLaDAForCausalLM, LLaDAMoEModelLM)}
# As transformers looks for them: the first that exists is read.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_CONFIG = DESCRIBING[1]
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# The files by which an exported model is known: ONNX, OpenVINO.
EXPORTED_FILES = ("model.onnx", "openvino_model.xml")
# What the readers of weight files raise for one that is cut off, corrupt, of other shapes, or a foreign pickle.
_DAMAGE = (SafetensorError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError)
# What reads the small files of a checkpoint; `tokenizer.json` is read by its own library.
_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(
        ("config.json", ADAPTER_CONFIG, "tokenizer_config.json", "special_tokens_map.json"), read_json_object
    ),
    **READERS,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to generate, its tokenizer, and the options its files set."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: Any  # a LLaDAGenerationConfig, whose fields are made at run time

    @classmethod
    def of(cls, model: Any, tokenizer: PreTrainedTokenizerBase) -> "Checkpoint":
        """Put a model and a tokenizer that are already loaded together.

        The tokenizer gets LLaDA's special tokens and chat template, in place.

        Raises:
            ValueError: if the tokenizer is not the model's.
        """
        prepare_tokenizer(tokenizer, missing="spell_out")
        if model.config.mask_token_id is None:  # no released config of the relatives names it
            model.config.mask_token_id = tokenizer.mask_token_id
        check_tokenizer(tokenizer, model.config)
        return cls(model.eval(), tokenizer, complete_options(model.generation_config, tokenizer))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: end of text and end of turn."""
        ids = [self.tokenizer.eos_token_id, self.options.eot_token_id, *self.options.eos_token_ids]
        return frozenset(i for i in ids if i is not None)


def load_checkpoint(
    model: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str = "main",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load model and tokenizer.

    The installed classes are used for every checkpoint of LLaDA, LLaDA-MoE and iLLaDA, official ones included; code
    that lies beside the weights runs only with `trust_remote_code`. A LoRA adapter is merged into its base model.

    Args:
        model: folder or Hub id of a checkpoint or an adapter, or folder of an exported model. None is the bundled
            model.
        device: a torch device. None is CUDA, else MPS, else the CPU. An exported model takes the CPU.
        dtype: one of `DTYPES`, or a torch dtype; `auto` is the checkpoint's. For an exported model see
            `llada_conversion.load_exported`.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: load the class that the checkpoint brings.

    Raises:
        ValueError: for a checkpoint that is not LLaDA, is incomplete or corrupt, or whose tokenizer does not fit it,
            and for an unknown device or dtype.
        OSError: for a folder or a Hub id that does not exist, lacks files or cannot be reached.
        ImportError: for an adapter without peft.

    Example:
        >>> checkpoint = load_checkpoint("tests/reference/checkpoints/mha", device="cpu")
        >>> checkpoint.tokenizer.mask_token_id == checkpoint.model.config.mask_token_id
        True
    """
    name = os.path.expanduser(os.fspath(BUNDLED_MODEL if model is None else model))
    torch_dtype, config = parse_dtype(dtype), read_config(name, revision)
    tokenizer = load_tokenizer(name, revision)
    if is_exported(name):
        return Checkpoint.of(_run_exported_loader(name, device, dtype, trust_remote_code), tokenizer)
    place = find_device(device)
    loaded = _load_described(config, name, revision, torch_dtype, trust_remote_code)
    return Checkpoint.of(loaded.to(place), tokenizer)


def load_model(
    name: str | os.PathLike[str],
    revision: str = "main",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Load the weights alone; every tensor must be in the files and have the right shape.

    Args:
        name: folder or Hub id of a checkpoint or an adapter, which is merged into its base model.
        revision: branch, tag or commit on the Hub.
        dtype: one of `DTYPES`, or a torch dtype.
        trust_remote_code: load the class that the checkpoint brings.
        options: other arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        ValueError, OSError, ImportError: as `load_checkpoint`.
    """
    name = os.path.expanduser(os.fspath(name))
    config = read_config(name, revision)
    return _load_described(config, name, revision, parse_dtype(dtype), trust_remote_code, **options)


def load_tokenizer(
    name: str | os.PathLike[str], revision: str = "main", prepare: bool = True
) -> PreTrainedTokenizerBase:
    """Load a tokenizer by its class, since AutoTokenizer would ask to run the checkpoint's code.

    Args:
        name: folder or Hub id of a tokenizer, a checkpoint, or an adapter, whose base model's is taken if it has none.
        revision: branch, tag or commit on the Hub.
        prepare: declare LLaDA's special tokens and chat template; see `prepare_tokenizer`.

    Raises:
        ValueError: for a corrupt file; with `prepare`, for a tokenizer that lacks one of LLaDA's tokens.
        OSError: if there is none, or it cannot be reached.
    """
    name = os.path.expanduser(os.fspath(name))
    file = _find_file(name, revision, "tokenizer.json", ADAPTER_CONFIG)
    check_files(name, file.parent)
    if file.name == ADAPTER_CONFIG:
        return load_tokenizer(*_base_model(name, read_json_object(file)), prepare=prepare)
    try:
        with hub_errors(name):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower for a corrupt file
        raise ValueError(
            f"The tokenizer of `{name}` is corrupt ({_first_line(error)}); download or save tokenizer.json and "
            "tokenizer_config.json again."
        ) from None
    if not prepare:
        return tokenizer
    mask = special_tokens(tokenizer).mask
    if not tokenizer.mask_token and missing_tokens(tokenizer, [mask]):
        raise ValueError(
            f"The tokenizer of `{name}` has no mask token (`{mask}`), without which nothing can be unmasked; "
            "use the tokenizer this checkpoint was trained with."
        )
    return prepare_tokenizer(tokenizer, missing="spell_out")


def read_config(name: str, revision: str = "main") -> dict[str, Any]:
    """Check that `name` is a checkpoint of LLaDA or an adapter with its files, and read what describes it.

    Returns:
        config.json; for an adapter its adapter_config.json, which has the key `peft_type`.

    Raises:
        ValueError: for another `model_type`, and as `check_files`.
        OSError: for a folder or a Hub id that does not exist, lacks files or cannot be reached.
    """
    check_model_name(name)
    file = _find_file(name, revision, *DESCRIBING)
    check_files(name, file.parent)
    config, folder = read_json_object(file), local_folder(name)
    if "peft_type" not in config and model_class_of(config) is None:
        if str(config.get("model_type")).startswith("llada2"):
            raise ValueError(f"`{name}` is a LLaDA2, whose attention is causal between blocks; it is not supported.")
        raise ValueError(
            f"`{name}` is not a LLaDA checkpoint: its config.json has `model_type` {config.get('model_type')!r} where "
            f"{' or '.join(map(repr, MODEL_TYPES))} is expected; convert a Llama-style model with `llada convert "
            "autoregressive`."
        )
    if folder is not None:
        _check_weight_files(name, folder, is_adapter="peft_type" in config)
    return config


def model_class_of(config: dict[str, Any]) -> Any:
    """Return the class of the model that the fields of a config.json describe; None if it is none of LLaDA's kinds."""
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name in RELATIVES:
            return MODEL_CLASSES[name]
    return {"llada": LLaDAModelLM, "illada": ILLaDAForCausalLM}.get(str(config.get("model_type")))


def model_class_for(config: Any) -> Any:
    """Return the installed class of the model that a config makes."""
    return next(one for one in MODEL_CLASSES.values() if one.config_class.__name__ == type(config).__name__)


def check_files(name: str, folder: Path) -> None:
    """Read the small files of a checkpoint, so that a damaged one is named, and none is ignored.

    Args:
        name: the checkpoint in messages.
        folder: where its files lie; those that are not there are not needed.

    Raises:
        ValueError: for a file that is not what it must be.
        OSError: for a file that cannot be read.
    """
    for file, read in _READERS.items():
        if is_read(str(folder / file)):
            try:
                read(folder / file)
            except ValueError as error:
                reason = _first_line(error).removeprefix(f"`{folder / file}` ")
                raise ValueError(f"The {file} of `{name}` is corrupt: it {reason}") from None


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model and no weights for PyTorch."""
    return _first_file(Path(folder), EXPORTED_FILES) is not None and _first_file(Path(folder), WEIGHT_FILES) is None


def use_exported_loader(load: Callable[[str, Any], Any]) -> None:
    """Let `load_checkpoint` take exported models: `load(folder, dtype)` returns the model.

    The classes that run one lie in `llada_conversion`, above this package; the command line calls
    `use_exported_loader(llada_conversion.load_exported)`.
    """
    global _exported_loader
    _exported_loader = load


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Refuse a tokenizer that is not the model's.

    Args:
        tokenizer: a special token that it does not declare is not compared.
        config: the model's.

    Raises:
        ValueError: if the mask or end-of-text token differs, or the embedding has too few rows.
    """
    for field in ("mask_token_id", "eos_token_id"):
        ours, theirs = getattr(config, field), getattr(tokenizer, field)
        if theirs is not None and theirs not in (ours if isinstance(ours, list) else [ours]):
            raise ValueError(
                f"`{field}` must be the same in model and tokenizer, got {ours} and {theirs}; use the tokenizer this "
                "checkpoint was trained with."
            )
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.embedding_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, but the model's embedding only {config.embedding_size} rows; use "
            "the tokenizer this checkpoint was trained with."
        )


def complete_options(options: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the options that a checkpoint's files set, with what no released file names: the id of the end of turn.

    Args:
        options: a model's `generation_config`, of any class.
        tokenizer: its tokenizer; without that token the id stays unset.

    Returns:
        A `LLaDAGenerationConfig`; `options` stays as it is.
    """
    config: Any = LLaDAGenerationConfig.from_generation_config(options)
    token = special_tokens(tokenizer).end_of_turn
    if config.eot_token_id is None and token is not None and not missing_tokens(tokenizer, [token]):
        config = config.updated(eot_token_id=tokenizer.convert_tokens_to_ids(token))
    return config


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device `name`; None is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: for a device that does not exist, is not available here, or computes nothing.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` {str(name)!r} is not available here ({reason}); pass e.g. cpu.") from None
    if device.type == "meta":
        raise ValueError("`device` must hold numbers, got 'meta', which has shapes only; pass e.g. cpu.")
    return device


def parse_dtype(name: str | torch.dtype) -> Any:
    """Return the torch dtype of a name; `auto` and torch dtypes stay as they are.

    Raises:
        ValueError: for a name that is not in `DTYPES`.
    """
    if isinstance(name, torch.dtype) or name == "auto":
        return name
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {name!r}.")
    return getattr(torch, name)


_exported_loader: Callable[[str, Any], Any] | None = None


def _run_exported_loader(name: str, device: Any, dtype: Any, trust_remote_code: bool) -> Any:
    """Load an exported model, which has its own device and brings no code."""
    if _exported_loader is None:
        raise ValueError(
            f"`{name}` is an exported model; load it with `llada_conversion.load_exported`, and pass the model itself."
        )
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ValueError(f"`device` must be cpu for the exported model `{name}`, got {str(device)!r}; leave it out.")
    if trust_remote_code:
        raise ValueError(f"`trust_remote_code` has no meaning for the exported model `{name}`; leave it out.")
    return _exported_loader(name, dtype)


def _load_described(
    config: dict[str, Any], name: str, revision: str, dtype: Any, trust_remote_code: bool, **options: Any
) -> Any:
    """Load the weights of what `config` describes: a checkpoint, or an adapter and its base model."""
    avoid_broken_amx()  # before the model's first product
    if "peft_type" in config:
        base = load_model(*_base_model(name, config), dtype, trust_remote_code, **options)
        return _merge_adapter(base, name, revision)
    model_class: Any = model_class_of(config)
    if trust_remote_code and (reference := config.get("auto_map", {}).get("AutoModelForCausalLM")):
        # The auto class itself would prefer the installed class.
        model_class = get_class_from_dynamic_module(reference, name, revision=revision)
    try:
        model, report = model_class.from_pretrained(
            name, revision=revision, dtype=dtype, output_loading_info=True, **options
        )
    except _DAMAGE as error:
        raise ValueError(
            f"The weights of `{name}` cannot be loaded ({_first_line(error)}): a file is cut off, corrupt or of "
            "another model. Download or save them again."
        ) from error
    if local_folder(name) is None:
        # Downloaded with the weights.
        check_files(name, _find_file(name, revision, "config.json").parent)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"The weights of `{name}` lack {len(missing)} tensor(s), such as `{missing[0]}`. Download or save them "
            "again."
        )
    return model


def _merge_adapter(model: Any, name: str, revision: str) -> Any:
    """Add the adapter `name` to the weights of its base model."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(
            f"`{name}` is a LoRA adapter, which needs the package `peft`; install it with: {install_line('train')}"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks transformers
            merged: Any = PeftModel.from_pretrained(model, name, revision=revision).merge_and_unload()
    except (*_DAMAGE, UserWarning) as error:
        raise ValueError(
            f"The adapter `{name}` cannot be loaded ({_first_line(error)}): a file is cut off or corrupt, or made for "
            "another base model. Download or save it again."
        ) from error
    merged.name_or_path = name
    vars(merged.config).pop("is_untrained", None)
    return merged


def _base_model(name: str, config: dict[str, Any]) -> tuple[str, str]:
    """Return name and revision of the model under an adapter."""
    if config["peft_type"] != "LORA":
        raise ValueError(
            f"`{name}` must be a LoRA adapter, got the `peft_type` {config['peft_type']}; load it with peft."
        )
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"The {ADAPTER_CONFIG} of `{name}` names no base model; set `base_model_name_or_path`.")
    return base, config.get("revision") or "main"


def _find_file(name: str, revision: str, *files: str) -> Path:
    """Return the first of `files` that a folder has, or a repository, from which it is downloaded if necessary."""
    folder = local_folder(name)
    if folder is not None:
        if (file := _first_file(folder, files)) is None:
            raise incomplete(name, [files[0]])
        return folder / file
    with hub_errors(name):
        for file in files:
            try:
                return Path(hf_hub_download(name, file, revision=revision))
            except EntryNotFoundError:
                if file == files[-1]:
                    raise
    raise AssertionError("the last file is returned or raises")


def _check_weight_files(name: str, folder: Path, is_adapter: bool) -> None:
    """Raise unless a folder has all files of weights."""
    expected = ADAPTER_FILES if is_adapter else WEIGHT_FILES + EXPORTED_FILES
    file = _first_file(folder, expected)
    if file is None:
        raise incomplete(name, [expected[0]])
    if file.endswith(".index.json"):
        shards = set(read_weight_index(folder / file).values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise incomplete(name, missing)


def _first_file(folder: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (folder / name).is_file()), None)


def _first_line(error: BaseException) -> str:
    """The first line of an error's text; of one that only announces the next, both."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
