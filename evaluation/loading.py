"""Loads the checkpoint that is to be evaluated, with its tokenizer."""

import os
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from llada_core.tokenization import prepare_tokenizer
from modeling_llada import LLaDAConfig, LLaDAModelLM

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    pretrained: str | os.PathLike[str] | None, revision: str, dtype: str, device: torch.device
) -> tuple[Any, Any]:
    """Load a checkpoint with the installed classes; code that lies beside the weights does not run.

    Args:
        pretrained: folder or Hub id. None is the bundled model.
        revision: branch, tag or commit on the Hub.
        dtype: one of `DTYPES`; `auto` is the checkpoint's.
        device: where the model computes.

    Returns:
        The model, ready to evaluate, and its tokenizer.

    Raises:
        ValueError: for an unknown `dtype`, and a checkpoint that is not LLaDA, is incomplete, or whose tokenizer is
            another model's.
        OSError: for a folder or a Hub id that does not exist or cannot be reached.

    Not handled: exported models; load one with `llada_conversion.load_exported` and pass it as an object.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    name = _bundled_model() if pretrained is None else os.path.expanduser(os.fspath(pretrained))
    model_type = LLaDAConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    if model_type != LLaDAConfig.model_type:
        raise ValueError(
            f"`pretrained` must name a LLaDA checkpoint, but `{name}` has the `model_type` {model_type!r}; evaluate "
            "others with the harness's own model classes, such as `hf`."
        )
    model, report = LLaDAModelLM.from_pretrained(
        name, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"The weights of `{name}` lack {len(missing)} tensors, such as `{missing[0]}`.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
    return model.to(device).eval(), prepare_for(model, tokenizer)


def prepare_for(model: Any, tokenizer: Any) -> Any:
    """Declare LLaDA's special tokens and chat template on `tokenizer`, in place, and check that it fits.

    Raises:
        ValueError: if it has another mask token than the model.
    """
    prepare_tokenizer(tokenizer, missing="spell_out")
    if tokenizer.mask_token_id != model.config.mask_token_id:
        raise ValueError(
            f"`tokenizer` must have the model's mask token ({model.config.mask_token_id}), got "
            f"{tokenizer.mask_token_id}; use the tokenizer this checkpoint was trained with."
        )
    return tokenizer


def _bundled_model() -> str:
    from llada_checkpoints import BUNDLED_MODEL

    return str(BUNDLED_MODEL)
