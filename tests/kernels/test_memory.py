"""Blocks of memory for large maps."""

from __future__ import annotations

import threading

import pytest
import torch

from thaw.kernels import memory
from thaw.kernels.memory import map_like, new_map, release

LARGE = (4, 24, 32, 32)


@pytest.fixture(autouse=True)
def nothing_kept():
    release()
    yield
    release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [LARGE, (2, 3, 5, 7), (64, 1, 40, 40)])
def test_a_map_is_channels_last(size, dtype):
    x = new_map(size, dtype)
    assert (x.shape, x.dtype) == (size, dtype)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert map_like(x).shape == x.shape
    assert torch.equal(x.fill_(2.0), torch.full(size, 2.0, dtype=dtype))


def test_a_block_is_used_again_when_no_tensor_reads_it():
    first = new_map(LARGE, torch.float32)
    second = new_map(LARGE, torch.float32)
    addresses = {first.data_ptr(), second.data_ptr()}
    assert len(addresses) == 2
    view = first[1:]
    del first, second
    third = new_map(LARGE, torch.float32)
    # A view keeps its block.
    assert view.data_ptr() - LARGE[1] * LARGE[2] * LARGE[3] * 4 != third.data_ptr()
    assert third.data_ptr() in addresses
    del view
    assert new_map(LARGE, torch.float32).data_ptr() in addresses


def test_memory_is_released():
    x = new_map(LARGE, torch.float32)
    size = x.numel() * 4
    del x
    assert len(memory._free[size]) == 1
    release()
    assert not memory._free
    assert not memory._leases


def test_threads_have_blocks_of_their_own():
    failures = []

    def work(number):
        for _ in range(200):
            x = new_map(LARGE, torch.float32).fill_(number)
            if not bool((x == number).all()):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
