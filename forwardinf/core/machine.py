"""What this machine is and what it uses: for run cards, benchmarks, `doctor`, and the memory line of a result."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("forwardinf", "torch", "numpy", "pyarrow", "pandas", "safetensors", "pydantic", "typer", "rich", "jinja2",
            "blake3", "scikit-learn", "pillow", "transformers", "datasets", "peft", "accelerate", "diffusers",
            "torchvision")  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return the installed versions of what we build on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(folder: Path | None = None) -> dict[str, Any]:
    """Return processor, cores, threads, memory, devices and free disk space where ``folder`` is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(_total_memory() / 2**30, 1),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "free_disk_gib": round(shutil.disk_usage(folder or Path.cwd()).free / 2**30, 1),
    }


def resident_bytes() -> int:
    """Return this process's resident memory now (0 where the system does not say)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far (0 where the system does not say)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device now (0 where the system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library keeps it for itself (glibc); elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def cache_folder(asked: str | PathLike[str] | None = None) -> Path | None:
    """Return where baselines are kept between calls: ``asked``, ``$FORWARDINF_CACHE``, or the user's cache; ``off``: nowhere."""
    named = asked or os.environ.get("FORWARDINF_CACHE")
    if named:
        return None if named == "off" else Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forwardinf"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
