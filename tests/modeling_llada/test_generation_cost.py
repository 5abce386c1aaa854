"""Laws of what a call of `generate` costs beside the model: files and functions to read, tensor operations per pass."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_llada
from modeling_llada import LLaDAConfig, LLaDAModelLM

FOLDER = Path(modeling_llada.__file__).parent
FOUR_PASSES = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64, "vocab_size": 100}
    return LLaDAModelLM(LLaDAConfig(**sizes, mask_token_id=99, eos_token_id=0, pad_token_id=0)).eval()


def prompts(num_rows: int) -> Tensor:
    return torch.arange(1, 1 + 3 * num_rows).view(num_rows, 3)


def functions_called(call: Callable[[], Any]) -> set[tuple[str, int]]:
    """The functions of ours that run during a call: file and first line of each; lambdas do not count."""
    called = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and Path(code.co_filename).parent == FOLDER and not code.co_name.startswith("<"):
            called.add((Path(code.co_filename).name, code.co_firstlineno))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return called


class OutsideTheModel(TorchDispatchMode):
    """Collects the names of the tensor operations between one forward pass and the next."""

    def __init__(self, model: LLaDAModelLM) -> None:
        super().__init__()
        self.model, self.is_inside = model, False
        self.passes: list[list[str]] = [[]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.is_inside:
            self.passes[-1].append(str(func))
        return func(*args, **(kwargs or {}))

    def between_passes(self, **options: Any) -> list[list[str]]:
        hooks = [self.model.register_forward_pre_hook(self.enter), self.model.register_forward_hook(self.leave)]
        with self:
            self.model.generate(prompts(2), **options)
        for hook in hooks:
            hook.remove()
        return self.passes[1:-1]

    def enter(self, *_: Any) -> None:
        self.is_inside = True

    def leave(self, *_: Any) -> None:
        self.is_inside = False
        self.passes.append([])


def test_a_call_of_one_row_and_one_block_passes_at_most_6_files_and_40_functions(model) -> None:
    called = functions_called(lambda: model.generate(prompts(1), **FOUR_PASSES))
    assert len({file for file, _ in called}) <= 6
    assert len(called) <= 40, sorted(called)


def test_a_pass_takes_at_most_40_tensor_operations_beside_the_model(model) -> None:
    between = OutsideTheModel(model).between_passes(**FOUR_PASSES)
    assert len(between) == 3
    assert max(len(operations) for operations in between) <= 40, between


@pytest.mark.parametrize(
    "options", [{"steps": 4}, {"threshold": 1.0}, {"cache": "dual"}, {"entropy_bound": 1e-9}], ids=str
)
def test_steps_rules_and_caches_add_at_most_ten_operations_and_a_pass_sorts_once(model, options) -> None:
    for operations in OutsideTheModel(model).between_passes(**FOUR_PASSES, **options):
        # An entropy bound computes the entropies: seven more.
        assert len(operations) <= (60 if "entropy_bound" in options else 50), operations
        assert sum("sort" in name for name in operations) == 1


def test_while_all_rows_take_part_nothing_is_indexed(model) -> None:
    for operations in OutsideTheModel(model).between_passes(**FOUR_PASSES, steps=4):
        assert not [name for name in operations if re.search(r"aten\.(index|nonzero|masked_select)", name)]


def test_the_eight_steps_of_generate_stand_in_order_in_one_place() -> None:
    source = (FOLDER / "generation_llada.py").read_text(encoding="utf-8")
    plan = re.findall(r"^        (\d)\. ", LLaDAModelLM.generate.__doc__ or "", re.MULTILINE)
    body = re.findall(r"^ +# (\d)\. ", source, re.MULTILINE)
    assert plan == body == list("12345678")
    place = source[source.index("# 1. ") : source.index("# 8. ")]
    assert re.findall(r"^    def (\w+)", place, re.MULTILINE) == ["denoise"]
