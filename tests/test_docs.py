"""The documents say what the code does: commands, settings, public names."""

import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
from dataclasses import fields
from pathlib import Path

import pytest

import forwardinf as fi
from forwardinf.core.settings import Perturbation

ROOT = Path(__file__).parents[1]


def test_the_command_page_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.page(), "run `make docs`"


def test_every_setting_of_a_perturbation_is_explained():
    for field in fields(Perturbation):
        assert f"        {field.name}: " in Perturbation.__doc__, field.name


def test_every_link_in_the_documents_leads_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(fi.__path__, "forwardinf.")])
def test_examples_in_docstrings_give_what_they_say(name):
    if not name.endswith("__main__"):
        assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_changelog_knows_this_version():
    assert f"## {fi.__version__} - " in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {fi.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_no_extra_brings_torchvision():
    import sys

    if sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        named = [
            *project["dependencies"],
            *(line for lines in project["optional-dependencies"].values() for line in lines),
        ]
        assert not [line for line in named if "torchvision" in line or "torchaudio" in line]
    assert "torchvision" not in (ROOT / "constraints.txt").read_text()


def test_a_pinned_version_that_the_oldest_python_cannot_have_is_pinned_for_the_others_only():
    import importlib.metadata

    from packaging.specifiers import SpecifierSet

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        try:
            found = importlib.metadata.metadata(name.strip())
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        if not line.startswith("#") and "3.10.13" not in SpecifierSet(found.get("Requires-Python") or ""):
            assert "python_version >= " in pinned, f"{name} cannot be installed under Python 3.10: mark it"


def test_the_tables_hold_the_numbers_that_the_benchmarks_wrote():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, fill in ((ROOT / "README.md", module.readme), (ROOT / "docs" / "published.md", module.published)):
        assert path.read_text() == fill(path.read_text()), f"{path.name}: run `make docs`"
    found = json.loads((ROOT / "benchmarks" / "results" / "forward.json").read_text())["results"]
    rows = [
        line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| (CNN|ResNet|decoder)", line)
    ]
    assert len(rows) == len(found)
    for row, case in zip(rows, found.values(), strict=True):
        assert f"| {case['one_query_over_F_star']['median']:.2f} |" in row


def test_every_command_is_in_the_command_page():
    from typer.main import get_command

    from forwardinf.view.cli import app

    page = (ROOT / "docs" / "cli.md").read_text()
    assert all(f"## forwardinf {name}\n" in page for name in get_command(app).commands)


# -- the plan of the house, and its words ------------------------------------------------------------------------------


def test_the_plan_of_the_house_is_drawn_from_the_imports_that_are_there():
    from test_house import FILES, floor, imports

    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "architecture.svg").read_text() == module.picture(), "run `make docs`"
    files, arrows = module.house()
    level = module.floors(arrows)
    assert sum(files.values()) == sum(path.name != "__init__.py" for path in FILES)
    found = {
        (floor(path), name.split(".")[1])
        for path in FILES
        for _, name in imports(path)
        if name.startswith("forwardinf.")
    }
    assert {(room, other) for room in arrows for other in arrows[room]} == {(a, b) for a, b in found if a != b}
    assert all(level[other] < level[room] for room in arrows for other in arrows[room])
    kept = {room: {other for start, other in module.needed(arrows) if start == room} for room in arrows}
    assert reached(kept) == reached(arrows), "what is left out is reached all the same"
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"| `{room}` | " in page for room in files)


def reached(arrows):
    def below(room):
        return set().union(*({other} | below(other) for other in arrows[room]))

    return {room: below(room) for room in arrows}


def test_every_word_of_the_glossary_is_used_in_the_package_and_the_houses_own_in_its_names():
    first, own = (ROOT / "docs" / "glossary.md").read_text().split("## The house's")
    words, ours = (re.findall(r"^\| \*\*(.+?)\*\* \|", part, re.MULTILINE) for part in (first, own))
    assert len(words) > 10
    assert len(ours) > 10
    assert len(set(words) | set(ours)) == len(words) + len(ours) <= 40
    files = sorted((ROOT / "forwardinf").rglob("*.py"))
    text = "\n".join(path.read_text() for path in files)
    for word in words:
        assert re.search(rf"\b{re.escape(word)}s?\b", text, re.IGNORECASE), word
    names = {path.stem for path in files} | set(re.findall(r"^\s*(?:class|def) (\w+)", text, re.MULTILINE))
    spaced = {re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower() for name in names}
    for word in ours:
        assert any(re.search(rf"\b{word}s?\b", name) for name in spaced), word
