"""Puts our code and repaired tokenizer files beside the weights of a released LLaDA checkpoint, in a new folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_llada.modeling_llada as modeling
from llada_core import loading
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAConfig, LLaDAGenerationConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP

from .folders import check_space, check_target, complete_folder
from .hub import fetch_checkpoint
from .layout import LAYOUTS, llada_name
from .verify import verify_folder
from .weights import (
    INDEX_NAME,
    StoredTensor,
    copy_file,
    is_sharded,
    link_file,
    read_index,
    stored_tensors,
    weight_files,
)

_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_HEAD = "model.transformer.ff_out.weight"


def convert_official(
    source: str | Path,
    target: str | Path,
    layout: str = "official",
    link: bool = False,
    force: bool = False,
    revision: str | None = None,
    verify: bool = False,
) -> Path:
    """Make a folder of ours from LLaDA-8B-Base, -Instruct, LLaDA-1.5, or another checkpoint of that architecture.

    The weight files are copied byte for byte, a piece at a time; where the layout changes, only the names in their
    headers do. Config, generation config and tokenizer are written anew, and the code is put beside them.

    Args:
        source: a folder or a Hub id, with official or Llama's tensor names.
        target: the folder to make; it appears when it is complete.
        layout: tensor names of the result. `official` is what every LLaDA program reads. `llama` is for software
            that reads Llama's names; that folder gets no code, since ours does not read them.
        link: hard-link the weight files of `source` instead of copying. They then share their bytes: what changes one
            in place changes the other.
        force: replace `target` if it is a checkpoint.
        revision: branch, tag or commit of a Hub id.
        verify: compare the result with `source` before it gets its name; see `verify_folder`.

    Returns:
        The folder.

    Raises:
        ValueError: for another architecture, weights that do not fit the config (all are listed), damaged files, and
            a tokenizer that does not fit.
        OSError: for a source that is not there, a target that is, a full disk, and what the Hub refuses.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    check_target(target, force)
    config = read_config(fetch_checkpoint(source, revision, files=("config.json",)))  # before weights are downloaded
    folder = fetch_checkpoint(source, revision)
    check_target(target, force, source=folder)
    tensors = stored_tensors(folder)
    check_tensors(folder, config, tensors)
    if link and any(LAYOUTS[layout](name) != name for name in tensors):
        raise ValueError(f"`link` cannot rename, but `{folder}` is not in layout={layout!r} already; leave it out.")
    check_space(target, 0 if link else sum(path.stat().st_size for path in weight_files(folder)))
    with complete_folder(target, force) as scratch:
        write_weights(folder, scratch, layout, link)
        write_other_files(folder, scratch, config, with_code=layout == "official")
        if verify:
            verify_folder(folder, scratch)
    return Path(target)


def read_config(folder: Path) -> LLaDAConfig:
    """Read the config of a dense LLaDA.

    Raises:
        ValueError: for another `model_type`, for LLaDA-MoE, and for what `LLaDAConfig` refuses.
        OSError: if there is none.
    """
    fields, _ = LLaDAConfig.get_config_dict(folder)
    if fields.get("model_type") != LLaDAConfig.model_type:
        raise ValueError(
            f"`{folder}` is no LLaDA checkpoint: `model_type` must be {LLaDAConfig.model_type!r}, got "
            f"{fields.get('model_type')!r}; an autoregressive model becomes a LLaDA by `llada convert autoregressive`."
        )
    return LLaDAConfig.from_dict(fields)


def check_tensors(folder: Path, config: LLaDAConfig, tensors: dict[str, StoredTensor]) -> None:
    """Compare names, shapes and types of the weights with what the config makes of a model.

    Raises:
        ValueError: listing everything that is missing, too much or different.
    """
    expected = expected_shapes(config)
    found = {llada_name(name): tensor for name, tensor in tensors.items()}
    problems = [f"`{name}` is missing." for name in sorted(expected.keys() - found.keys())]
    twice = {name for name in tensors if llada_name(name) != name and llada_name(name) in tensors}
    problems += [f"`{name}` is too much." for name in sorted((found.keys() - expected.keys()) | twice)]
    for name in sorted(expected.keys() & found.keys()):
        if found[name].shape != expected[name]:
            problems.append(f"`{name}` has shape {list(found[name].shape)}, not {list(expected[name])}.")
        if found[name].dtype not in _FLOAT_TYPES:
            problems.append(f"`{name}` is of type {found[name].dtype}, not {', '.join(_FLOAT_TYPES)}.")
    if problems:
        raise ValueError(
            f"The weights of `{folder}` do not fit its config.json: {' '.join(problems)} Use the config.json that "
            "belongs to these weights, or download both again."
        )


def expected_shapes(config: LLaDAConfig) -> dict[str, tuple[int, ...]]:
    """Name every tensor of a checkpoint, official names, with its shape; a tied head is no tensor of its own."""
    with torch.device("meta"):
        parameters = LLaDAModelLM(config).state_dict()
    return {name: tuple(p.shape) for name, p in parameters.items() if not (config.weight_tying and name == _HEAD)}


def write_weights(source: Path, target: Path, layout: str, link: bool) -> None:
    """Copy or link the weight files and their index into `target`, with the names of `layout`."""
    rename = LAYOUTS[layout]
    for path in weight_files(source):
        if link:
            link_file(path, target / path.name)
        else:
            copy_file(path, target / path.name, rename)
    if is_sharded(source):
        index = json.loads((source / INDEX_NAME).read_text(encoding="utf-8"))
        index["weight_map"] = {rename(name): file for name, file in read_index(source).items()}
        (target / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_other_files(source: Path, target: Path, config: LLaDAConfig, with_code: bool) -> None:
    """Write config, code, generation config, tokenizer and the licence texts."""
    tokenizer = load_tokenizer(source, config)
    save_tokenizer(tokenizer, target)
    read_generation_config(source, tokenizer).save_pretrained(target)
    config.architectures = [LLaDAModelLM.__name__]
    (target / "config.json").write_text(config_text(config, with_code), encoding="utf-8")
    texts = [path for pattern in ("LICENSE*", "NOTICE*") for path in source.glob(pattern)]
    for path in texts + (code_files() if with_code else []):
        shutil.copyfile(path, target / path.name)


def config_text(config: LLaDAConfig, with_code: bool) -> str:
    """Spell out config.json; only a folder with code names it."""
    fields: dict[str, Any] = json.loads(config.to_json_string())
    fields.pop("auto_map", None)
    if with_code:
        fields["auto_map"] = dict(AUTO_MAP)
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def read_generation_config(source: Path, tokenizer: PreTrainedTokenizerBase) -> LLaDAGenerationConfig:
    """Read the options that the source sets, and add what no released file names: the id of the end of turn."""
    has_file = (source / "generation_config.json").is_file()
    options = GenerationConfig.from_pretrained(source) if has_file else GenerationConfig()
    return loading.complete_options(options, tokenizer)


def load_tokenizer(source: Path, config: LLaDAConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer and repair it: mask, pad and header tokens, and the chat template.

    LLaDA Base lacks the three tokens of the chat; they are added, in rows of the embedding that lie ready.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for one that is corrupt, has another mask than the config, or more tokens than the embedding.
    """
    tokenizer = prepare_tokenizer(loading.load_tokenizer(source, prepare=False), missing="add")
    loading.check_tokenizer(tokenizer, config)
    return tokenizer


def code_files() -> list[Path]:
    """List the files of code that a model folder needs: the modelling file and what it imports."""
    return [Path(modeling.__file__), *(Path(path) for path in get_relative_import_files(modeling.__file__))]
