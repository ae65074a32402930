import os
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

MANY, EACH = 2, 7  # of a test with more cases than that, every seventh is run each time too
CHEAP = {"core": 6, "score": 6, "data": 4, "tasks": 3}  # where a case is a value checked: more


def pytest_collection_modifyitems(config, items):
    """Leave out, unless FORWARDINF_WHOLE=1, what is marked ``whole``, and most cases of a test that has many."""
    if os.environ.get("FORWARDINF_WHOLE") or os.environ.get("FORWARDINF_ALL_ATTACKS"):
        return
    seen, kept, left_out = Counter(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        most = CHEAP.get(item.path.relative_to(Path(__file__).parent).parts[0], MANY)
        some = seen[test] <= most or seen[test] % EACH == 0
        (kept if some and not item.get_closest_marker("whole") else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The machines that run this are shared and the models small; and one thread gives the same bits everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of its own for every test, so that no baseline comes from another."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FORWARDINF_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets and models, where there is one."""
    named = os.environ.get("FORWARDINF_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("FORWARDINF_DATA does not name a folder")
    return Path(named)
