"""The wheel installs and imports with no extra: built, unpacked apart, and run with the optional packages hidden."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "datasets", "peft", "diffusers", "accelerate", "xarray"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.whole
@pytest.mark.slow
def test_the_wheel_works_without_any_extra(tmp_path):
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel], check=True,
                   capture_output=True)  # fmt: skip
    code = (
        HIDE
        + f"""
sys.path.insert(0, {str(tmp_path / "site")!r})
import torch, forwardinf as fi
assert fi.__file__.startswith({str(tmp_path)!r}), fi.__file__
assert all(getattr(fi, name) is not None for name in fi.__all__)
x, y = torch.randn(8, 4), torch.arange(8) % 2
scores = fi.attribute(torch.nn.Linear(4, 2), (x, y), (x[:2], y[:2]), task=fi.Classification())
print(scores.report("r.html"))
try:
    fi.load_data("owner/name")
except fi.MissingExtra as error:
    print(error)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "forwardinf[hf]" in done.stdout
