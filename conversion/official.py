"""Puts our code and repaired tokenizer files beside the weights of a released checkpoint, and compares the two."""

import filecmp
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_llada.modeling_llada as modeling
from llada_core.digests import file_digest
from llada_core.hub import fetch_checkpoint
from llada_core.loading import check_files, check_tokenizer, complete_options, load_tokenizer
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP

from .folders import check_space, check_target, complete_folder
from .weights import (
    HEAD_NAME,
    INDEX_NAME,
    LAYOUTS,
    StoredTensor,
    copy_file,
    data_size,
    is_sharded,
    link_file,
    llada_name,
    read_index,
    stored_tensors,
    weight_files,
)

_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
# How many ids both sides compute, when they are compared.
NUM_IDS = 16
# Both sides compute the same thing in float32; tensors that lie elsewhere in memory may be summed in another order.
TOLERANCE = 1e-5
_SHA256 = re.compile(r"[0-9a-f]{64}")


# --- conversion ------------------------------------------------------------------------------------------------------


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
        ValueError: for another architecture, weights that do not fit the config (all are listed), damaged files, a
            tokenizer that does not fit, and licence texts that are links out of the folder.
        OSError: for a source that is not there, a target that is, a full disk, and what the Hub refuses.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    check_target(target, force)
    config = read_config(fetch_checkpoint(source, revision, files=("config.json",)))  # before weights are downloaded
    folder = fetch_checkpoint(source, revision)
    check_target(target, force, source=folder)
    check_files(str(source), folder)
    tensors = stored_tensors(folder)
    check_tensors(folder, config, tensors)
    licence_texts(folder)  # a link is refused before gigabytes are copied
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
        ValueError: for another `model_type`, for LLaDA-MoE, for what `LLaDAConfig` refuses, and as `check_files`.
        OSError: if there is none.
    """
    check_files(str(folder), folder)
    fields, _ = LLaDAConfig.get_config_dict(folder)
    if fields.get("model_type") != LLaDAConfig.model_type:
        raise ValueError(
            f"`{folder}` is not a LLaDA checkpoint: `model_type` must be {LLaDAConfig.model_type!r}, got "
            f"{fields.get('model_type')!r}; an autoregressive model becomes a LLaDA by `llada convert autoregressive`."
        )
    return LLaDAConfig.from_dict(fields)


def check_tensors(folder: Path, config: LLaDAConfig, tensors: dict[str, StoredTensor]) -> None:
    """Compare names, shapes and types of the weights with what the config makes of a model.

    Raises:
        ValueError: listing everything that is missing, unexpected or different.
    """
    expected = expected_shapes(config)
    found = {llada_name(name): tensor for name, tensor in tensors.items()}
    problems = [f"`{name}` is missing." for name in sorted(expected.keys() - found.keys())]
    twice = {name for name in tensors if llada_name(name) != name and llada_name(name) in tensors}
    problems += [f"Unexpected tensor `{name}`." for name in sorted((found.keys() - expected.keys()) | twice)]
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
    """Name every tensor of a checkpoint, official names, with its shape; a tied head is not a tensor of its own."""
    with torch.device("meta"):
        parameters = LLaDAModelLM(config).state_dict()
    return {name: tuple(p.shape) for name, p in parameters.items() if not (config.weight_tying and name == HEAD_NAME)}


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
        if not isinstance(index.get("metadata"), dict):  # transformers does not load an index without
            index["metadata"] = {"total_size": sum(data_size(path) for path in weight_files(source))}
        (target / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_other_files(source: Path, target: Path, config: LLaDAConfig, with_code: bool) -> None:
    """Write config, code, generation config, tokenizer and the licence texts.

    The tokenizer is repaired: mask, pad and header tokens, and the chat template. LLaDA Base lacks the three tokens of
    the chat; they are added, in rows of the embedding that lie ready.

    Raises:
        FileNotFoundError: if there is no tokenizer.
        ValueError: for one that is corrupt, has another mask than the config, or more tokens than the embedding.
    """
    tokenizer = prepare_tokenizer(load_tokenizer(source, prepare=False), missing="add")
    check_tokenizer(tokenizer, config)
    has_options = (source / "generation_config.json").is_file()
    options = GenerationConfig.from_pretrained(source) if has_options else GenerationConfig()
    config.architectures = [LLaDAModelLM.__name__]
    write_descriptions(source, target, config, complete_options(options, tokenizer), tokenizer, with_code)


def write_descriptions(
    source: Path, target: Path, config: Any, options: GenerationConfig, tokenizer: Any, with_code: bool
) -> None:
    """Write what describes a model, the licence texts, which must travel with it, and code, which config.json names.

    Raises:
        ValueError: for licence texts that are links out of `source`.
    """
    texts = licence_texts(source)
    save_tokenizer(tokenizer, target)
    options.save_pretrained(target)
    fields = {**json.loads(config.to_json_string()), "auto_map": dict(AUTO_MAP)}
    if not with_code:
        del fields["auto_map"]
    (target / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in texts + (code_files() if with_code else []):
        shutil.copyfile(path, target / path.name)


def licence_texts(folder: Path) -> list[Path]:
    """List the licence texts of a checkpoint.

    Raises:
        ValueError: for links to anything but files of the folder, or, in the Hub's cache, of the repository.
    """
    texts = sorted(path for pattern in ("LICENSE*", "NOTICE*") for path in folder.glob(pattern) if not path.is_dir())
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # models--user--name/snapshots/COMMIT, whose files lie in blobs
        allowed.append(home.parents[1] / "blobs")
    strays = [path.name for path in texts if not (path.is_file() and path.resolve().parent in allowed)]
    if strays:
        raise ValueError(
            f"Licence texts must be files of `{folder}`, but these are links out of it or to nothing: "
            f"{', '.join(strays)}; put the files themselves there."
        )
    return texts


def code_files() -> list[Path]:
    """List the files of code that a model folder needs: the modelling file and what it imports."""
    return [Path(modeling.__file__), *(Path(path) for path in get_relative_import_files(modeling.__file__))]


# --- verification ----------------------------------------------------------------------------------------------------


def verify_folder(source: str | Path, folder: str | Path) -> float:
    """Check that `folder` holds the weights of `source` and computes the same logits.

    1. A source file in the Hub's cache has the SHA-256 that the Hub knows it by.
    2. Every tensor has the same type, shape and bytes in both, under whichever of the two names.
    3. The logits of `source` (its config and weights) and of `folder` (its own) agree on `NUM_IDS` fixed ids, in
       float32. One block, or the embedding, is in memory at a time.

    Args:
        source: a checkpoint folder.
        folder: what `convert_official` made of it, in either layout.

    Returns:
        The largest difference of the logits.

    Raises:
        ValueError: naming every tensor or file that differs, tensors that are not finite, or the difference of the
            logits.
    """
    source, folder = Path(source), Path(folder)
    problems = _changed_in_cache(source) + _different_tensors(source, folder) + _different_code(folder)
    if problems:
        raise ValueError(f"`{folder}` is not what was converted: {' '.join(problems)} Convert again.")
    difference = (fixed_logits(source) - fixed_logits(folder)).abs().max().item()
    names = [f"`{name}`" for name in _not_finite(source)] if math.isnan(difference) else []
    if names:
        raise ValueError(
            f"Some weights of `{source}` are not finite numbers: {', '.join(names)}. Download them again, or take an "
            "earlier checkpoint of the training."
        )
    if not difference <= TOLERANCE:
        raise ValueError(
            f"`{folder}` and `{source}` have the same weights, but their logits differ by {difference:.2g}: their "
            "config.json differ in what the model computes. Convert again."
        )
    return difference


@torch.no_grad()
def fixed_logits(folder: Path) -> Tensor:
    """Compute a checkpoint's logits on ids spread over the vocabulary, every fourth one masked.

    Weights are read when the module that holds them runs, and let go after it.

    Returns:
        float32 [1, NUM_IDS, embedding_size].
    """
    config: Any = LLaDAConfig.from_pretrained(folder)
    tensors = {llada_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    with torch.device("meta"):
        model = LLaDAModelLM(config).eval()
    parts = dict(model.model.transformer.named_children())
    blocks = {f"blocks.{i}": block for i, block in enumerate(parts.pop("blocks"))}
    for name, module in {**parts, **blocks}.items():
        shared = "wte" if name == "ff_out" and config.weight_tying else name
        _read_on_demand(module, {k: tensors[f"model.transformer.{shared}.{k}"] for k in module.state_dict()})
    ids = torch.arange(NUM_IDS)[None] * (config.vocab_size // NUM_IDS)
    ids[:, ::4] = config.mask_token_id
    return model(ids).logits


def _read_on_demand(module: nn.Module, tensors: dict[str, StoredTensor]) -> None:
    """Let `module` read its weights before it runs, and drop them after."""

    def read(*_: Any) -> None:
        module.load_state_dict({key: tensor.load().float() for key, tensor in tensors.items()}, assign=True)

    def drop(*_: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)


def _changed_in_cache(source: Path) -> list[str]:
    """Files whose bytes are not those of the name that the Hub's cache gave them."""
    names = {path: path.resolve().name for path in weight_files(source) if path.is_symlink()}
    return [
        f"The downloaded `{path.name}` has another SHA-256 than on the Hub; delete it from the cache."
        for path, name in names.items()
        if _SHA256.fullmatch(name) and file_digest(path) != name
    ]


def _different_tensors(source: Path, folder: Path) -> list[str]:
    theirs = {llada_name(name): tensor for name, tensor in stored_tensors(source).items()}
    ours = {llada_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    problems = [f"`{name}` is in only one of the two." for name in sorted(theirs.keys() ^ ours.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        before, after = theirs[name], ours[name]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            problems.append(f"`{name}` has another type or shape.")
        elif not torch.equal(*(tensor.load().flatten().view(torch.uint8) for tensor in (before, after))):
            problems.append(f"`{name}` has other bytes.")
    return problems


def _not_finite(folder: Path) -> list[str]:
    return [name for name, tensor in sorted(stored_tensors(folder).items()) if not tensor.load().isfinite().all()]


def _different_code(folder: Path) -> list[str]:
    ours = Path(modeling.__file__).parent
    changed = [p.name for p in sorted(folder.glob("*_llada.py")) if not filecmp.cmp(p, ours / p.name, shallow=False)]
    return [f"`{name}` is not this package's." for name in changed]
