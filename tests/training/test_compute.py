"""Devices, precisions and parallel branches."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from error_matching import raises
from torch import nn

from thaw.training.compute import ParallelBranches, autocast, resolve_device, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_device_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu") == resolve_device("auto") == CPU
    with raises("usage", "cuda", 'device="cpu"'):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:0", "CPU"])
def test_rejects_other_devices(name):
    with raises("usage", "auto, cpu, cuda"):
        resolve_device(name)


def test_precision_names(monkeypatch):
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert resolve_precision("auto", CPU) == torch.float32
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve_precision("auto", CPU) == torch.float32


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_precision_of_a_gpu(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolve_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["float16", "", "bf16"])
def test_rejects_other_precisions(name):
    with raises("usage", "auto, float32, bfloat16"):
        resolve_precision(name, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_uses_the_precision(dtype):
    layer = nn.Conv2d(1, 2, 3)
    with autocast(dtype, CPU):
        made = layer(torch.rand(1, 1, 5, 5))
    assert made.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.rand(1, 1, 5, 5)).dtype == torch.float32


def test_jobs_run_concurrently_and_return_in_order(two_threads):
    meeting = threading.Barrier(2, timeout=10)

    def job(name):
        meeting.wait()  # passes only if both jobs run concurrently
        if name == "first":
            time.sleep(0.05)
        return name, threading.current_thread().name, torch.get_num_threads()

    with ParallelBranches(2, CPU) as parallel:
        made = parallel.run([lambda: job("first"), lambda: job("second")])
        assert torch.get_num_threads() == 1  # the calling thread leaves the cores to the jobs
    assert [name for name, _, _ in made] == ["first", "second"]
    assert all(thread.startswith("thaw-branch") for _, thread, _ in made)
    assert [threads for _, _, threads in made] == [1, 1]
    assert torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("thaw-branch")]


def test_first_error_is_raised_after_all_jobs_end(two_threads):
    ended = []

    def early():
        raise ValueError("second job, first in time")

    def late():
        time.sleep(0.1)
        raise ZeroDivisionError("first job, second in time")

    def last():
        time.sleep(0.2)
        ended.append(True)

    with ParallelBranches(3, CPU) as parallel:
        with pytest.raises(ZeroDivisionError, match="first job"):
            parallel.run([late, early, last])
        assert ended == [True]
        assert parallel.run([lambda: 1, lambda: 2]) == [1, 2]  # the threads are still usable


def test_more_jobs_than_threads(two_threads):
    with ParallelBranches(2, CPU) as parallel:
        assert parallel.run([lambda index=index: index * index for index in range(9)]) == [i * i for i in range(9)]
        assert parallel.run([]) == []


@pytest.mark.parametrize("case", ["one branch", "one core", "a GPU", "one job"])
def test_no_threads_without_a_benefit(case, two_threads):
    if case == "one core":
        torch.set_num_threads(1)
    device = torch.device("cuda") if case == "a GPU" else CPU
    jobs = [threading.current_thread] * (1 if case == "one job" else 2)
    with ParallelBranches(1 if case == "one branch" else 2, device) as parallel:
        assert set(parallel.run(jobs)) == {threading.current_thread()}


def test_error_is_raised_without_threads():
    def fail():
        raise ValueError("now")

    with ParallelBranches(1, CPU) as parallel, pytest.raises(ValueError, match="now"):
        parallel.run([fail, lambda: 1])
