"""Puts our code and repaired tokenizer files beside the weights of a released checkpoint, and compares the two."""

import filecmp
import inspect
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.dynamic_module_utils import get_relative_import_files

from llada_core.digests import file_digest
from llada_core.hub import fetch_checkpoint
from llada_core.loading import (
    check_files,
    check_tokenizer,
    complete_options,
    load_tokenizer,
    model_class_for,
    model_class_of,
)
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAConfig
from modeling_llada.configuration_llada import MODEL_TYPES
from modeling_llada.llama_layout_llada import (
    EMBEDDING_NAME,
    HEAD_NAME,
    expert_parts,
    name_in_file,
    name_in_memory,
    stored_shapes,
)

from .folders import check_space, check_target, complete_folder
from .weights import (
    INDEX_NAME,
    LAYOUTS,
    StoredTensor,
    copy_file,
    is_sharded,
    link_file,
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
    """Make a folder of ours from LLaDA-8B-Base, -Instruct, LLaDA-1.5, LLaDA-MoE, iLLaDA, or one of their architectures.

    The weight files are copied byte for byte, a piece at a time; where the layout changes, only the names in their
    headers do. Config, generation config and tokenizer are written anew, and the code is put beside them.

    Args:
        source: a folder or a Hub id, with official or Llama's tensor names.
        target: the folder to make; it appears when it is complete.
        layout: tensor names of the result. `official` is what every LLaDA program reads. `llama` is for software
            that reads Llama's names; that folder gets no code, since ours does not read them. The relatives of LLaDA
            have one layout, the released one.
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
    if layout != "official" and not is_dense(config):
        raise ValueError(f"`layout` must be official for {type(config).__name__}, got {layout!r}; it has no other.")
    check_files(str(source), folder)
    tensors = stored_tensors(folder)
    check_tensors(folder, config, tensors)
    licence_texts(folder)  # a link is refused before gigabytes are copied
    rename = LAYOUTS[layout] if is_dense(config) else name_in_file
    if link and any(rename(name) != name for name in tensors):
        raise ValueError(f"`link` cannot rename, but `{folder}` is not in layout={layout!r} already; leave it out.")
    check_space(target, 0 if link else sum(path.stat().st_size for path in weight_files(folder)))
    with complete_folder(target, force) as scratch:
        write_weights(folder, scratch, rename, link)
        write_other_files(folder, scratch, config, with_code=layout == "official")
        if verify:
            verify_folder(folder, scratch)
    return Path(target)


def read_config(folder: Path) -> Any:
    """Read the config of a LLaDA or one of its relatives.

    Raises:
        ValueError: for another architecture, for quantised weights, for what the class of the config refuses, and as
            `check_files`.
        OSError: if there is none.
    """
    check_files(str(folder), folder)
    fields, _ = LLaDAConfig.get_config_dict(folder)
    model_class = model_class_of(fields)
    if model_class is None:
        raise ValueError(
            f"`{folder}` is not a LLaDA checkpoint: `model_type` must be {' or '.join(map(repr, MODEL_TYPES))}, got "
            f"{fields.get('model_type')!r}; an autoregressive model becomes a LLaDA by `llada convert autoregressive`."
        )
    if (quantization := fields.get("quantization_config")) is not None:
        raise ValueError(
            f"`{folder}` holds quantised weights, which transformers alone reads: its config.json has a "
            f"`quantization_config` of {quantization.get('quant_method')!r}. Use the checkpoint that it was made from; "
            "`push_to_hub` of the loaded model publishes it as it is."
        )
    return model_class.config_class.from_dict(fields)


def is_dense(config: Any) -> bool:
    """Whether a config is LLaDA's own, whose files have official names; those of its relatives have Llama's."""
    return type(config) is LLaDAConfig


def canonical_name(config: Any) -> Callable[[str], str]:
    """What gives a stored tensor its name in the released files of this architecture."""
    return name_in_memory if is_dense(config) else name_in_file


def check_tensors(folder: Path, config: Any, tensors: dict[str, StoredTensor]) -> None:
    """Compare names, shapes and types of the weights with what the config makes of a model.

    Raises:
        ValueError: listing everything that is missing, unexpected or different.
    """
    rename, expected = canonical_name(config), expected_shapes(config)
    found = {rename(name): tensor for name, tensor in tensors.items()}
    head, embedding = rename(HEAD_NAME), rename(EMBEDDING_NAME)
    if config.weight_tying and (is_dense(config) or head not in found):
        del expected[head]
    problems = [f"`{name}` is missing." for name in sorted(expected.keys() - found.keys())]
    twice = {name for name in tensors if rename(name) != name and rename(name) in tensors}
    problems += [f"Unexpected tensor `{name}`." for name in sorted((found.keys() - expected.keys()) | twice)]
    for name in sorted(expected.keys() & found.keys()):
        if found[name].shape != expected[name]:
            problems.append(f"`{name}` has shape {list(found[name].shape)}, not {list(expected[name])}.")
        if found[name].dtype not in _FLOAT_TYPES:
            problems.append(f"`{name}` is of type {found[name].dtype}, not {', '.join(_FLOAT_TYPES)}.")
    if not problems and config.weight_tying and head in expected and not _same_bytes(found[head], found[embedding]):
        problems.append(f"`{head}` differs from `{embedding}`, but config.json ties them (`tie_word_embeddings`).")
    if problems:
        listed = " ".join(problems[:20]) + (f" And {len(problems) - 20} more." if len(problems) > 20 else "")
        raise ValueError(
            f"The weights of `{folder}` do not fit its config.json: {listed} Use the config.json that belongs to these "
            "weights, or download both again."
        )


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name every tensor of a released checkpoint with its shape; a tied head is among them."""
    with torch.device("meta"):
        model = model_class_for(config)(config)
    if not is_dense(config):
        return dict(stored_shapes(model))
    return {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}


def write_weights(source: Path, target: Path, rename: Callable[[str], str], link: bool) -> None:
    """Copy or link the weight files and their index into `target`, with the names that `rename` gives."""
    for path in weight_files(source):
        if link:
            link_file(path, target / path.name)
        else:
            copy_file(path, target / path.name, rename)
    if is_sharded(source):
        index = json.loads((source / INDEX_NAME).read_text(encoding="utf-8"))
        index["weight_map"] = {rename(name): file for name, file in read_index(source).items()}
        (target / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_other_files(source: Path, target: Path, config: Any, with_code: bool) -> None:
    """Write config, code, generation config, tokenizer and the licence texts.

    The tokenizer is repaired: mask, pad and header tokens, and the chat template. LLaDA Base lacks the three tokens of
    the chat; they are added, in rows of the embedding that lie ready. Where the config names no mask token, it gets the
    tokenizer's.

    Raises:
        FileNotFoundError: if there is no tokenizer.
        ValueError: for one that is corrupt, has another mask than the config, or more tokens than the embedding.
    """
    tokenizer = prepare_tokenizer(load_tokenizer(source, prepare=False), missing="add")
    if config.mask_token_id is None:
        config.mask_token_id = tokenizer.mask_token_id
    check_tokenizer(tokenizer, config)
    has_options = (source / "generation_config.json").is_file()
    options = GenerationConfig.from_pretrained(source) if has_options else GenerationConfig()
    config.architectures = [model_class_for(config).__name__]
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
    fields = {**json.loads(config.to_json_string()), "auto_map": dict(config.code_map)}
    if not with_code:
        del fields["auto_map"]
    (target / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in texts + (code_files(config) if with_code else []):
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


def code_files(config: Any) -> list[Path]:
    """List the files of code that a model folder needs: the modelling file and what it imports."""
    file = inspect.getfile(model_class_for(config))
    return [Path(file), *(Path(path) for path in get_relative_import_files(file))]


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
    mask_token_id = read_config(folder).mask_token_id
    logits, ours = fixed_logits(source, mask_token_id), fixed_logits(folder, mask_token_id)
    difference = (logits - ours).abs().max().item()
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
def fixed_logits(folder: Path, mask_token_id: int) -> Tensor:
    """Compute a checkpoint's logits on ids spread over the vocabulary, every fourth one masked.

    Weights are read when the module that holds them runs, and let go after it.

    Args:
        folder: the checkpoint.
        mask_token_id: the mask; not every released config names it.

    Returns:
        float32 [1, NUM_IDS, embedding_size].
    """
    config = read_config(folder)
    rename = canonical_name(config)
    tensors = {rename(name): tensor for name, tensor in stored_tensors(folder).items()}
    with torch.device("meta"):
        model = model_class_for(config)(config).eval()
    parts = dict(model.model.transformer.named_children())
    blocks = {f"blocks.{i}": block for i, block in enumerate(parts.pop("blocks"))}
    for name, module in {**parts, **blocks}.items():
        shared = "wte" if name == "ff_out" and config.weight_tying else name
        _read_on_demand(module, f"model.transformer.{shared}.", rename, tensors)
    ids = torch.arange(NUM_IDS)[None] * (config.vocab_size // NUM_IDS)
    ids[:, ::4] = mask_token_id
    return model(ids).logits


def _read_on_demand(
    module: nn.Module, prefix: str, rename: Callable[[str], str], tensors: dict[str, StoredTensor]
) -> None:
    """Let `module`, whose tensors are called `prefix` and their key, read them before it runs, and drop them after."""
    keys = list(module.state_dict())

    def read(*_: Any) -> None:
        module.load_state_dict({key: _load(prefix + key, rename, tensors) for key in keys}, assign=True)

    def drop(*_: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)


def _load(name: str, rename: Callable[[str], str], tensors: dict[str, StoredTensor]) -> Tensor:
    """Read a tensor of the model in float32; a stack of experts from its parts."""
    if not (parts := expert_parts(name)):
        return tensors[rename(name)].load().float()
    experts: list[Tensor] = []
    while parts[0].format(len(experts)) in tensors:
        experts.append(torch.cat([tensors[part.format(len(experts))].load().float() for part in parts]))
    return torch.stack(experts)


def _changed_in_cache(source: Path) -> list[str]:
    """Files whose bytes are not those of the name that the Hub's cache gave them."""
    names = {path: path.resolve().name for path in weight_files(source) if path.is_symlink()}
    return [
        f"The downloaded `{path.name}` has another SHA-256 than on the Hub; delete it from the cache."
        for path, name in names.items()
        if _SHA256.fullmatch(name) and file_digest(path) != name
    ]


def _different_tensors(source: Path, folder: Path) -> list[str]:
    # Whichever of the two names a tensor has.
    theirs = {name_in_memory(name): tensor for name, tensor in stored_tensors(source).items()}
    ours = {name_in_memory(name): tensor for name, tensor in stored_tensors(folder).items()}
    problems = [f"`{name}` is in only one of the two." for name in sorted(theirs.keys() ^ ours.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        before, after = theirs[name], ours[name]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            problems.append(f"`{name}` has another type or shape.")
        elif not _same_bytes(before, after):
            problems.append(f"`{name}` has other bytes.")
    return problems


def _same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    return torch.equal(*(tensor.load().flatten().view(torch.uint8) for tensor in (first, second)))


def _not_finite(folder: Path) -> list[str]:
    return [name for name, tensor in sorted(stored_tensors(folder).items()) if not tensor.load().isfinite().all()]


def _different_code(folder: Path) -> list[str]:
    files = [path for path in code_files(read_config(folder)) if (folder / path.name).is_file()]
    changed = [path.name for path in sorted(files) if not filecmp.cmp(path, folder / path.name, shallow=False)]
    return [f"`{name}` is not this package's." for name in changed]
