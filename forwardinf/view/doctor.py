"""Is this machine fit to run? Versions, devices, disk, and the breakages we know of."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forwardinf.core import machine

LEAST_DISK_GIB = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``level`` is ``ok``, ``warn`` or ``fail``."""

    level: str
    what: str
    do: str = ""


def examine(model: Any = None, folder: Path | None = None) -> tuple[Mapping[str, Any], list[Finding]]:
    """Return (facts, findings) about this machine, and about a model where one is given."""
    versions, facts = machine.versions(), machine.describe(folder)
    findings = [_torch(versions), _disk(facts), _cache(), *_known_breakages(versions)]
    if model is not None:
        findings += _dtypes(model)
    return {"versions": versions, "machine": facts}, findings


def _torch(versions: Mapping[str, str]) -> Finding:
    major, minor = (int(part) for part in versions["torch"].split(".")[:2])
    if (major, minor) < (2, 6):
        return Finding("fail", f"torch {versions['torch']} is older than 2.6", "pip install -U torch")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU: the CPU is used"
    return Finding("ok", f"torch {versions['torch']}, {device}")


def _disk(facts: Mapping[str, Any]) -> Finding:
    free = float(facts["free_disk_gib"])
    if free < LEAST_DISK_GIB:
        return Finding(
            "warn", f"{free} GiB of disk left", "scores take about 4 bytes for each query and training example"
        )
    return Finding("ok", f"{free} GiB of disk free")


def _cache() -> Finding:
    folder = machine.cache_folder()
    if folder is None:
        return Finding("ok", "baselines are not kept between calls (FORWARDINF_CACHE=off)")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20 if folder.is_dir() else 0.0
    return Finding("ok", f"baselines are kept in {folder} ({size:.1f} MiB)")


def _known_breakages(versions: Mapping[str, str]) -> list[Finding]:
    found = []
    if importlib.util.find_spec("torchvision") is not None and "+cpu" in torch.__version__:
        what = "torchvision from the package index beside a CPU build of torch can break `import transformers`"
        found.append(Finding("warn", what, "pip uninstall torchvision (forwardinf does not need it)"))
    for package, extra in (("transformers", "hf"), ("datasets", "hf"), ("peft", "hf"), ("diffusers", "diffusion")):
        if package not in versions:
            found.append(
                Finding("ok", f"{package} is not installed", f"pip install 'forwardinf[{extra}]' if you need it")
            )
    return found


def _dtypes(model: Any) -> list[Finding]:
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        sizes[str(parameter.dtype)] = sizes.get(str(parameter.dtype), 0) + parameter.numel()
    told = ", ".join(f"{count:,} in {name}" for name, count in sizes.items())
    narrow = any("16" in name for name in sizes)
    if narrow:
        do = "narrow weights swallow small steps: read in float32, or use a finite length ≥ 1e-2"
        return [Finding("warn", f"parameters: {told}", do)]
    return [Finding("ok", f"parameters: {told}")]
