import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked ``whole``, dear repetitions of what is run anyway, unless FORWARDINF_WHOLE=1."""
    if os.environ.get("FORWARDINF_WHOLE") != "1":
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("whole")]


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
