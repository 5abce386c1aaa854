"""Runs a LLaDA that was exported to OpenVINO: Optimum's class with LLaDA's generation."""

from pathlib import Path

import torch

from .exported_model import ExportedLLaDA
from .graphs import Runner, Tensors
from .runtimes import OpenVINORuntime, require_optimum

require_optimum("openvino", "OVModelForLLaDA")

from optimum.intel import OVModelForMaskedLM  # noqa: E402


class OVModelForLLaDA(ExportedLLaDA, OVModelForMaskedLM):
    """A LLaDA in OpenVINO.

    Load it by `from_pretrained(folder)`, whose other arguments are those of `optimum.intel.OVModelForMaskedLM`. On
    processors that can, OpenVINO computes in bfloat16; `ov_config={"INFERENCE_PRECISION_HINT": "f32"}` keeps it at
    float32. From the Hub, the block graph is not downloaded.

    Example:

    ```python
    from llada_conversion import OVModelForLLaDA

    model = OVModelForLLaDA.from_pretrained("exported")
    ids = model.generate(tokenizer(prompt, return_tensors="pt").input_ids, max_new_tokens=64, cache="dual")
    ```
    """

    block_file = OpenVINORuntime.block_file

    def run_full(self, inputs: Tensors) -> Tensors:
        self.compile()
        outputs = self._inference({name: tensor.numpy(force=True) for name, tensor in inputs.items()})
        return {"logits": torch.from_numpy(outputs["logits"])}

    def open_block_graph(self, path: Path) -> Runner:
        return OpenVINORuntime().open_graph(path, self.ov_config, self._device)
