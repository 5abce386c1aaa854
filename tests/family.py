"""Released folders of LLaDA's relatives as small as the recorded ones, with a tokenizer of their tokens."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import REFERENCE

FAMILY = REFERENCE / "family"
KINDS = ("illada", "moe", "moe_variant")
VOCABULARY_SIZE = 320
_ROLES = {315: "<|role_end|>", 316: "<|endoftext|>", 317: "<role>", 318: "</role>", 319: "<|mask|>"}
_TOKENS = {"illada": {0: "<s>", 2: "</s>", 5: "<[MASK]>"}, "moe": _ROLES, "moe_variant": _ROLES}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens of a kind; like the released ones, it declares no mask."""
    special = _TOKENS[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordinary = [*alphabet, alphabet[0] + alphabet[1], *(f"unused{i}" for i in range(VOCABULARY_SIZE))]
    free = [i for i in range(VOCABULARY_SIZE) if i not in special]
    vocabulary = {token: i for i, token in special.items()} | dict(zip(ordinary, free))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(alphabet[0], alphabet[1])]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    eos = "</s>" if kind == "illada" else "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, additional_special_tokens=list(special.values())
    )


def released_folder(kind: str, folder: Path) -> Path:
    """Write a folder as the authors released it: config, weights, tokenizer."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FAMILY / kind / name, folder / name)
    make_tokenizer(kind).save_pretrained(folder)
    return folder
