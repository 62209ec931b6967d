"""The device that computes, where there is no GPU: what is refused, what is said, and what a failing one becomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_gpu import put_nvidia_smi
from tiny_training import GPT2, manifest

from distributed_training.devices import TorchBuild, refusal, seen_gpus
from distributed_training.engine import inner_loop
from distributed_training.errors import ConfigError, DeviceLost
from distributed_training.protocol.types import Role
from distributed_training.settings.config import NodeConfig, load_config
from distributed_training.training.device import chosen_device, device_faults, device_text, out_of_memory, surprise
from distributed_training.training.model import build_model

CPU_TORCH, CUDA_TORCH = TorchBuild("2.13.0+cpu"), TorchBuild("2.13.0", "13.0")
NOBODY = ["--preset", "local", "--run-dir", "nowhere"]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with one, by an nvidia-smi on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put_nvidia_smi(tmp_path, "NVIDIA H200, 580.65.06, 143771, 9.0")
    yield tmp_path


def config(*more: str) -> NodeConfig:
    return load_config(Role.MINER, [*NOBODY, *more])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines on which torch uses no GPU")
def test_the_cpu_on_a_machine_with_a_gpu_is_said_loudly_with_the_command(gpu: Path) -> None:
    said = surprise("auto", chosen_device("auto"))
    assert said.startswith("THIS NODE COMPUTES ON THE CPU: torch ") and "NVIDIA H200 (140 GiB" in said
    assert said.endswith("To use the GPU: DT_TORCH=cu130 bash scripts/setup.sh")
    assert surprise("cpu", "cpu") == "", "as it was asked for"
    with pytest.raises(
        ConfigError, match=r"--device cuda:1: torch .* cannot use .* NVIDIA H200 .*; DT_TORCH=cu130 bash"
    ):
        chosen_device("cuda:1")


def test_the_cpu_where_there_is_no_gpu_is_no_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if not seen_gpus():
        assert surprise("auto", "cpu") == ""
    assert device_text("cpu").startswith(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")


def test_a_refusal_before_torch_is_sure_of_its_reason(gpu: Path) -> None:
    gpus = seen_gpus()
    assert refusal("auto", (), CPU_TORCH) == refusal("cpu", (), CPU_TORCH) == ""
    assert refusal("cuda", gpus, CUDA_TORCH) == "" == refusal("cuda:7", gpus, CUDA_TORCH)
    assert refusal("cuda", (), CUDA_TORCH) == "", "torch may know better than an empty folder of PCI devices"
    assert "cannot use this machine's NVIDIA H200" in refusal("cuda", gpus, CPU_TORCH)
    none = "--device mps: this machine has no GPU that torch can use; use --device auto or cpu"
    assert refusal("mps", gpus, CPU_TORCH) == none
    put_nvidia_smi(gpu, "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.", 15)
    assert "fell off the PCI bus" in refusal("cuda", seen_gpus(), CUDA_TORCH)
    put_nvidia_smi(gpu, "NVIDIA A100, 535.183.01, 40960, 8.0")
    fix = "--device cuda: driver 535.183.01 is too old for torch 2.13.0 (CUDA 13.0), which needs 580; DT_TORCH=cu126 "
    assert refusal("cuda", seen_gpus(), CUDA_TORCH).startswith(fix)


@pytest.mark.parametrize("text", ["CUDA error: unspecified launch failure\nmore", "HIP error: the device is gone"])
def test_a_gpu_that_fails_ends_the_process_with_what_mends_it(gpu: Path, text: str) -> None:
    with pytest.raises(DeviceLost, match=r"the GPU failed \((CUDA|HIP) error: .*\): the GPU still answers") as caught:
        with device_faults("cuda"):
            raise RuntimeError(text)
    assert "\n" not in str(caught.value)
    put_nvidia_smi(gpu, "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.", 15)
    with pytest.raises(
        DeviceLost, match=r"NVIDIA GPU 0000:01:00.0: it fell off the PCI bus .*; switch the machine off"
    ):
        with device_faults("cuda"):
            raise torch.AcceleratorError("an error that has no name here")


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_too_little_memory_is_no_failure_of_the_gpu(text: str) -> None:
    with pytest.raises(RuntimeError) as caught, device_faults("cuda"):
        raise RuntimeError(text)
    assert out_of_memory(caught.value) and not isinstance(caught.value, DeviceLost)
    with pytest.raises(RuntimeError, match="boom"), device_faults("cuda"):
        raise RuntimeError("boom")


def test_a_micro_batch_is_of_the_batch_of_the_run() -> None:
    run, model = manifest(GPT2), build_model(GPT2, 7)
    assert inner_loop(config("--micro-batch", "2"), model, run).micro_batch == 2
    assert inner_loop(config(), model, run).micro_batch == run.data.batch_size == 8
    with pytest.raises(ConfigError, match="--micro-batch 9: a step of this run has 8 sequences; give 1 to 8"):
        inner_loop(config("--micro-batch", "9"), model, run)
    with pytest.raises(ConfigError, match="--micro-batch: expected a number greater than or equal to 1, got '0'"):
        config("--micro-batch", "0")
