"""Prepares a tokenizer for LLaDA: mask and pad tokens, the chat template, and a save that every transformers reads.

LLaDA has no tokenizer class of its own; these functions work on a `PreTrainedTokenizerFast`. The released tokenizers
declare no mask token, and their chat template appends the assistant header even to a finished conversation and does
not mark the assistant's tokens; `chat_template.jinja` beside this file puts both right. The tokenizers of LLaDA-MoE and
iLLaDA are known by their mask token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

MASK_TOKEN = "<|mdm_mask|>"
BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
EOT_TOKEN = "<|eot_id|>"
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", EOT_TOKEN)

# Answers follow their prompts, so what fills a batch up stands before them.
PADDING_SIDE = "left"


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens of one kind of LLaDA.

    Attributes:
        mask: the mask token.
        bos: token that begins a text, if there is one.
        eos: token that ends a text; None leaves the tokenizer's own.
        end_of_turn: token that ends a turn of a conversation, if one is known.
        chat: tokens of the chat template.
        template: the template's file beside this one; None leaves the tokenizer's own.
    """

    mask: str
    bos: str | None = None
    eos: str | None = None
    end_of_turn: str | None = None
    chat: tuple[str, ...] = ()
    template: str | None = None


LLADA = SpecialTokens(MASK_TOKEN, BOS_TOKEN, EOS_TOKEN, EOT_TOKEN, CHAT_TOKENS, "chat_template.jinja")
# LLaDA-MoE; also the format of LLaDA2, in whose tests it stands.
LLADA_MOE = SpecialTokens(
    "<|mask|>", None, EOS_TOKEN, "<|role_end|>", ("<role>", "</role>", "<|role_end|>"), "chat_template_roles.jinja"
)
# Neither its end of turn nor its template has been seen; a tokenizer keeps what it has.
ILLADA = SpecialTokens("<[MASK]>")

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
    kind = special_tokens(tokenizer)
    roles = {"mask_token": kind.mask, "bos_token": kind.bos, "eos_token": kind.eos}
    tokens = {role: getattr(tokenizer, role) or token for role, token in roles.items()}
    declared: dict[str, str] = {role: token for role, token in tokens.items() if token is not None}
    absent = missing_tokens(tokenizer, [*declared.values(), *kind.chat])
    if missing == "spell_out":
        absent = [token for token in absent if token not in kind.chat]
    if absent and missing != "add":
        raise ValueError(
            f"`tokenizer` has no {', '.join(f'`{token}`' for token in absent)} in its vocabulary; pass missing='add' "
            "to add what is missing (then call model.resize_token_embeddings(len(tokenizer)) if the model has fewer "
            "rows), or use the tokenizer the checkpoint was trained with."
        )
    if absent:
        tokenizer.add_tokens(absent, special_tokens=True)
    pad = tokenizer.pad_token or declared.get("eos_token")
    tokenizer.add_special_tokens(declared if pad is None else {**declared, "pad_token": pad})
    tokenizer.padding_side = PADDING_SIDE
    if kind.template is not None:
        tokenizer.chat_template = chat_template(kind)
    return tokenizer


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Return the special tokens of the kind of LLaDA that a tokenizer belongs to; LLaDA's own unless it is another."""
    return next((kind for kind in (LLADA, LLADA_MOE, ILLADA) if not missing_tokens(tokenizer, [kind.mask])), LLADA)


def chat_template(kind: SpecialTokens = LLADA) -> str:
    """Return the chat template of one kind of LLaDA as Jinja text.

    It differs from the released one in two points: the assistant header is appended only if `add_generation_prompt`
    is set, and an assistant's answer with its closing `<|eot_id|>` stands between `{% generation %}` markers, so that
    `return_assistant_tokens_mask` works.
    """
    assert kind.template is not None
    return Path(__file__).with_name(kind.template).read_text(encoding="utf-8")


def missing_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str] | tuple[str, ...]) -> list[str]:
    """Return those of `tokens` that are not in the tokenizer's vocabulary, in order."""
    # Looked up one by one: `get_vocab` copies the whole vocabulary, and every answer that is decoded asks.
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    return [t for t, token_id in zip(tokens, ids) if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != t]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Encode a conversation so that the assistant is next to speak.

    Args:
        tokenizer: a tokenizer that went through `prepare_tokenizer`.
        messages: dicts with the keys `role` and `content`, oldest first.

    Returns:
        Token ids, ending with the assistant header.

    Raises:
        ValueError: for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no `chat_template`, which marks the turns of a conversation; give plain prompts, or "
            "save the checkpoint's chat_template.jinja beside its tokenizer.json."
        )
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
