"""Generation with exported graphs: the sampler of `modeling_llada` on what runs the full and the block graph."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import MaskedLMOutput

from llada_core.loading import EXPORTED_FILES
from modeling_llada import LLaDAConfig, LLaDAGenerationConfig
from modeling_llada.batching_manager_llada import LLaDABatchedGenerationMixin
from modeling_llada.cache_llada import BlockCache
from modeling_llada.unmasking_llada import Proposer

from .graphs import KeysAndValues, Runner, empty_past, run_block

# The file by which an exported folder is known -> the class of this package that runs it.
_CLASSES = dict(zip(EXPORTED_FILES, ("ORTModelForLLaDA", "OVModelForLLaDA")))
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# What `from_pretrained` hands on to where config files are looked for.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_exported(folder: str | Path, dtype: str = "auto", **options: Any) -> Any:
    """Load an exported model by the class that its files ask for.

    Args:
        folder: what `export_model` made.
        dtype: what OpenVINO computes in: `float32`, `bfloat16`, `float16`, or `auto`: its own choice for the processor.
            ONNX graphs compute in the types they hold; only `auto` and `float32` fit them.
        options: of that class's `from_pretrained`.

    Raises:
        ValueError: for a folder that is not an exported model, and a type that does not fit.
        ImportError: if Optimum does not work with the versions that are installed.
    """
    file = next((file for file in _CLASSES if (Path(folder) / file).is_file()), None)
    if file is None:
        raise ValueError(f"`{folder}` must hold {' or '.join(_CLASSES)}; make one by: llada export onnx SRC DST")
    if file == "openvino_model.xml" and dtype in _PRECISIONS:
        options["ov_config"] = {"INFERENCE_PRECISION_HINT": _PRECISIONS[dtype], **options.get("ov_config", {})}
    elif dtype not in ("auto", "float32"):
        raise ValueError(
            f"`dtype` must be auto or float32 for `{file}`, got {dtype!r}: the graph holds its types; leave it out."
        )
    return getattr(import_module(".", __package__), _CLASSES[file]).from_pretrained(folder, **options)


class ExportedLLaDA(LLaDABatchedGenerationMixin):
    """What the classes of both runtimes share: the forward pass in terms of two graphs.

    `generate` and `infill` are those of `LLaDAModelLM`, with every option but `compile` and `pack_weights`.
    `cache="prefix"` and `cache="dual"` run the block graph; so do rows with padding inside or behind a prompt, and
    `generate_many` and `generate_batch`, which mix the order of positions.

    A class that uses it names its `block_file` and offers `run_full(inputs)` and `open_block_graph(path)`.
    """

    proposer_class = Proposer
    block_file: str
    config: Any
    device: Any
    model_save_dir: Any
    run_full: Runner
    open_block_graph: Callable[[Path], Runner]
    _run_block: Runner | None = None

    @classmethod
    def from_pretrained(cls, model_id: str | Path, config: Any = None, **options: Any) -> Any:
        """Load an exported model; see the class. Its configs are read by our classes, not by the folder's code."""
        hub_options = {name: options[name] for name in _HUB_OPTIONS if name in options}
        own_config: Any = LLaDAConfig.from_pretrained(model_id, **hub_options)
        runtime: Any = super()
        model = runtime.from_pretrained(model_id, config=config or own_config, **options)
        try:
            model.generation_config = LLaDAGenerationConfig.from_pretrained(model_id, **hub_options)
        except OSError:  # Optimum's command line writes none
            model.generation_config = LLaDAGenerationConfig.from_model_config(own_config)
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BlockCache | None = None,
        logits_positions: Tensor | None = None,
        logits_window: tuple[int, int] | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor] | MaskedLMOutput:
        """Predict the clean tokens from noisy ones; arguments and result are those of `LLaDAModelLM.forward`.

        Not handled: `inputs_embeds`, `labels`, hidden states and attentions. The graphs score every position they are
        given; `logits_positions` and `logits_window` select afterwards.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if past_key_values is not None:
            logits = self._pass_beside(past_key_values, input_ids, attention_mask, position_ids)
        elif position_ids is None or _are_shifted_columns(position_ids, mask):
            logits = self.run_full({"input_ids": input_ids, "attention_mask": mask.long()})["logits"]
        else:
            logits = self._block_pass(input_ids, mask, position_ids, empty_past(self.config, len(input_ids)))[0]
        if logits_window is not None:
            logits = logits[:, slice(*logits_window)]
        if logits_positions is not None:
            logits = logits[logits_positions[:, slice(*logits_window or (None,))]]
        return MaskedLMOutput(logits=logits) if return_dict else (logits,)

    def eval(self) -> "ExportedLLaDA":
        """The model itself, which has no other mode; ONNX Runtime's class lacks this method of PyTorch's."""
        return self

    def prepacked_weights(self, pack: bool | None) -> AbstractContextManager[None]:
        """The context of a call, in which nothing is prepacked: the weights are in the graphs."""
        if pack:
            raise ValueError(
                "`pack_weights=True` is not available here: the weights of an exported model are in its graphs; leave "
                "it out."
            )
        return nullcontext()

    def _save_pretrained(self, save_directory: str | Path) -> None:
        """Let `save_pretrained` keep what Optimum's classes do not know."""
        super()._save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)
        for path in Path(self.model_save_dir).glob(f"{Path(self.block_file).stem}*"):
            shutil.copyfile(path, Path(save_directory) / path.name)

    def _pass_beside(
        self, cache: BlockCache, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """Run the cache's window beside its other columns, and put the window's keys and values into it."""
        assert position_ids is not None  # the sampler always gives them with a cache
        past: Any
        past, is_inside = cache.outside_window()
        if is_inside.all():
            past = empty_past(self.config, len(input_ids))
        num_columns = past[0][0].shape[2] + input_ids.shape[1]
        if attention_mask is None:
            mask = torch.ones(len(input_ids), num_columns)
        else:
            mask = torch.cat((attention_mask[:, ~is_inside], attention_mask[:, is_inside]), dim=1)
        logits, states = self._block_pass(input_ids, mask, position_ids, past)
        for layer, (key, value) in enumerate(states):
            cache.update(key, value, layer)
        return logits

    def _block_pass(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, past: KeysAndValues
    ) -> tuple[Tensor, KeysAndValues]:
        graph = self._block_graph("an order of positions other than left to right")
        return run_block(graph, input_ids, mask, position_ids.expand_as(input_ids), past)

    def prepare_options(
        self, generation_config: GenerationConfig | None, options: dict[str, Any]
    ) -> LLaDAGenerationConfig:
        config: Any = super().prepare_options(generation_config, options)
        if config.compile:
            raise ValueError(
                "`compile` has no meaning for an exported model, which its runtime has compiled; leave it out."
            )
        if config.cache != "none":
            self._block_graph(f"`cache={config.cache!r}`")
        return config

    def _block_graph(self, reader: str) -> Runner:
        """The block graph, opened when it is first needed."""
        path = Path(self.model_save_dir) / self.block_file
        if self._run_block is None and path.is_file():
            self._run_block = self.open_block_graph(path)
        if self._run_block is None:
            raise ValueError(
                f"{reader} needs the block graph, which this exported model lacks; export it by `llada export` "
                "without `--no-block-graph`, or pad prompts at the left, call `generate`, and leave `cache` at none."
            )
        return self._run_block


def _are_shifted_columns(position_ids: Tensor, attention_mask: Tensor) -> bool:
    """Whether every row's valid positions are its columns, less a number of its own.

    Attention reads differences of positions only, so that the full graph, which counts columns, is then right.
    """
    shift = torch.arange(position_ids.shape[1], device=position_ids.device) - position_ids
    is_valid = attention_mask.bool()
    first = is_valid.int().argmax(-1, keepdim=True)
    return bool(((shift == shift.expand_as(is_valid).gather(1, first)) | ~is_valid).all())
