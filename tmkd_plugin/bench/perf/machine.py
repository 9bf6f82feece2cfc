"""The machine and the libraries that a figure was measured with."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import torch

from tmkd_plugin.canny import import_cv2
from tmkd_plugin.version import __version__


def describe_machine(device: torch.device) -> dict[str, str | int | float | None]:
    """Returns what a reader has to know of the machine: model, cores, threads, load before the start, versions."""
    cv2 = import_cv2()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": None if load is None else round(load, 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": None if cv2 is None else str(cv2.__version__),
        "tmkd": __version__,
    }


def cpu_model() -> str:
    """Returns the processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def use_threads(threads: int | None) -> None:
    """Sets the CPU threads of torch and OpenCV in this process; None leaves torch's number, which OpenCV gets too."""
    if threads is not None:
        torch.set_num_threads(threads)
    if (cv2 := import_cv2()) is not None:
        cv2.setNumThreads(torch.get_num_threads())
