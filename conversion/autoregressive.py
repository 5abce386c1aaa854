"""Converts a Llama-style autoregressive checkpoint to LLaDA: the same weights, no causal mask, a mask token."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from llada_core.hub import CHECKPOINT_FILES, DESCRIPTIONS, fetch_checkpoint
from llada_core.loading import complete_options, parse_dtype
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.llama_layout_llada import name_in_memory

from .folders import check_space, check_target, complete_folder
from .official import licence_texts
from .runtimes import require_packages

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SUPPORTED_TYPES = ("llama", "mistral")
# Relatives of Llama, and what LLaDA lacks for them.
REFUSED_TYPES = {
    "qwen2": "its queries, keys and values have biases (`qkv_bias`)",
    "qwen3": "its queries and keys are normalised (`q_norm`, `k_norm`)",
    "llada": "it is a LLaDA checkpoint already",
}
# Fields that change the computation, with the values that LLaDA computes; None is unset.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
# The same for the rotary embedding.
SUPPORTED_ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", None),
    "type": ("default", None),  # the older spelling
    "partial_rotary_factor": (1.0, None),
}


def convert_autoregressive(
    source: str | Path,
    target: str | Path,
    *,
    gguf_file: Optional[str] = None,
    dtype: str = "auto",
    mask_token: Optional[str] = None,
    init_from: Optional[str] = None,
    force: bool = False,
) -> Path:
    """Convert a Llama or Mistral checkpoint to LLaDA.

    All weights stay as they are, and so does the tie of embedding and head: with a causal mask put back (a 4-D
    `attention_mask`), the result computes the source's logits. They are not shifted either: the source's output at
    position i predicts token i + 1, a LLaDA's predicts token i. So the result has yet to be trained
    (`llada train pretrain`) before it can unmask.

    The tokenizer gets a mask token, the tokens of LLaDA's chat template and the template itself, in place of the
    source's. Tokens that the source does not have get a row of the embedding and of the head. Licence texts are copied.

    Args:
        source: folder or Hub id of a checkpoint with its tokenizer.
        target: folder to make.
        gguf_file: name of a GGUF file in `source`, which is dequantised.
        dtype: data type of the new weights, one of `llada_core.loading.DTYPES`; `auto` is the source's, float32 for
            GGUF.
        mask_token: text of the mask token; one that the vocabulary holds keeps its row. None: the token that the
            tokenizer declares, else `<|mdm_mask|>`.
        init_from: token whose rows the new tokens start from. None: the mean of all tokens' rows.
        force: replace the checkpoint in `target`.

    Returns:
        `target`.

    Raises:
        ValueError: for a source of another kind, with a field that LLaDA does not compute, with missing, extra or
            wrongly shaped tensors (all are listed) or a file that is cut off, for licence texts that are links out
            of the folder, and for options that cannot work.
        FileExistsError: if `target` exists and may not be replaced.
        OSError: if `source` cannot be read, or `target` not be written, for want of space for instance.

    Not handled: scaled rotary embeddings, sliding windows, biases, quantised weights other than GGUF.
    """
    weight_dtype = parse_dtype("float32" if gguf_file and dtype == "auto" else dtype)
    check_target(target, force)
    folder = fetch_checkpoint(source, files=CHECKPOINT_FILES if gguf_file is None else (*DESCRIPTIONS, gguf_file))
    check_target(target, force, source=folder)
    texts = licence_texts(folder)
    if gguf_file is not None:
        _check_gguf(folder, gguf_file)
    source_config = read_source_config(folder, gguf_file)
    tokenizer, new_ids = _load_tokenizer(folder, gguf_file, mask_token)
    init_id = None if init_from is None else _known_id(tokenizer, init_from, new_ids)
    weights = _load_weights(folder, gguf_file, weight_dtype)
    for name in (EMBEDDING, HEAD):
        weights[name] = add_rows(weights[name], new_ids, init_id)
    config = llada_config(source_config, tokenizer, weights[EMBEDDING].shape[0])
    model = _build_model(config, {name_in_memory(name): tensor for name, tensor in weights.items()})
    model.generation_config = complete_options(model.generation_config, tokenizer)
    check_space(target, sum(parameter.nbytes for parameter in model.parameters()))
    with complete_folder(target, force) as scratch:
        model.save_pretrained(scratch)
        save_tokenizer(tokenizer, scratch)
        for text in texts:
            shutil.copyfile(text, scratch / text.name)
    return Path(target)


def add_rows(matrix: Tensor, new_ids: list[int], init_id: Optional[int] = None) -> Tensor:
    """Give new tokens their rows of an embedding or a head.

    Args:
        matrix: one row per token, then perhaps unused ones; [rows, width].
        new_ids: ids of the new tokens; they follow the known ids without a gap, and may lie in unused rows.
        init_id: token whose row they get. None: the mean of the rows before the first new token.

    Returns:
        [max(rows, last new id + 1), width], in the dtype of `matrix`.

    Raises:
        ValueError: if there are fewer rows than known tokens.
    """
    if not new_ids:
        return matrix
    if min(new_ids) > len(matrix):
        raise ValueError(
            f"The tokenizer has {min(new_ids)} tokens, but the embedding only {len(matrix)} rows; put the tokenizer "
            "it was trained with beside the weights."
        )
    row = matrix[: min(new_ids)].float().mean(0) if init_id is None else matrix[init_id]
    num_missing = max(0, max(new_ids) + 1 - matrix.shape[0])
    grown = torch.cat([matrix, matrix.new_empty(num_missing, matrix.shape[1])])
    grown[new_ids] = row.to(matrix.dtype)
    return grown


def read_source_config(source: Path, gguf_file: Optional[str] = None) -> Any:
    """Read the configuration of the checkpoint in the folder `source` and refuse what cannot become LLaDA.

    Raises:
        ValueError: for another kind of model, and for a field that LLaDA does not compute; both are named.
        OSError: if there is no configuration.
    """
    fields, _ = PretrainedConfig.get_config_dict(source, gguf_file=gguf_file)
    if not fields:
        raise OSError(f"`{source}` has no `config.json`; name the folder of a checkpoint, or a GGUF file in it.")
    model_type = fields.get("model_type")
    if model_type not in SUPPORTED_TYPES:
        reason = REFUSED_TYPES.get(model_type, "only the layers of Llama are known to be LLaDA's")
        raise ValueError(
            f"`{source}` has the `model_type` {model_type!r}, which cannot be converted: {reason}; choose a "
            f"checkpoint of type {' or '.join(SUPPORTED_TYPES)}."
        )
    config = CONFIG_MAPPING[model_type].from_dict(fields)
    _check_fields(config)
    return config


def llada_config(source: Any, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> LLaDAConfig:
    """Translate a configuration that `read_source_config` accepted.

    Args:
        source: the Llama or Mistral configuration.
        tokenizer: the new model's tokenizer; it gives the token ids.
        num_rows: rows of the new embedding.
    """
    return LLaDAConfig(
        d_model=source.hidden_size,
        n_layers=source.num_hidden_layers,
        n_heads=source.num_attention_heads,
        n_kv_heads=source.num_key_value_heads,
        mlp_hidden_size=source.intermediate_size,
        vocab_size=len(tokenizer),
        embedding_size=num_rows,
        max_sequence_length=source.max_position_embeddings,
        rope_theta=_rope(source)["rope_theta"],
        rms_norm_eps=source.rms_norm_eps,
        weight_tying=source.tie_word_embeddings,
        init_fn="normal",
        init_std=source.initializer_range,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        is_untrained=True,  # generation warns of it, training takes it away
    )


def _check_gguf(folder: Path, gguf_file: str) -> None:
    if not (folder / gguf_file).is_file():
        raise FileNotFoundError(f"`gguf_file` must be a file in `{folder}`, got {gguf_file!r}, which does not exist.")
    require_packages(["gguf"], extra="gguf", user="`gguf_file`")
    try:
        import_module("gguf").GGUFReader(folder / gguf_file)
    except Exception as error:  # what it raises depends on where the file ends
        raise ValueError(f"`{gguf_file}` is cut off or not a GGUF file ({error}); download it again.") from error


def _load_tokenizer(
    source: Path, gguf_file: Optional[str], mask_token: Optional[str]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Load the tokenizer and prepare it for LLaDA; also return the ids of the tokens that were added."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower for a corrupt file
        raise ValueError(
            f"The tokenizer of `{source}` cannot be loaded ({error}); put the one it was trained with beside it."
        ) from error
    known = set(tokenizer.get_vocab().values())
    if mask_token is not None:
        tokenizer.mask_token = mask_token
    prepare_tokenizer(tokenizer, missing="add")
    return tokenizer, sorted(set(tokenizer.get_vocab().values()) - known)


def _known_id(tokenizer: PreTrainedTokenizerBase, token: str, new_ids: list[int]) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None or token_id in new_ids:
        raise ValueError(f"`init_from` must be a token of the source's vocabulary, got {token!r}; leave it out.")
    return token_id


def _load_weights(source: Path, gguf_file: Optional[str], dtype: Any) -> dict[str, Tensor]:
    """Load the source's tensors under its own names; every one must be there, known, and of the right shape."""
    options: dict[str, Any] = {"gguf_file": gguf_file, "trust_remote_code": False, "dtype": dtype}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"The weights of `{source}` cannot be loaded ({error}): a file is cut off or corrupt; download it again."
        ) from error
    weights = model.state_dict()
    # transformers 5 gives the shape found; 4.57 only the name.
    misshapen = [
        (key, "") if isinstance(key, str) else (key[0], f"is {[*key[1]]}, ") for key in report["mismatched_keys"]
    ]
    problems = [f"`{name}` is missing" for name in sorted(report["missing_keys"])]
    problems += [f"`{name}` is not part of the model" for name in sorted(report["unexpected_keys"])]
    problems += [f"`{name}` {found}must be {[*weights[name].shape]}" for name, found in sorted(misshapen)]
    if problems:
        raise ValueError(
            f"The weights of `{source}` do not fit its config.json: {'; '.join(problems)}. Download the checkpoint "
            "again, or correct the config."
        )
    return weights


def _build_model(config: LLaDAConfig, weights: dict[str, Tensor]) -> LLaDAModelLM:
    """Make the model around the tensors, without a copy."""
    with torch.device("meta"):
        model = LLaDAModelLM(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _check_fields(config: Any) -> None:
    fields = {name: (getattr(config, name, None), values) for name, values in SUPPORTED_VALUES.items()}
    fields |= {name: (_rope(config).get(name), values) for name, values in SUPPORTED_ROPE.items()}
    head_dim = config.hidden_size // config.num_attention_heads
    fields["head_dim"] = (getattr(config, "head_dim", None), (head_dim, None))
    for name, (value, supported) in fields.items():
        if value not in supported:
            raise ValueError(
                f"`{name}` of this {config.model_type} checkpoint must be {supported[0]!r}, got {value!r}: LLaDA does "
                "not compute that variant; choose another checkpoint."
            )


def _rope(config: Any) -> dict[str, Any]:
    """The rotary embedding's parameters: one mapping in transformers 5, two fields in 4.57."""
    if hasattr(config, "rope_parameters"):
        return config.rope_parameters
    return {"rope_theta": config.rope_theta, **(getattr(config, "rope_scaling", None) or {})}
