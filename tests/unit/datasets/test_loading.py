"""Reading ahead: the same items in the same order, by as many processes as there are threads and room for."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.datasets import loading as module
from pipeline.datasets.loading import available_cores, loader, loaders, read_ahead, use_loaders
from pipeline.errors import UserError

MB = 2**20


@pytest.fixture(autouse=True)
def by_threads(monkeypatch):
    monkeypatch.setattr(module, "_asked", [-1])


@pytest.fixture
def cores(monkeypatch):
    """A machine of many processors without a GPU, and a process with so many threads."""

    def of(threads: int, gpu: bool = False, shared: int = 64 * 2**30) -> None:
        monkeypatch.setattr(module, "available_cores", lambda: 32)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": shared}))

    return of


class Squares(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        return {
            "x": torch.full((3,), i * i),
            "drawn": torch.tensor(rng.random(), dtype=torch.float64),
            "process": torch.tensor(os.getpid()),
        }


def test_one_thread_reads_for_itself(cores):
    cores(1)
    assert loaders(36 * MB, 1000) == (0, 0)


def test_a_gpu_has_a_process_a_thread_but_its_own(cores):
    cores(8, gpu=True)
    assert loaders(36 * MB, 1000) == (7, 4)  # 28 items of 36 MB: below 2 GB
    cores(1, gpu=True)
    assert loaders(36 * MB, 1000)[0] == 1  # a GPU that waits costs more
    cores(8)
    assert loaders(36 * MB, 1000)[0] == 1  # the model has the threads


def test_what_waits_is_bounded_in_bytes(cores):
    cores(16, gpu=True)
    for size in (1, 7, 36, 144, 600, 1500):
        processes, ahead = loaders(size * MB, 10_000)
        assert processes * ahead * size * MB <= module.AHEAD and (processes, ahead) >= (1, 1)
    assert loaders(3000 * MB, 10_000) == (0, 0)
    cores(16, gpu=True, shared=64 * MB)  # /dev/shm of a container
    processes, ahead = loaders(15 * MB, 10_000)
    assert (processes, ahead) == (2, 1)
    assert loaders(36 * MB, 10_000) == (0, 0)


def test_no_more_processes_than_have_work_and_as_many_as_are_asked_for(cores):
    cores(8, gpu=True)
    assert loaders(MB, 4)[0] == 2 and loaders(MB, 1) == (0, 0) and loaders(0, 100) == (0, 0)
    use_loaders(3)
    assert loaders(MB, 100)[0] == 3
    use_loaders(0)
    assert loaders(MB, 100) == (0, 0)


def test_a_share_of_the_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for content, wanted in (("max 100000", 16), ("400000 100000", 4), ("50000 100000", 1), ("9900000 100000", 16)):
        monkeypatch.setattr(module.Path, "read_text", lambda path, encoding, content=content: content)
        assert available_cores() == wanted


@pytest.mark.parametrize("processes", [0, 2])
def test_items_come_in_order_and_are_the_same(processes):
    use_loaders(processes)
    here = torch.get_rng_state()
    found = list(loader(Squares(9), 1000))
    assert [item["x"].tolist() for item in found] == [[[i * i] * 3] for i in range(9)]
    assert [item["drawn"].item() for item in found] == [np.random.default_rng(i).random() for i in range(9)]
    assert len({int(item["process"]) for item in found} - {os.getpid()}) == processes
    assert torch.equal(torch.get_rng_state(), here)


@pytest.mark.parametrize("processes", [0, 2])
def test_clips_in_batches(processes):
    use_loaders(processes)
    parts = list(read_ahead(lambda clip: [torch.full((2,), clip), torch.ones(1)], range(10, 21), 4, 1000))
    assert [len(x) for x, _ in parts] == [4, 4, 3]
    assert torch.cat([x for x, _ in parts]).tolist() == [[clip] * 2 for clip in range(10, 21)]


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_wrong_is_said_in_one_line_whichever_process_finds_it(processes):
    use_loaders(processes)

    def read(clip: int) -> torch.Tensor:
        if clip == 7:
            raise UserError("clip 7 is damaged")
        return torch.zeros(1)

    read_before = []
    with pytest.raises(UserError) as caught:
        for part in read_ahead(read, range(20), 2, 1000):
            read_before.append(len(part))
    assert str(caught.value) == "clip 7 is damaged" and read_before == [2, 2, 2]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda clip: torch.zeros(1 // clip), range(9), 2, 1000))
