"""What transformers' own tests import and its source distribution lacks.

`download.py` copies this file under the name of each module that is missing, so it holds the names of all of them.
"""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

# The values that `ConfigTester` sets on a configuration and reads back.
config_common_kwargs: dict[str, Any] = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


class ExportTesterMixin:
    """Tests of transformers' exporters; this project has its own in `tests/conversion`."""


class GenerationTesterMixin:
    """Tests of autoregressive generation: beams, caches of a finished past, assistants."""


def run_distributed(world_size: int) -> Callable[[Callable], Callable]:
    """Call a function in `world_size` processes of one group, as `function(rank, *arguments)`."""

    def distributed(function: Callable) -> Callable:
        def call(*arguments: Any) -> None:
            store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            _start_rank_processes(_join_and_call, (function, arguments, world_size, store.port), world_size)

        return call

    return distributed


def _join_and_call(rank: int, function: Callable, arguments: tuple, world_size: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    store = torch.distributed.TCPStore("localhost", port, is_master=False)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    function(rank, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _start_rank_processes(function: Callable, args: tuple, nprocs: int) -> None:
    """Call `function(rank, *args)` in processes that find transformers and the tests imported already."""
    multiprocessing.set_forkserver_preload(["modeling_llada", "transformers_tests.test_fsdp_mixin"])
    torch.multiprocessing.start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")


def _get_distributed_backend() -> str:
    return "gloo"


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    """Nothing to choose on a CPU."""
