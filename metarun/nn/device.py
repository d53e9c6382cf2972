"""Where and how numbers are computed: every branch on the kind of device is in this file."""

import ctypes
import gc
import os
import platform
import re
import resource
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError

# What the errors say that torch raises in want of memory, apart from torch.OutOfMemoryError.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",  # Linux
    "DefaultCPUAllocator: not enough memory",  # elsewhere
    "bad_alloc",  # C++
    "could not create a primitive",  # oneDNN, of a convolution that finds no memory for its kernel
    "out of memory",  # MPS; CUDA outside of torch's allocator
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Device:
    """A device with its precision.

    name: `auto` takes cuda, then mps, then cpu. precision: `fp32`, or autocast to `bf16` or `fp16` (the latter with loss scaling, not
    on the CPU). threads: of the CPU, None for torch's choice. deterministic: refuse kernels that are not. keep_memory: on a Linux CPU,
    let the allocator keep what it freed (measured: about twice the training rate). Raises UserError if the machine has no such device.
    """

    def __init__(
        self,
        name: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        threads: int | None = None,
        deterministic: bool = True,
        keep_memory: bool = True,
    ) -> None:
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if name == "auto":
            name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
        if not present[name]:
            raise UserError(
                f"device: {name} is not available on this machine; use one of {', '.join(k for k, there in present.items() if there)}"
            )
        if precision == "fp16" and name == "cpu":
            raise UserError("device.precision: fp16 is not allowed on the CPU; use bf16 or fp32")
        self.torch, self.precision, self.dtype = torch.device(name), precision, DTYPES[precision]
        self.threads, self.deterministic, self.keep_memory = threads, deterministic, keep_memory

    def set_up(self) -> None:
        """Applies the settings that hold for the whole process. Call once, before the first large tensor."""
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.deterministic and self.torch.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32; bf16 is the fast choice
        # Kernels without a deterministic version only warn: a missing one must not end a long run.
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs a tenth of a step
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.keep_memory and self.torch.type == "cpu" and platform.system() == "Linux":
            _keep_freed_memory()

    def autocast(self) -> AbstractContextManager[None]:
        # No weight cache: within a step the same leaf is cast under different graphs, once per inner step.
        return torch.autocast(self.torch.type, self.dtype, enabled=self.precision != "fp32", cache_enabled=False)

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.torch.type, enabled=self.precision == "fp16")

    def put(self, data: np.ndarray | Tensor) -> Tensor:
        """The data on the device; from pinned memory and without waiting where the device has its own."""
        tensor = torch.as_tensor(data)
        if self.torch.type == "cuda":
            return tensor.pin_memory().to(self.torch, non_blocking=True)
        return tensor.to(self.torch)

    def random_state(self) -> dict[str, Any]:
        """The state of torch's generators, as a checkpoint can hold it."""
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if self.torch.type == "cuda" else []}

    def set_random_state(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.torch.type == "cuda" and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])

    def synchronise(self) -> None:
        """Waits until the device has done all it was given: before a clock is read."""
        if self.torch.type != "cpu":
            (torch.cuda if self.torch.type == "cuda" else torch.mps).synchronize()

    def free_memory(self) -> int:
        """Bytes free on the device, 0 where it shares the machine's memory."""
        return torch.cuda.mem_get_info(self.torch)[0] if self.torch.type == "cuda" else 0

    def release_memory(self) -> None:
        """Gives back what the device's allocator keeps of freed memory, in pieces that may be too small for what comes next."""
        gc.collect()  # of the failed computation, what a cycle still holds
        if self.torch.type != "cpu":
            (torch.cuda if self.torch.type == "cuda" else torch.mps).empty_cache()

    @property
    def memory_kind(self) -> str:
        """What `used_memory` and `peak_memory` count."""
        return "resident (the whole process)" if self.torch.type == "cpu" else "allocated on the device"

    def used_memory(self) -> int:
        """Bytes that torch has allocated on a GPU; on the CPU, bytes of the whole process in memory."""
        if self.torch.type == "cpu":
            return _resident("VmRSS")
        return torch.cuda.memory_allocated(self.torch) if self.torch.type == "cuda" else torch.mps.current_allocated_memory()

    def peak_memory(self) -> int:
        """The most that `used_memory` was since `reset_peak_memory`; MPS, which keeps no such record, counts its cache instead."""
        if self.torch.type == "cpu":
            return _resident("VmHWM")
        return torch.cuda.max_memory_allocated(self.torch) if self.torch.type == "cuda" else torch.mps.driver_allocated_memory()

    def reset_peak_memory(self) -> None:
        """Forgets the peak so far, where the system can."""
        if self.torch.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch)
        elif self.torch.type == "cpu":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for want of memory, on any device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of the process in memory, now or at most (VmHWM); where Linux does not tell them, the latter for both."""
    with suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _keep_freed_memory() -> None:
    """Tells glibc to serve large blocks from the heap and to give nothing back, so that pages are not faulted in anew each step."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)
    except (OSError, AttributeError):  # another C library: nothing to tune
        return


def adds_row_by_row(device: torch.device) -> bool:
    """Whether torch's batch norm adds the rows of channels-last images one after another, as it does on the CPU."""
    return device.type == "cpu"
