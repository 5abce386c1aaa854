"""Laws of the processes that share a task: who computes where, and what a single one needs."""

import pytest
import torch

from llada_core.processes import Processes


def processes(monkeypatch, **variables: str) -> Processes:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Processes()


def test_the_launcher_numbers_the_processes_and_without_one_there_is_one(monkeypatch):
    alone = processes(monkeypatch)
    assert (alone.rank, alone.num_processes) == (0, 1)
    second = processes(monkeypatch, RANK="5", LOCAL_RANK="1", WORLD_SIZE="8")
    assert (second.rank, second.num_processes) == (5, 8)


@pytest.mark.parametrize(
    ("name", "own"), [(None, "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu"), ("mps", "mps")]
)
def test_each_of_several_processes_takes_a_gpu_of_its_own_unless_one_was_named(monkeypatch, name, own):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes(monkeypatch, RANK="7", LOCAL_RANK="3", WORLD_SIZE="8").own_device(name) == own
    assert processes(monkeypatch).own_device(name) == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes(monkeypatch, RANK="7", WORLD_SIZE="8").own_device(name) == name


def test_a_single_process_is_its_own_company(monkeypatch):
    alone = processes(monkeypatch)
    device = alone.connect(torch.device("cpu"))
    assert device == torch.device("cpu")
    assert alone.all_gather(torch.tensor([3])).tolist() == [3]
    assert alone.gather_object("a") == ["a"]
    assert alone.sum([1, 2], device) == [1, 2]
    alone.barrier()
