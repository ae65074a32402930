"""``python -m forwardinf``."""

import os
import sys

# Python put the current folder first on its path: no file that lies there may stand in for a package that is imported later.
if not getattr(sys.flags, "safe_path", False) and sys.path and os.path.realpath(sys.path[0]) == os.path.realpath("."):
    del sys.path[0]

from forwardinf.view.cli import main

main()
