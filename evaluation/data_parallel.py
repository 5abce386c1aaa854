"""The processes that share an evaluation, as torchrun and `accelerate launch` start them: each has all of the model."""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# One process may be done hours before another.
_TIMEOUT = timedelta(weeks=4)


class Processes:
    """This process among those that share the requests.

    Args:
        device: a torch device, or None for the best one. With several processes each takes its own GPU, unless this is
            the CPU. A GPU that is not there is the CPU, with a warning: the harness's command names one by default.

    Attributes:
        rank: number of this process, from 0.
        num_processes: how many there are, by the variable WORLD_SIZE; 1 without it.
        device: where this process computes.
    """

    def __init__(self, device: str | None = None):
        self.rank, self.num_processes = 0, int(os.environ.get("WORLD_SIZE", 1))
        has_cuda = torch.cuda.is_available()
        if device is not None and device.startswith("cuda") and not has_cuda:
            logger.warning("`device` is %s, but no GPU is there; computing on the CPU.", device)
            device = "cpu"
        if self.num_processes == 1:
            self.device = torch.device(device if device is not None else "cuda" if has_cuda else "cpu")
            return
        from accelerate import Accelerator, InitProcessGroupKwargs

        is_cpu = device == "cpu" or not has_cuda
        self._accelerator = Accelerator(cpu=is_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)])
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, one behind the other; a single process gets its own back."""
        return tensor if self.num_processes == 1 else self._accelerator.gather(tensor)

    def gather_object(self, item: Any, dst: int = 0) -> list[Any] | None:
        """Return the items of all processes to the process `dst`, and None to others."""
        if self.num_processes == 1:
            return [item]
        items: list[Any] | None = [None] * self.num_processes if self.rank == dst else None
        torch.distributed.gather_object(item, items, dst=dst)
        return items

    def sum(self, numbers: list[int]) -> list[int]:
        """Add up the lists of all processes, number by number."""
        gathered = self.all_gather(torch.tensor([numbers], device=self.device))
        return gathered.sum(0).tolist()

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.num_processes > 1:
            self._accelerator.wait_for_everyone()
