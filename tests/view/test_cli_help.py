"""The help of every command: whole words, plain text, and what is said is true."""

import re
import sys

import pytest
from typer.main import get_command

from forwardinf.core.settings import DIRECTIONS, Perturbation
from forwardinf.view.cli import app, main

COMMANDS = get_command(app).commands


def told(monkeypatch, capsys, width, *words):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    monkeypatch.setattr(sys, "argv", ["forwardinf", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return capsys.readouterr().out


def squeezed(text):
    return re.sub(r"[\s-]+", "", text)  # a line may break at a space, or behind a hyphen


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_says_everything_in_whole_words(monkeypatch, capsys, name, width):
    page = told(monkeypatch, capsys, width, name, "--help")
    assert squeezed(COMMANDS[name].help) in squeezed(page)
    for parameter in COMMANDS[name].params:
        if parameter.name != "help":
            assert parameter.help, f"{name} {parameter.name}"
            assert squeezed(parameter.help) in squeezed(page), parameter.name
    assert max(map(len, page.splitlines())) <= max(width, 80)


def test_no_help_holds_pictures_or_codes(monkeypatch, capsys):
    for name in ("", *COMMANDS):
        page = told(monkeypatch, capsys, 80, *([name] if name else []), "--help")
        strange = {
            letter for letter in page if ord(letter) > 0x2FFF or letter == "\x1b" or 0x2500 <= ord(letter) < 0x2800
        }
        assert not strange, (name, strange)
        assert "🏭" not in page


def test_the_list_of_commands_says_each_in_full(monkeypatch, capsys):
    page = told(monkeypatch, capsys, 80, "--help").partition("Commands:")[2]
    assert "..." not in page
    for name, command in COMMANDS.items():
        assert f"  {name} " in page
        assert squeezed(command.help) in squeezed(page)


def test_the_perturbations_that_help_names_are_there(monkeypatch, capsys):
    page = " ".join(told(monkeypatch, capsys, 120, "attribute", "--help").split())
    presets, directions = re.search(r"A preset \(([^)]+)\) or a direction \(([^)]+)\)", page).groups()
    assert directions.split(", ") == list(DIRECTIONS)
    assert all(isinstance(Perturbation.preset(preset), Perturbation) for preset in presets.split(", "))
