"""Rules about the code itself: floors, front door, docstrings, and what an import costs."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from close import assert_close, assert_within

import forwardinf as fi
from forwardinf.core.registry import brought

ROOT = Path(fi.__file__).parent
FLOORS = {
    "core": 0, "data": 1, "models": 2, "tasks": 3, "gradients": 4, "perturb": 5, "read": 5, "score": 5, "job": 6, "method": 7,
    "truth": 8, "use": 9, "view": 10,
}  # one number: side by side  # fmt: skip
HOME = re.compile(r"(forwardinf(?:\.\w+)+):\w+")
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name(path):
    return str(path.relative_to(ROOT))


def floor(path):
    top = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "view" if top == "__main__" else top  # python -m forwardinf: a door to the command line


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield (line, module) for every import, also those inside functions; importlib's too, where the name is spelled out.

    The homes that a registry names (``"forwardinf.perturb.hold:Holding"``) are imports that wait.
    """
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: write the full path, so that the floor can be seen"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            packages = [found for found in inner if (ROOT.parent / found.replace(".", "/")).is_dir()]
            files = [found for found in inner if (ROOT.parent / (found.replace(".", "/") + ".py")).is_file()]
            if (node.module, inner) == ("forwardinf", ["forwardinf.__version__"]):
                continue  # it lives in the front door itself
            for found in packages or files or [node.module]:
                yield node.lineno, found
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, given.value) for given in node.args[:1] if isinstance(given, ast.Constant))
        elif isinstance(node, ast.Constant) and HOME.fullmatch(str(node.value)):
            yield node.lineno, node.value.partition(":")[0]


def test_every_file_is_on_a_floor():
    assert len(FILES) > 40
    assert {floor(path) for path in FILES} <= set(FLOORS), "a new floor is a decision: write it down here"


def test_imports_only_go_down():
    for path in FILES:
        assert_goes_down(path)


def assert_goes_down(path):
    here = floor(path)
    for line, module in imports(path):
        package, _, rest = module.partition(".")
        if package != "forwardinf":
            continue
        assert rest, f"{name(path)}:{line}: import from the module, not through the front door"
        there = rest.split(".")[0]
        if there == here:
            assert rest.count("."), f"{name(path)}:{line}: import from the module"
            continue
        assert FLOORS[there] < FLOORS[here], f"{name(path)}:{line}: {here} may not import {there}"
        is_module = (ROOT / (rest.replace(".", "/") + ".py")).is_file()
        assert is_module, f"{name(path)}:{line}: {module} is not a module"


def circles(arrows):
    """Return the groups of files that reach one another, from ``{file: files it imports}``."""
    below = {}

    def reach(start):
        if start not in below:
            found, todo = set(), list(arrows[start])
            while todo:
                here = todo.pop()
                if here not in found:
                    found.add(here)
                    todo += arrows.get(here, ())
            below[start] = found
        return below[start]

    return sorted(
        {tuple(sorted(other for other in reach(one) if one in reach(other))) for one in arrows if one in reach(one)}
    )


def test_there_are_no_circles():
    def module(path):
        return ".".join(("forwardinf", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")

    files = {module(path): path for path in FILES}
    arrows = {one: {other for _, other in imports(path) if other in files} for one, path in files.items()}
    assert sum(map(len, arrows.values())) > 500
    assert circles(arrows) == []


def test_every_home_that_is_named_is_there():
    homes = {node.value for path in FILES for node in ast.walk(tree(path))
             if isinstance(node, ast.Constant) and HOME.fullmatch(str(node.value))}  # fmt: skip
    assert len(homes) > 8
    assert all(brought(home) is not None for home in homes)


def test_a_circle_would_be_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}) == [("b", "c"), ("d",)]


def test_the_floors_would_notice(tmp_path, monkeypatch):
    import test_house as house

    bad = tmp_path / "forwardinf"
    for folder, text in {
        "core": "from forwardinf.read.plan import Plan",
        "perturb": "from forwardinf.read.plan import Plan",
        "read": "import forwardinf",
        "score": "from .top import order",
        "job": "from forwardinf.method import run",
        "truth": "from forwardinf.use.features import features",
        "tasks": "add('x', 'forwardinf.use.features:features')",
        "use": "def f():\n    import forwardinf.view.report",
    }.items():
        path = bad / folder if folder.endswith(".py") else bad / folder / "x.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.setattr(house, "ROOT", bad)
        with pytest.raises(AssertionError):
            house.assert_goes_down(path)


def test_the_front_door():
    assert fi.__all__ == [
        "Bank",
        "CausalLM",
        "Classification",
        "DataError",
        "Diffusion",
        "Error",
        "Evaluation",
        "FileError",
        "Lds",
        "Leaks",
        "Memorized",
        "Mislabeled",
        "MissingExtra",
        "ModelError",
        "MultiLabel",
        "NoiseError",
        "Perturbation",
        "ProbeIndex",
        "QueryError",
        "Regression",
        "RunMismatch",
        "Scores",
        "Segmentation",
        "SelfInfluence",
        "Seq2Seq",
        "SequenceClassification",
        "SettingError",
        "Task",
        "TaskError",
        "TokenClassification",
        "Traced",
        "UnknownId",
        "Verification",
        "__version__",
        "attribute",
        "evaluate",
        "from_trainer",
        "lds",
        "leaks",
        "load_bank",
        "load_data",
        "load_model",
        "load_scores",
        "memorized",
        "mislabeled",
        "self_influence",
        "trace",
        "trace_images",
        "verify",
    ]
    assert dir(fi) == fi.__all__
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        fi.atribute  # noqa: B018


@pytest.mark.parametrize("public", [found for found in fi.__all__ if found != "__version__"])
def test_every_public_name_says_what_it_is(public):
    found = getattr(fi, public)
    assert inspect.getdoc(found), public
    assert found.__doc__, "its own docstring, not its parent's"
    if inspect.isclass(found):
        for member, value in vars(found).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod)):
                assert inspect.getdoc(getattr(found, member)), f"{public}.{member}"
    else:
        described = inspect.getdoc(found)
        for parameter in inspect.signature(found).parameters:
            assert f"{parameter}:" in described, f"{public}({parameter}=) is not described"


def test_every_error_is_ours_and_a_value_error_where_a_value_is_wrong():
    errors = [getattr(fi, public) for public in fi.__all__ if public.endswith("Error") or public == "RunMismatch"]
    assert len(errors) >= 9
    assert all(issubclass(error, fi.Error) for error in errors)
    assert all(issubclass(error, ValueError) for error in errors if error not in (fi.Error, fi.NoiseError))


def test_every_file_says_what_it_is_for():
    assert [name(path) for path in FILES if not ast.get_docstring(tree(path))] == []


def test_only_the_view_prints():
    for path in FILES:
        if floor(path) != "view":
            prints = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and node.id == "print"]
            assert not prints, f"{name(path)}: print on lines {prints}"


def test_nothing_needs_torchvision():
    for path in FILES:
        assert "torchvision" not in {module.partition(".")[0] for _, module in imports(path)}, name(path)


def test_nothing_reads_a_file_that_could_run_code():
    calls = [(path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    for path, node in calls:
        called, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"{name(path)}:{node.lineno}"
        if called == "torch.load":
            assert given.get("weights_only") == "True", where
        elif called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", where
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load"), where
        assert called not in ("yaml.load", "eval", "exec"), where


def test_no_reading_leaves_inference_tensors_behind():
    # torch.inference_mode would: what a model keeps from its first forward could not serve a backward afterwards.
    for path in FILES:
        calls = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        assert not [
            call for call in calls if call.startswith("torch.inference_mode(") and call != "torch.inference_mode(False)"
        ], name(path)


def loaded(statement):
    told = subprocess.run([sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"], check=True,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    return {module.partition(".")[0] for module in told.stdout.split()}


def test_importing_the_package_is_quick_and_the_method_needs_no_extra():
    found = loaded("import forwardinf")
    assert not found & {"torch", "numpy", "pandas", "pyarrow", "transformers"}
    found = loaded(
        "import forwardinf as fi; fi.attribute; fi.Classification; fi.CausalLM; fi.Diffusion; fi.load_scores"
    )
    assert "torch" in found
    assert not found & {"transformers", "datasets", "peft", "diffusers", "accelerate", "torchvision", "sklearn"}


# -- the comparisons that all tests rest on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2, 1), torch.ones(2)),
        (torch.ones(0), torch.ones(0)),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])),
        (torch.tensor([float("nan")] * 2), torch.tensor([float("nan")] * 2)),
        (torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1e-9]), torch.tensor([0.0])),
        ([1.0, float("inf")], [1.0, 2.0]),
    ],
)
def test_the_comparison_fails_where_it_should(got, want):
    with pytest.raises(AssertionError):
        assert_close(got, want, rtol=1e-2, why="a test")
    with pytest.raises(AssertionError):
        assert_within(got, want, atol=1e-10, why="a test")


def test_the_comparison_holds_where_it_should_and_wants_a_reason():
    assert_close([[1.0, 2.0]], torch.tensor([[1.0, 2.01]]), rtol=1e-2, why="a test")
    assert_within([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.01], [3.0, 5.0]], atol=[0.1, 2.0], why="one for each row")
    with pytest.raises(AssertionError):
        assert_within([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.01], [3.0, 5.0]], atol=[0.1, 0.2], why="one for each row")
    with pytest.raises(AssertionError, match="reason"):
        assert_close([1.0], [1.0], rtol=1e-2, why="")
    with pytest.raises(AssertionError, match="worst at 1"):
        assert_close([1.0, 3.0], [1.0, 2.0], rtol=1e-2, why="a test")


# -- Pythons -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["forwardinf", "examples", "benchmarks", "tests", "docs"])
def test_every_file_follows_the_grammar_of_the_oldest_python(folder):
    found = sorted((ROOT.parent / folder).rglob("*.py"))
    assert found, folder
    for path in found:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_the_oldest_grammar_would_notice():
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    f()\nexcept* ValueError:\n    pass", feature_version=(3, 10))


@pytest.mark.whole
def test_the_parts_that_need_no_torch_work_under_the_pythons_present():
    done = subprocess.run([sys.executable, ROOT.parent / "tests" / "pythons.py"], capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]} (" in done.stdout
