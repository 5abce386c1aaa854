"""Prepares a tokenizer for LLaDA: mask and pad tokens, the chat template, and a save that every transformers reads.

LLaDA has no tokenizer class of its own; these functions work on a `PreTrainedTokenizerFast`. The released tokenizers
declare no mask token, and their chat template appends the assistant header even to a finished conversation and does
not mark the assistant's tokens; `chat_template.jinja` beside this file puts both right.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

MASK_TOKEN = "<|mdm_mask|>"
BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
EOT_TOKEN = "<|eot_id|>"
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", EOT_TOKEN)

# Answers follow their prompts, so what fills a batch up stands before them.
PADDING_SIDE = "left"

_MISSING_CHOICES = ("raise", "add", "spell_out")


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, missing: str = "raise") -> PreTrainedTokenizerBase:
    """Declare LLaDA's special tokens on `tokenizer`, attach the chat template, and let it pad on the left, in place.

    A role the tokenizer already fills (another mask, pad, bos or eos token) is left as it is. The pad token becomes
    the eos token where none is set, as in the released checkpoints.

    Args:
        tokenizer: a tokenizer of LLaDA or one trained for it.
        missing: what to do about a token that is not in the vocabulary.
            `"raise"`: raise. `"add"`: add it as a special token; then resize the model's embedding if
            `len(tokenizer)` exceeds it. `"spell_out"`: leave out the three tokens of the chat template, so that
            it is encoded as plain text, which is how LLaDA Base encodes it; the other tokens still raise.

    Returns:
        The same tokenizer.

    Raises:
        ValueError: if `missing` is none of the three, or a token is missing and may not be.

    Example:
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokenizer = PreTrainedTokenizerFast.from_pretrained("tests/reference/checkpoints/mha")
        >>> tokenizer = prepare_tokenizer(tokenizer)
        >>> tokenizer.mask_token
        '<|mdm_mask|>'
    """
    if missing not in _MISSING_CHOICES:
        raise ValueError(f"`missing` must be one of {', '.join(_MISSING_CHOICES)}, got {missing!r}.")
    roles = {"mask_token": MASK_TOKEN, "bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN}
    declared = {role: getattr(tokenizer, role) or token for role, token in roles.items()}
    absent = missing_tokens(tokenizer, [*declared.values(), *CHAT_TOKENS])
    if missing == "spell_out":
        absent = [token for token in absent if token not in CHAT_TOKENS]
    if absent and missing != "add":
        raise ValueError(
            f"`tokenizer` has no {', '.join(f'`{token}`' for token in absent)} in its vocabulary; pass missing='add' "
            "to add what is missing (then call model.resize_token_embeddings(len(tokenizer)) if the model has fewer "
            "rows), or use the tokenizer the checkpoint was trained with."
        )
    if absent:
        tokenizer.add_tokens(absent, special_tokens=True)
    declared["pad_token"] = tokenizer.pad_token or declared["eos_token"]
    tokenizer.add_special_tokens(declared)
    tokenizer.padding_side = PADDING_SIDE
    tokenizer.chat_template = chat_template()
    return tokenizer


def chat_template() -> str:
    """Return LLaDA's chat template as Jinja text.

    It differs from the released one in two points: the assistant header is appended only if `add_generation_prompt`
    is set, and an assistant's answer with its closing `<|eot_id|>` stands between `{% generation %}` markers, so that
    `return_assistant_tokens_mask` works.
    """
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def missing_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str] | tuple[str, ...]) -> list[str]:
    """Return those of `tokens` that are not in the tokenizer's vocabulary, in order."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in tokens if token not in vocabulary]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Encode a conversation so that the assistant is next to speak.

    Args:
        tokenizer: a tokenizer that went through `prepare_tokenizer`.
        messages: dicts with the keys `role` and `content`, oldest first.

    Returns:
        Token ids, ending with the assistant header.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save `tokenizer` into `folder` so that transformers 4.57 and 5 both load it.

    transformers 5 names a class in `tokenizer_config.json`, and writes the extra special tokens in a form, that
    4.57 cannot read; both are replaced by what the two understand. Whoever loads it pads prompts on the left.

    Args:
        tokenizer: a fast tokenizer.
        folder: made if it does not exist; other files in it stay.

    Raises:
        ValueError: if `tokenizer` is not a fast tokenizer.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"`tokenizer` must be a fast tokenizer, got {type(tokenizer).__name__}; "
            "load it with PreTrainedTokenizerFast.from_pretrained."
        )
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": PADDING_SIDE}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = extra
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
