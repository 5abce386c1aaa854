"""Writes a GGUF file of the LLaDA architecture as llama.cpp reads it.

Names and metadata are those of llama.cpp's own converter; the `gguf` package knows the tensor names.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llada_core.hub import fetch_checkpoint
from llada_core.loading import load_model, load_tokenizer
from llada_core.tokenization import missing_tokens, special_tokens
from modeling_llada import LLaDAMoEConfig
from modeling_llada.llama_layout_llada import HEAD_NAME, name_in_file

from .folders import full_disk_named
from .official import read_config
from .runtimes import require_packages

# The number of an expert in a tensor's name.
_EXPERT = re.compile(r"(?<=\.experts)\.\d+\.")
WEIGHTS = ("f32", "f16", "q8_0")
# Regular expressions, as tokenizer.json files write them, by which a text is split in turn before merging, and whether
# a whole word that is a token skips the merges -> llama.cpp's name of the same rule.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_LLAMA3.replace("{1,3}", ""),), False): "qwen2",
    ((_BAILING,), False): "bailingmoe",
}
# The rule of the bundled model: digits one by one, the rest as GPT-2. It differs from `_DIGIT` before `_GPT2` only for
# several spaces in front of a digit, where it splits off the last one.
_DIGITS_IN_PLACE = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


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
            merging. None looks it up in a table (GPT-2, SmolLM, Llama 3, Qwen2, Bailing).
        force: replace `target`.
        revision: branch, tag or commit of a Hub id.

    Returns:
        The file.

    Raises:
        ValueError: for unknown weights, a checkpoint that is not LLaDA or is quantised, a tokenizer that is not
            byte-level BPE or splits by a rule without a known name.
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
    check_variant(config)
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


def find_pre_tokenizer(tokenizer: Any) -> str:
    """Return llama.cpp's name of the rule by which a tokenizer splits text before merging.

    Args:
        tokenizer: a fast tokenizer, byte-level BPE.

    Raises:
        ValueError: for a rule whose name is not known here.

    Source: llama.cpp, `llama-vocab.cpp`, the regular expressions of each `LLAMA_VOCAB_PRE_TYPE`.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    patterns = _split_patterns(parts["pre_tokenizer"])
    if patterns == (_DIGITS_IN_PLACE,) and not _has_token_of_spaces(tokenizer):
        patterns = (_DIGIT, _GPT2)
    name = _PRE_TOKENIZERS.get((patterns, bool(parts["model"].get("ignore_merges"))))
    if name is None:
        raise ValueError(
            "`pre_tokenizer` must be given: this tokenizer splits text by a rule whose name in llama.cpp is not known "
            f"here, {json.dumps(parts['pre_tokenizer'])}. Pass --pre-tokenizer NAME, a name of llama.cpp's list that "
            "splits alike."
        )
    return name


def _split_patterns(rule: dict[str, Any] | None) -> tuple[str, ...]:
    """The regular expressions by which a tokenizer.json's `pre_tokenizer` splits in turn; "?" for what is none."""
    match rule or {}:
        case {"type": "Sequence", "pretokenizers": rules}:
            return tuple(pattern for part in rules for pattern in _split_patterns(part))
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (_DIGIT,)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses_regex}:
            return (_GPT2,) if uses_regex else ()
    return ("?",)


def _has_token_of_spaces(tokenizer: Any) -> bool:
    """Whether a token is several white-space characters and nothing else."""
    texts = map(tokenizer.backend_tokenizer.decoder.decode, ([token] for token in tokenizer.get_vocab()))
    return any(len(text) > 1 and text.isspace() for text in texts)


def _write(
    path: Path,
    name: str,
    config: Any,
    tokenizer: Any,
    state_dict: dict[str, Tensor],
    weights: str,
    pre_tokenizer: str | None,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(config)])
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
    if has_experts(config):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.expert_intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.embedding_size)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)


def has_experts(config: Any) -> bool:
    """Whether a config is LLaDA-MoE's."""
    return isinstance(config, LLaDAMoEConfig)


def _architecture(config: Any) -> Any:
    import gguf

    return gguf.MODEL_ARCH.LLADA_MOE if has_experts(config) else gguf.MODEL_ARCH.LLADA


def check_variant(config: Any) -> None:
    """Refuse what llama.cpp's `llada-moe` does not compute.

    Raises:
        ValueError: naming the field of the config.
    """
    if not has_experts(config):
        return
    expected = {
        "qk_layernorm": True,
        "clip_qkv": None,
        "moe_router_enable_expert_bias": False,
        "shared_expert_intermediate_size": None,
        "partial_rotary_factor": 1,
        "moe_layer_freq": [1] * config.num_hidden_layers,
    }
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"`{name}` must be {value!r} for a GGUF file, got {getattr(config, name)!r}: llama.cpp's llada-moe "
                "does not compute that variant."
            )


def _tensors(config: Any, state_dict: dict[str, Tensor], weights: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, data and type of every tensor; a tied head is left out, for llama.cpp then takes the embedding."""
    import gguf

    names = gguf.get_tensor_name_map(_architecture(config), config.n_layers)
    num_heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    if has_experts(config):  # whose rotary embedding is ours
        num_heads, state_dict = {}, _stacked_experts(state_dict)
    for name, tensor in state_dict.items():
        if config.weight_tying and name == HEAD_NAME and not has_experts(config):
            continue
        projection = name.split(".")[-2]
        if projection in num_heads:
            tensor = interleave_pairs(tensor, num_heads[projection])
        new_name = names.get_name(name, try_suffixes=(".weight",))
        assert new_name is not None, name  # the map knows every tensor of a LLaDA
        yield new_name, *_encode(tensor.to(torch.float32).numpy(), weights)


def _stacked_experts(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released names, and one tensor for each of the three matrices of a layer's experts; [experts, rows, columns]."""
    stacks: dict[str, Any] = {}
    for name, tensor in state_dict.items():
        stored = name_in_file(name)
        if ".mlp.experts." not in name:
            stacks[stored] = tensor
        elif name.endswith("gate_up_proj"):
            stem = stored.removesuffix("gate_up_proj")
            stacks[f"{stem}gate_proj.weight"], stacks[f"{stem}up_proj.weight"] = tensor.chunk(2, dim=1)
        elif name.endswith("down_proj"):
            stacks[f"{stored}.weight"] = tensor
        else:  # transformers 4 keeps experts apart
            stacks.setdefault(_EXPERT.sub(".", stored), []).append(tensor)
    return {name: torch.stack(part) if isinstance(part, list) else part for name, part in stacks.items()}


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
    writer.add_tokenizer_pre(pre_tokenizer or find_pre_tokenizer(tokenizer))
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


def _add_special_ids(writer: Any, config: Any, tokenizer: Any) -> None:
    writer.add_mask_token_id(config.mask_token_id)
    # llama.cpp puts it before every text if this is set, and its default is to do so.
    writer.add_add_bos_token(tokenizer.bos_token_id in tokenizer("a")["input_ids"])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (token_id := getattr(tokenizer, name)) is not None:
            getattr(writer, f"add_{name}")(token_id)
    end_of_turn = special_tokens(tokenizer).end_of_turn
    if end_of_turn is not None and not missing_tokens(tokenizer, [end_of_turn]):
        writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(end_of_turn))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
