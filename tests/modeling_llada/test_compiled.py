"""Laws of `compile=True`: shapes that come again, a graph for each, no graph break, and the tokens of a plain call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig

from modeling_llada import generate_many
from modeling_llada.cache_llada import BlockCache, FixedShapes

EOS = 481
BLOCKS = {"max_new_tokens": 20, "block_length": 8, "stop_at_eos": False}
# Operations whose result the host waits for, as do those that index by a mask.
HOST_READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select")


def counting_backend() -> tuple[CompileConfig, list[torch.fx.GraphModule]]:
    """A backend that runs graphs as they are and keeps them; a break of the graph is an error."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return CompileConfig(backend=count, mode=None, fullgraph=True, dynamic=False), graphs


def makes_the_host_wait(func: Any, args: tuple) -> bool:
    indices = args[1] if str(func).startswith(("aten.index.", "aten.index_put")) else ()
    is_by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
    return is_by_mask or str(func).startswith(HOST_READS)


def prompt(length: int, num_rows: int = 1) -> Tensor:
    return torch.randint(0, 400, (num_rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("cache", "num_graphs"),
    # Canvases of 64 and 128 columns. With a cache also a pass over the block, and with `prefix` one over 64 columns
    # from the block on.
    [("none", 2), ("dual", 4), ("prefix", 6)],
)
def test_twenty_prompts_of_different_lengths_take_one_graph_per_window(tiny_model, cache, num_graphs) -> None:
    compile_config, graphs = counting_backend()
    options = {**BLOCKS, "cache": cache}
    for length in range(5, 105, 5):
        compiled = tiny_model.generate(prompt(length), compile=True, compile_config=compile_config, **options)
        assert torch.equal(compiled, tiny_model.generate(prompt(length), **options)), length
    assert len(graphs) == num_graphs


OPTIONS: list[dict[str, Any]] = [
    {},
    {"threshold": 0.1, "cfg_scale": 0.5},
    {"cache": "dual", "cfg_scale": 0.5, "refresh_interval": 3},
    {"cache": "prefix", "freeze_prompt": True},
    {"cache": "dual", "freeze_prompt": True, "suffix_window": 4},
    {"cache": "dual", "speculate": 2},
    {"cache": "none", "speculate": 2, "temperature": 0.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_that_are_padded_and_leave_early_have_the_tokens_of_a_plain_call(tiny_model, options) -> None:
    compile_config, _ = counting_backend()
    mask = torch.arange(13) >= torch.tensor([[4], [9], [0]])
    ids = prompt(13, 3).masked_fill(~mask, EOS)
    options = {**BLOCKS, "stop_at_eos": True, "eos_token_id": list(range(0, 480, 11)), "pad_token_id": EOS, **options}
    plain, compiled = (
        tiny_model.generate(
            ids, mask, generator=[torch.Generator().manual_seed(row) for row in range(3)], **kind, **options
        )
        for kind in ({}, {"compile": True, "compile_config": compile_config})
    )
    assert torch.equal(compiled, plain)


def test_batches_are_filled_up_to_powers_of_two(tiny_model) -> None:
    compile_config, graphs = counting_backend()
    prompts = [prompt(length)[0].tolist() for length in (5, 7, 9, 11, 13)]
    compiled = {"compile": True, "compile_config": compile_config}
    for count in (5, 3, 4, 5):
        many = generate_many(tiny_model, prompts[:count], batch_size=4, **compiled, **BLOCKS)
        plain = generate_many(tiny_model, prompts[:count], batch_size=4, **BLOCKS)
        assert sorted((a.index, a.ids) for a in many) == sorted((a.index, a.ids) for a in plain)
    assert len(graphs) <= 2  # four rows, and one


def test_a_pass_fills_up_to_the_block_or_a_multiple_of_64_behind_the_columns_of_the_cache() -> None:
    shapes = FixedShapes(block_length=32)
    assert [shapes.width(count) for count in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, 128]
    assert shapes.rows(torch.tensor([4, 5, 6])).tolist() == [4, 5, 6, 6]
    assert [count + shapes.num_missing(count) for count in (0, 1, 4, 5)] == [0, 1, 4, 8]
    cache = BlockCache(1, shapes.capacity(40))
    cache.set_window(30, 40, torch.device("cpu"), shapes.width(10))
    assert cache._columns.tolist() == [*range(30, 40), *range(128 - 22, 128)]
    assert FixedShapes(32, fills_columns=False).width(5) == FixedShapes(32, fills_columns=False).capacity(5) == 5


class InsideTheModel(TorchDispatchMode):
    """Stands in for the capture of a CUDA graph: an operation that the host waits for is an error, as it is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not makes_the_host_wait(func, args), f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_a_compiled_pass_could_be_captured_since_the_host_waits_for_nothing_in_it(
    tiny_model, cache, monkeypatch
) -> None:
    captured = []
    forward = tiny_model.forward

    def capture(*args: Any, **kwargs: Any) -> Any:
        with InsideTheModel():
            captured.append(1)
            return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", torch._dynamo.disable(capture))
    compile_config = CompileConfig(backend="eager", mode=None, fullgraph=False)
    tiny_model.generate(prompt(9), compile=True, compile_config=compile_config, cache=cache, **BLOCKS)
    assert len(captured) == 20


class HostReads(TorchDispatchMode):
    """Counts operations that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_reads += makes_the_host_wait(func, args)
        return func(*args, **(kwargs or {}))


def test_a_step_beside_the_compiled_model_makes_the_host_wait_at_most_twice(tiny_model) -> None:
    compile_config = CompileConfig(backend="eager", mode=None)

    def reads(num_tokens: int) -> int:
        options = {"max_new_tokens": num_tokens, "block_length": num_tokens, "stop_at_eos": False}
        with HostReads() as mode:
            tiny_model.generate(prompt(9), compile=True, compile_config=compile_config, **options)
        return mode.num_reads

    reads(16)  # what is read while compiling does not count
    reads(8)
    assert (reads(16) - reads(8)) / 8 <= 2
