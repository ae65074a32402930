"""``python -m forwardinf``."""

from forwardinf.view.cli import main

main()
