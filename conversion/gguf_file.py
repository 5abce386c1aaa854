"""Writes a GGUF file of the LLaDA architecture as llama.cpp reads it.

Names and metadata are those of llama.cpp's own converter; the `gguf` package knows the tensor names.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llada_core.hub import fetch_checkpoint
from llada_core.loading import load_model, load_tokenizer
from llada_core.tokenization import EOT_TOKEN, missing_tokens
from modeling_llada import LLaDAConfig

from .folders import full_disk_named
from .official import read_config
from .runtimes import require_packages
from .weights import HEAD_NAME

WEIGHTS = ("f32", "f16", "q8_0")
# Rules by which a tokenizer.json splits text before merging -> llama.cpp's name of the same rule.
_PRE_TOKENIZERS = {'{"add_prefix_space": false, "type": "ByteLevel", "use_regex": true}': "gpt-2"}


def export_gguf(
    source: str | Path,
    target: str | Path,
    weights: str = "f16",
    pre_tokenizer: str | None = None,
    force: bool = False,
    revision: str | None = None,
) -> Path:
    """Write a GGUF file.

    Args:
        source: a folder or a Hub id.
        target: the file to make; it appears when it is complete.
        weights: type of the matrices: `f32`, `f16` or `q8_0` (8 bits, one scale for 32 weights; a matrix whose width
            32 does not divide is f16). Norms are always f32.
        pre_tokenizer: llama.cpp's name (`tokenizer.ggml.pre`) of the rule by which the tokenizer splits text before
            merging. None looks it up; only GPT-2's is known here.
        force: replace `target`.
        revision: branch, tag or commit of a Hub id.

    Returns:
        The file.

    Raises:
        ValueError: for unknown weights, a checkpoint that is not LLaDA, a tokenizer that is not byte-level BPE or
            splits by a rule without a known name.
        ImportError: if `gguf` is not installed.
        OSError: for a source that is not there, a target that is, and a full disk.

    Source: llama.cpp, conversion of `LLaDAModelLM`; `gguf` 0.19, `MODEL_ARCH.LLADA`.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(WEIGHTS)}, got {weights!r}.")
    require_packages(["gguf"], extra="gguf")
    folder, target = fetch_checkpoint(source, revision), Path(target)
    if target.exists() and not (force and target.is_file()):
        raise FileExistsError(f"`{target}` exists; name another file, or pass `--force` to replace a file.")
    config = read_config(folder)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with full_disk_named(target.parent):
            _write(partial, folder.name, config, tokenizer, model.state_dict(), weights, pre_tokenizer)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def interleave_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a query or key projection for llama.cpp's rotary embedding.

    It turns the neighbours (2i, 2i + 1) of a head where LLaDA turns (i, i + head_dim / 2).

    Args:
        weight: [num_heads * head_dim, width].
        num_heads: heads of this projection.
    """
    halves = weight.unflatten(0, (num_heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape)


def _write(
    path: Path,
    name: str,
    config: LLaDAConfig,
    tokenizer: Any,
    state_dict: dict[str, Tensor],
    weights: str,
    pre_tokenizer: str | None,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLADA])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    _add_sizes(writer, config, weights)
    _add_vocabulary(writer, config, tokenizer, pre_tokenizer)
    # The header names all tensors, so they are made twice: once for their sizes, then one by one for their bytes.
    for tensor_name, array, kind in _tensors(config, state_dict, weights):
        writer.add_tensor_info(tensor_name, array.shape, array.dtype, array.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array, _ in _tensors(config, state_dict, weights):
        writer.write_tensor_data(array)
    writer.close()


def _add_sizes(writer: Any, config: Any, weights: str) -> None:
    import gguf

    file_types = gguf.LlamaFileType
    kinds = {"f32": file_types.ALL_F32, "f16": file_types.MOSTLY_F16, "q8_0": file_types.MOSTLY_Q8_0}
    writer.add_file_type(kinds[weights])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_sequence_length)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.mlp_hidden_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.d_model // config.n_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.embedding_size)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)


def _tensors(config: Any, state_dict: dict[str, Tensor], weights: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, data and type of every tensor; a tied head is left out, for llama.cpp then takes the embedding."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLADA, config.n_layers)
    num_heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    for name, tensor in state_dict.items():
        if config.weight_tying and name == HEAD_NAME:
            continue
        projection = name.split(".")[-2]
        if projection in num_heads:
            tensor = interleave_pairs(tensor, num_heads[projection])
        new_name = names.get_name(name, try_suffixes=(".weight",))
        assert new_name is not None, name  # the map knows every tensor of a LLaDA
        yield new_name, *_encode(tensor.to(torch.float32).numpy(), weights)


def _encode(array: np.ndarray, weights: str) -> tuple[np.ndarray, Any]:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if array.ndim == 1 or weights == "f32":
        return array, kinds.F32
    if weights == "q8_0" and array.shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0] == 0:
        return gguf.quants.quantize(array, kinds.Q8_0), kinds.Q8_0
    return array.astype(np.float16), kinds.F16


def _add_vocabulary(writer: Any, config: Any, tokenizer: Any, pre_tokenizer: str | None = None) -> None:
    """Add tokens, merges, special ids and the chat template.

    There are `embedding_size` tokens, those without a text being unused.

    Raises:
        ValueError: for a tokenizer that is not byte-level BPE.
    """
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "BPE" or parts["normalizer"] is not None:
        raise ValueError(
            f"A GGUF file takes a byte-level BPE tokenizer without a normalizer, got {parts['model']['type']} with "
            f"{parts['normalizer']}; use a checkpoint with LLaDA's kind of tokenizer."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer or _find_pre_tokenizer(parts["pre_tokenizer"]))
    texts = {token_id: text for text, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = []
    for token_id in range(config.embedding_size):
        if token_id not in texts:
            kinds.append(gguf.TokenType.UNUSED)
        elif token_id not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if added[token_id].special else gguf.TokenType.USER_DEFINED)
    writer.add_token_list([texts.get(token_id, f"[PAD{token_id}]") for token_id in range(config.embedding_size)])
    writer.add_token_types(kinds)
    # A merge is written as one text or as a pair, by the age of the file.
    merges = parts["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_special_ids(writer, config, tokenizer)


def _find_pre_tokenizer(rule: dict[str, Any] | None) -> str:
    """Return llama.cpp's name of a tokenizer.json's `pre_tokenizer`.

    Raises:
        ValueError: for a rule whose name is not known here.
    """
    key = json.dumps({name: value for name, value in (rule or {}).items() if name != "trim_offsets"}, sort_keys=True)
    if key not in _PRE_TOKENIZERS:
        raise ValueError(
            "`pre_tokenizer` must be given: this tokenizer splits text by a rule whose name in llama.cpp is not known "
            f"here, {key}. Pass --pre-tokenizer NAME, a name of llama.cpp's list that splits alike."
        )
    return _PRE_TOKENIZERS[key]


def _add_special_ids(writer: Any, config: Any, tokenizer: Any) -> None:
    writer.add_mask_token_id(config.mask_token_id)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (token_id := getattr(tokenizer, name)) is not None:
            getattr(writer, f"add_{name}")(token_id)
    if not missing_tokens(tokenizer, [EOT_TOKEN]):
        writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(EOT_TOKEN))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
