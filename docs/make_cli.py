"""Write docs/cli.md from the commands themselves: `python docs/make_cli.py`. A test checks that it is up to date."""

from pathlib import Path

from typer.main import get_command

from forwardinf.view.cli import app

HEAD = """# The command line

Made from the commands by `make docs`. Results go to stdout as JSON with `--json`; everything for people to stderr.
Exit code 0: done, 1: an error in data, model or files, 2: a wrong setting. `module:function` words import your code: on the
command line because you named it, from a configuration or a run folder only with `--allow-code`.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, command in sorted(get_command(app).commands.items()):
        parts.append(f"## forwardinf {name}\n\n{command.help}\n")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        parts.append("| | |\n|---|---|")
        parts += [f"| `{(p.metavar or p.name).upper()}` | {p.help} |" for p in arguments]
        for option in options:
            default = (
                "required"
                if option.required
                else ""
                if option.default in (None, False)
                else f"default `{option.default}`"
            )
            told = " ".join(filter(None, [option.help or "", f"({default})" if default else ""]))
            parts.append(f"| `{'`, `'.join(option.opts)}` | {told} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
