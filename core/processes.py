"""The processes that share a task, as torchrun and `accelerate launch` start them: each has the whole model."""

import os
from datetime import timedelta
from typing import Any, Optional

import torch
from torch import Tensor

# One process may be done hours before another.
_TIMEOUT = timedelta(weeks=4)


class Processes:
    """This process among those that share the work, by the variables RANK, LOCAL_RANK and WORLD_SIZE.

    The numbers are enough to share work out. What the processes tell each other needs `connect` first; a single
    process needs nothing.

    Attributes:
        rank: number of this process, from 0.
        num_processes: how many there are; 1 without these variables.
    """

    def __init__(self) -> None:
        self.rank, self.num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def own_device(self, name: Optional[str]) -> Optional[str]:
        """Return the GPU of this process if there are several processes and GPUs; else the name that was given.

        Args:
            name: a device. One with a number, such as `cuda:0`, and other kinds of device stay as they are.
        """
        if self.num_processes == 1 or name not in (None, "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{self._local_rank % torch.cuda.device_count()}"

    def connect(self, device: torch.device) -> torch.device:
        """Connect the processes, which waits for all of them.

        Args:
            device: the kind of device that they compute on; the CPU without GPUs.

        Returns:
            The device of this process; of a single process `device`.
        """
        if self.num_processes == 1:
            return device
        from accelerate import PartialState

        return PartialState(cpu=device.type == "cpu", timeout=_TIMEOUT).device

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, one after the other."""
        if self.num_processes == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def gather_object(self, item: Any, dst: int = 0) -> Optional[list[Any]]:
        """Return the items of all processes to the process `dst`, and None to others."""
        if self.num_processes == 1:
            return [item]
        items: Optional[list[Any]] = [None] * self.num_processes if self.rank == dst else None
        torch.distributed.gather_object(item, items, dst=dst)
        return items

    def sum(self, numbers: list[int], device: torch.device) -> list[int]:
        """Add up the lists of all processes, number by number, on the device that `connect` returned."""
        return self.all_gather(torch.tensor([numbers], device=device)).sum(0).tolist()

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.num_processes > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
