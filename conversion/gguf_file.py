"""Writes a GGUF file of the LLaDA architecture as llama.cpp reads it.

Names and metadata are those of llama.cpp's own converter; the `gguf` package knows the tensor names.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llada_core.loading import load_model, load_tokenizer
from modeling_llada import LLaDAConfig

from .gguf_vocabulary import add_vocabulary
from .hub import fetch_checkpoint
from .official import read_config
from .optimum_support import require_packages

WEIGHTS = ("f32", "f16", "q8_0")
_HEAD = "model.transformer.ff_out.weight"


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
        ValueError: for unknown weights, a checkpoint that is no LLaDA, a tokenizer that is no byte-level BPE or splits
            by a rule without a known name.
        ImportError: if `gguf` is not installed.
        OSError: for a source that is not there and a target that is.

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
    add_vocabulary(writer, config, tokenizer, pre_tokenizer)
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
        if config.weight_tying and name == _HEAD:
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
