"""LoRA on LLaDA: the layers that get an adapter, the options of the command line, merging it into a whole model."""

import os
from dataclasses import dataclass
from typing import Any, Optional

import torch
from transformers import BitsAndBytesConfig

from llada_core.loading import load_model

from .diffusion_trainer import SAVE_DTYPES, option

# Linear layers of a block, in the order of the forward pass. LLaDA-MoE has them all in dense layers, and those of
# attention in every layer.
BLOCK_LAYERS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
SHARED_EXPERT = r"shared_expert\.(gate_proj|up_proj|down_proj)"
HEAD = "model.transformer.ff_out"


def target_modules(layers: tuple[str, ...] | list[str] = BLOCK_LAYERS) -> str:
    """Pattern for `LoraConfig(target_modules=…)` that names `layers` of every block.

    A plain list of names would not do: the head is called `ff_out` too, and an adapter there is refused by TRL.
    """
    return rf".*\.blocks\.\d+\.({'|'.join(layers)})"


# All layers that every token passes through. Experts get no adapter: each sees a few tokens, and transformers 5 holds
# their matrices in one stack (PEFT's `target_parameters` reaches it).
LORA_TARGET_MODULES = target_modules((*BLOCK_LAYERS, SHARED_EXPERT))


def complete_adapter(config: Any) -> None:
    """Fill in what a config of PEFT leaves open: the layers of LoRA, and the task, by which AutoPeftModel loads it.

    A list of names with `ff_out` means the layer of the blocks, and leaves out the head of that name.

    Args:
        config: any `PeftConfig`; changed in place, as PEFT itself does for the models that it knows.
    """
    if config.peft_type == "LORA" and config.target_modules is None:
        config.target_modules = LORA_TARGET_MODULES
    names = getattr(config, "target_modules", None)
    if isinstance(names, (list, set)) and "ff_out" in names and getattr(config, "exclude_modules", HEAD) is None:
        config.exclude_modules = [HEAD]
    if config.task_type is None:
        config.task_type = "CAUSAL_LM"


@dataclass
class AdapterOptions:
    """Options of `llada train sft` for LoRA, named as in TRL's `ModelConfig`; none applies without `use_peft`.

    Raises:
        ValueError: if a value is out of range, or given without `use_peft`.

    Source: LoRA (arXiv:2106.09685), rank-stabilised LoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353), QLoRA
    (arXiv:2305.14314).
    Not handled: other methods of PEFT; pass their config to `LLaDASFTTrainer(peft_config=…)`.
    """

    use_peft: bool = option(False, "Train a LoRA adapter; the model's own weights stay.")
    lora_r: int = option(16, "Rank of the adapter's matrices.")
    lora_alpha: int = option(32, "The adapter's output is scaled by lora_alpha / lora_r.")
    lora_dropout: float = option(0.05, "Dropout before the adapter.")
    lora_target_modules: Optional[list[str]] = option(
        None, f"Layers of every block that get an adapter, of {' '.join(BLOCK_LAYERS)}. Unset: all."
    )
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "Learn the length of each weight row apart (DoRA).")
    dtype: str = option("float32", "Data type of the model's own weights while training; the adapter is float32.")
    load_in_4bit: bool = option(
        False, "Hold the model's own weights in 4 bits (QLoRA); needs bitsandbytes. Computes in `dtype`."
    )
    merge_adapter: bool = option(
        True, "Write the whole model with the adapter added to output_dir. The adapter is kept beside."
    )

    def __post_init__(self) -> None:
        if not self.use_peft:
            for name in ("load_in_4bit", "use_dora", "use_rslora", "lora_target_modules"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` must be unset without `use_peft`, got {getattr(self, name)}; add it.")
            if self.dtype != "float32":
                raise ValueError(
                    f"`dtype` must be float32 without `use_peft`, or small updates are rounded away, got "
                    f"{self.dtype!r}; `bf16` computes in bfloat16, `save_dtype` saves in it."
                )
        if self.dtype not in SAVE_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(SAVE_DTYPES)}, got {self.dtype!r}.")
        if self.lora_r < 1:
            raise ValueError(f"`lora_r` must be at least 1, got {self.lora_r}; leave it out.")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"`lora_dropout` must be at least 0 and below 1, got {self.lora_dropout}; leave it out.")
        unknown = [name for name in self.lora_target_modules or [] if name not in BLOCK_LAYERS]
        if unknown:
            raise ValueError(
                f"`lora_target_modules` must be of {', '.join(BLOCK_LAYERS)}, got {unknown[0]!r}; leave it out for all."
            )

    def lora_config(self) -> Any:
        """The `LoraConfig` of PEFT, or None without `use_peft`."""
        if not self.use_peft:
            return None
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=target_modules(self.lora_target_modules or BLOCK_LAYERS),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type="CAUSAL_LM",
        )

    def loading_options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` for the model under the adapter."""
        if not self.load_in_4bit:
            return {}
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.dtype),
            llm_int8_skip_modules=[HEAD],
        )
        return {"quantization_config": quantization}


def merge_adapter(model: str, adapter: str, output_dir: str, dtype: Optional[str] = None) -> None:
    """Add an adapter to the model it was trained on, and save the whole.

    The model is loaded anew, so one that was trained in 4 bits is merged at full precision.

    Args:
        model: folder or Hub id of the model.
        adapter: folder or Hub id of the adapter.
        output_dir: folder to write; it must not be the adapter's, whose config would be read with the merged weights.
        dtype: data type of the result. Default: the model's.

    Raises:
        ValueError: if `output_dir` is the adapter's folder.
    """
    from peft import PeftModel

    if os.path.realpath(output_dir) == os.path.realpath(adapter):
        raise ValueError(f"`output_dir` must not be the adapter's folder, got {output_dir}; name another one.")
    base = load_model(model, dtype=dtype or "auto")
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    vars(merged.config).pop("is_untrained", None)  # the mark of a conversion
    merged.save_pretrained(output_dir)
