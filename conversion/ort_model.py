"""Runs a LLaDA that was exported to ONNX: Optimum's class with LLaDA's generation."""

from pathlib import Path

from .exported_model import ExportedLLaDA
from .graphs import Runner, Tensors
from .runtimes import OnnxRuntime, require_optimum

require_optimum("onnx", "ORTModelForLLaDA")

from optimum.onnxruntime import ORTModelForMaskedLM  # noqa: E402


class ORTModelForLLaDA(ExportedLLaDA, ORTModelForMaskedLM):
    """A LLaDA in ONNX Runtime.

    Load it by `from_pretrained(folder)`, whose other arguments (`provider`, `session_options` …) are those of
    `optimum.onnxruntime.ORTModelForMaskedLM`. From the Hub, the block graph is not downloaded.

    Example:

    ```python
    from llada_conversion import ORTModelForLLaDA

    model = ORTModelForLLaDA.from_pretrained("exported")
    ids = model.generate(tokenizer(prompt, return_tensors="pt").input_ids, max_new_tokens=64, cache="dual")
    ```
    """

    block_file = OnnxRuntime.block_file

    def run_full(self, inputs: Tensors) -> Tensors:
        outputs = self.session.run(None, self._prepare_onnx_inputs(True, inputs))
        return self._prepare_onnx_outputs(True, outputs)

    def open_block_graph(self, path: Path) -> Runner:
        return OnnxRuntime().open_graph(path, self.providers, self.session.get_session_options())
