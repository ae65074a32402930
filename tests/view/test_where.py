"""``--where``: which rows are the queries, on every form that a data word may stand for."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

MODULE = """
import numpy as np, pandas as pd, pyarrow as pa, torch, datasets
from torch import nn
from torch.utils.data import DataLoader

import forwardinf as fi

NAMES = ["a", "b", "c"]

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3, 2))

def arrays():
    draw = np.random.default_rng(0)
    return draw.standard_normal((12, 3)).astype("f4"), np.arange(12) % 2

STACKED = fi.Classification(inputs=lambda batch: torch.stack([batch[name] for name in NAMES], 1))

def rows():
    return list(zip(*arrays()))

def loader():
    return DataLoader(rows(), batch_size=5)

def mapping():
    x, y = arrays()
    return {"x": x, "label": y}

def frame():
    x, y = arrays()
    return pd.DataFrame(x, columns=NAMES).assign(label=y)

def hub():
    x, y = arrays()
    return datasets.Dataset.from_dict({"x": x.tolist(), "label": y.tolist()})

def drawn():
    def transform(batch):
        return {"x": [torch.tensor(x) + torch.randn(3) for x in batch["x"]], "label": batch["label"]}
    return hub().with_transform(transform)

def both():
    return datasets.DatasetDict(train=hub(), test=hub())
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the same rows in every form."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "where_forms", raising=False)
    Path("where_forms.py").write_text(MODULE)
    import where_forms as forms

    torch.manual_seed(0)
    model = forms.Net()
    save_file(model.state_dict(), "net.safetensors")
    save_file({f"1.{name}": value for name, value in model.state_dict().items()}, "flat.safetensors")
    x, y = forms.arrays()
    np.savez("rows.npz", x=x, y=y)
    forms.hub().save_to_disk("saved")
    forms.both().save_to_disk("splits")
    forms.frame().to_csv("rows.csv", index=False)
    forms.frame().to_csv("rows.tsv", index=False, sep="\t")
    forms.frame().to_parquet("rows.parquet")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forms.hub()))
    for row, label in enumerate(y):
        Path("images", str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((40 * x[row] + 120).clip(0, 255).astype(np.uint8)[None, None]).save(
            f"images/{label}/{row:02}.png"
        )
    return tmp_path


STACKED, CELLS = ["--task", "where_forms:STACKED"], ["--task-option", "inputs=x"]
FORMS = {
    "rows.npz": [],
    "saved": CELLS,
    "./splits:test": CELLS,
    "rows.jsonl": CELLS,
    "rows.csv": STACKED,
    "rows.tsv": STACKED,
    "rows.parquet": STACKED,
    "images": [],
    "where_forms:rows": [],
    "where_forms:loader": [],
    "where_forms:mapping": CELLS,
    "where_forms:frame": STACKED,
    "where_forms:hub": CELLS,
    "where_forms:drawn": CELLS,
}


def attribute(run, form, where, *more):
    model = ["--model", "where_forms:Flat", "--weights", "flat.safetensors"] if form == "images" else [
        "--model", "where_forms:Net", "--weights", "net.safetensors"]  # fmt: skip
    return run("attribute", *model, "--data", form, "--queries", form, *FORMS[form], "--where", where, "--perturb",
               "direction=plain", "--json", "-k", "1", *more)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_chosen_of_every_form(here, run, form):
    Path("ids.txt").write_text("7\n# and\n2\n")
    for where, rows in {"1:3": [1, 2], "5,3": [5, 3], "ids.txt": [7, 2]}.items():
        code, out, err = attribute(run, form, where)
        assert code == 0, err
        assert [entry["query"] for entry in json.loads(out)["queries"]] == rows


@pytest.mark.parametrize("form", FORMS)
def test_the_misclassified_are_those_that_the_model_gets_wrong(here, run, form):
    import where_forms as forms

    code, out, err = attribute(run, form, "misclassified")
    assert code == 0, err
    got = [entry["query"] for entry in json.loads(out)["queries"]]
    assert 0 < len(got) < 12
    if form not in ("images", "where_forms:drawn"):
        x, y = forms.arrays()
        torch.manual_seed(0)
        wrong = forms.Net()(torch.from_numpy(x)).argmax(1) != torch.from_numpy(y)
        assert got == wrong.nonzero().flatten().tolist()


def test_what_is_misclassified_depends_on_the_draws_of_the_run_that_is_asked_for(here, run):
    found = set()
    for seed in range(4):
        code, out, err = attribute(run, "where_forms:drawn", "misclassified", "--seed", seed)
        assert code == 0, err
        entries = json.loads(out)["queries"]
        assert f"{len(entries)} of {len(entries)} queries are misclassified" in out, "the run sees what the choice saw"
        found.add(tuple(entry["query"] for entry in entries))
    assert len(found) > 1


def test_several_datasets_need_a_split_and_say_so(here, run):
    FORMS["where_forms:both"] = CELLS
    code, _, err = attribute(run, "where_forms:both", "0:2")
    del FORMS["where_forms:both"]
    assert code != 0
    assert "Choose one, like data['train']" in err
    assert "Traceback" not in err
