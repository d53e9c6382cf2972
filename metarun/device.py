"""Where and how numbers are computed: every branch on the kind of device is in this file."""

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError

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

    def free_memory(self) -> int:
        """Bytes free on the device, 0 where it shares the machine's memory."""
        return torch.cuda.mem_get_info(self.torch)[0] if self.torch.type == "cuda" else 0


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
