"""Which GPUs a machine has, over folders that look like one and an nvidia-smi of ours on the PATH."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_gpu import put_nvidia_smi

from distributed_training.devices import Gpu, TorchBuild, no_gpu, seen_gpus, torch_advice, torch_build, torch_here

H200 = "NVIDIA H200, 580.65.06, 143771, 9.0"
CPU_TORCH, CUDA_TORCH = TorchBuild("2.13.0+cpu"), TorchBuild("2.13.0", "13.0")
VERSION = "NVRM version: NVIDIA UNIX {0}  580.65.06  Sun Jul 27 06:54:38 UTC 2026\nGCC version:  gcc 13"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any GPU."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pci(tmp_path, "0000:00:02.0", "0x8086", "0x030000")
    return tmp_path


def pci(root: Path, address: str, vendor: str, kind: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def kernel_driver(root: Path, kind: str = "Open Kernel Module for x86_64") -> None:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(VERSION.format(kind))


def on_bus(root: Path) -> None:
    pci(root, "0000:01:00.0", "0x10de", "0x030200")
    pci(root, "0000:01:00.1", "0x10de", "0x040300")  # its sound


def test_a_machine_without_one_has_none(root: Path) -> None:
    assert seen_gpus(root) == () and torch_build(()) == "cpu" and torch_advice(()) == ""
    put_nvidia_smi(root / "bin", "No devices were found", 6)  # an image that has the tool
    assert seen_gpus(root) == ()
    assert no_gpu((), CPU_TORCH)[0] == "this machine has no GPU that torch can use"


def test_one_that_answers_has_its_name_driver_and_memory_and_the_command_for_its_torch(root: Path) -> None:
    put_nvidia_smi(root / "bin", f"{H200}\n{H200}")
    gpu = Gpu("nvidia", "NVIDIA H200", "580.65.06", 143771 * 2**20, 9.0)
    assert seen_gpus(root) == (gpu, gpu) and str(gpu) == "NVIDIA H200 (140 GiB, driver 580.65.06)"
    assert torch_advice((gpu,)) == "DT_TORCH=cu130 bash scripts/setup.sh"
    assert no_gpu((gpu,), CUDA_TORCH) == ("", "")
    said = "torch 2.13.0+cpu (no CUDA) cannot use this machine's NVIDIA H200 (140 GiB, driver 580.65.06)"
    assert no_gpu((gpu,), CPU_TORCH) == (said, "DT_TORCH=cu130 bash scripts/setup.sh")


@pytest.mark.parametrize(
    ("row", "build", "advice"),
    [
        ("NVIDIA A100, 535.183.01, 40960, 8.0", "cu126", "DT_TORCH=cu126 bash"),
        ("Tesla V100, 580.82.07, 16384, 7.0", "cu126", "DT_TORCH=cu126 bash"),
        ("NVIDIA GeForce RTX 5090, 570.86.10, 32607, 12.0", "cpu", "install NVIDIA's driver, 580 or newer"),
        ("NVIDIA A100, 470.57.02, 40536, [N/A]", "cpu", "install NVIDIA's driver, 580 or newer"),
        ("Tesla K80, 470.57.02, 11441, 3.7", "cpu", "use the CPU (--device cpu) or a newer GPU"),
    ],
)
def test_the_torch_fits_driver_and_gpu_or_it_is_said_what_would(root: Path, row: str, build: str, advice: str) -> None:
    put_nvidia_smi(root / "bin", row)
    gpus = seen_gpus(root)
    assert torch_build(gpus) == build
    assert torch_advice(gpus).startswith(advice)
    why, fix = no_gpu(gpus, CUDA_TORCH)
    assert bool(why) == (row[:5] != "Tesla" or build == "cpu") and fix == (torch_advice(gpus) if why else "")


def lost(root: Path) -> None:
    put_nvidia_smi(
        root / "bin", f"Unable to determine the device handle for GPU0000:01:00.0: Unknown Error\n{H200}", 255
    )


def none_found(root: Path) -> None:
    kernel_driver(root)
    put_nvidia_smi(root / "bin", "No devices were found", 6)


def mismatch(root: Path) -> None:
    kernel_driver(root)
    put_nvidia_smi(root / "bin", "Failed to initialize NVML: Driver/library version mismatch", 18)


def no_driver(root: Path) -> None:
    on_bus(root)
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    put_nvidia_smi(root / "bin", said, 9)


def contained(root: Path) -> None:
    on_bus(root)
    kernel_driver(root)
    (root / ".dockerenv").touch()


def hidden(root: Path) -> None:
    put_nvidia_smi(root / "bin", H200)


@pytest.mark.parametrize(
    ("broken", "trouble", "fix"),
    [
        (lost, "fell off the PCI bus", "switch the machine off and on"),
        (none_found, "fell off the PCI bus", "switch the machine off and on"),
        (mismatch, "updated under the running system", "reboot"),
        (no_driver, "no NVIDIA driver runs here", "install NVIDIA's driver, 580 or newer"),
        (on_bus, "no NVIDIA driver runs here", "install NVIDIA's driver, 580 or newer"),
        (contained, "this container was not given it", "start it with --gpus all"),
        (hidden, "CUDA_VISIBLE_DEVICES=-1 hides it", "unset it"),
    ],
)
def test_one_that_is_there_and_does_not_answer_is_named_with_its_fix(
    root: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Path], None], trouble: str, fix: str
) -> None:
    broken(root)
    if broken is hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    gpu = seen_gpus(root)[-1]
    assert trouble in gpu.trouble and gpu.fix.startswith(fix)
    if broken is not lost:  # of two, one still answers
        assert trouble in no_gpu((gpu,), CUDA_TORCH)[0] and torch_advice((gpu,)) == gpu.fix


def test_a_driver_that_hangs_is_not_waited_for(root: Path) -> None:
    on_bus(root)
    put_nvidia_smi(root / "bin", "", hangs=True)
    began = time.monotonic()
    (gpu,) = seen_gpus(root, timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert gpu.trouble == "nvidia-smi gives no answer in 0 s"


def test_without_nvidia_smi_the_kernel_module_names_it(root: Path) -> None:
    on_bus(root)
    kernel_driver(root, "x86_64 Kernel Module")
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    (root / "proc/driver/nvidia/gpus/0000:01:00.0/information").write_text("Model: \t\t NVIDIA L4\nIRQ: 1\n")
    assert seen_gpus(root) == (Gpu("nvidia", "NVIDIA L4", "580.65.06"),)


def test_wsl_has_its_tool_elsewhere(root: Path) -> None:
    (root / "usr/lib/wsl/lib").mkdir(parents=True)
    put_nvidia_smi(root / "usr/lib/wsl/lib", H200)
    assert [gpu.name for gpu in seen_gpus(root)] == ["NVIDIA H200"]


def test_of_amd_what_torch_has_code_for(root: Path) -> None:
    pci(root, "0000:03:00.0", "0x1002", "0x030000")
    for number, target in enumerate((0, 90402, 100306)):  # a processor, an MI300X, graphics inside of a processor
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        (node / "mem_banks/0").mkdir(parents=True)
        (node / "properties").write_text(f"simd_count 304\ngfx_target_version {target}\n")
        (node / "mem_banks/0/properties").write_text("heap_type 1\nsize_in_bytes 206141652992\n")
    (gpu,) = seen_gpus(root)
    assert (gpu.trouble, gpu.fix) == (
        "there is no /dev/kfd",
        "start the container with --device /dev/kfd --device /dev/dri",
    )
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    (gpu,) = seen_gpus(root)
    assert str(gpu) == "AMD gfx942 (192 GiB)" and torch_advice((gpu,)) == "DT_TORCH=rocm7.2 bash scripts/setup.sh"
    assert "cannot use" in no_gpu((gpu,), CUDA_TORCH)[0] and no_gpu((gpu,), TorchBuild("2.13", hip="7.2")) == ("", "")


def test_the_torch_that_is_installed_is_known_without_importing_it() -> None:
    import torch

    here = torch_here()
    assert here is not None
    assert (here.version, here.cuda or None, here.hip or None) == (
        torch.__version__,
        torch.version.cuda,
        torch.version.hip,
    )
