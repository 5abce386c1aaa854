"""Puts a byte-level BPE tokenizer into a GGUF file, as llama.cpp's tokenizer `gpt2`."""

import json
from typing import Any

# Rules by which a tokenizer.json splits text before merging -> llama.cpp's name of the same rule.
_PRE_TOKENIZERS = {'{"add_prefix_space": false, "type": "ByteLevel", "use_regex": true}': "gpt-2"}


def add_vocabulary(writer: Any, config: Any, tokenizer: Any, pre_tokenizer: str | None = None) -> None:
    """Add tokens, merges, special ids and the chat template.

    Args:
        writer: a `gguf.GGUFWriter`.
        config: the model's; there are `embedding_size` tokens, those without a text being unused.
        tokenizer: a fast tokenizer.
        pre_tokenizer: llama.cpp's name of the splitting rule; None looks it up.

    Raises:
        ValueError: for a tokenizer that is no byte-level BPE, and a rule without a known name.
    """
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "BPE" or parts["normalizer"] is not None:
        raise ValueError(
            f"A GGUF file takes a byte-level BPE tokenizer without a normalizer, got {parts['model']['type']} with "
            f"{parts['normalizer']}; use a checkpoint with LLaDA's kind of tokenizer."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer or find_pre_tokenizer(parts["pre_tokenizer"]))
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


def find_pre_tokenizer(rule: dict[str, Any] | None) -> str:
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
    from llada_core.tokenization import EOT_TOKEN, missing_tokens

    writer.add_mask_token_id(config.mask_token_id)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if not missing_tokens(tokenizer, [EOT_TOKEN]):
        writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(EOT_TOKEN))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
