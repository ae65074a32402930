#!/bin/sh
# cleanlab's own environment, apart from ours. sh benchmarks/rivals/setup_cleanlab.sh [folder]      # default /tmp/rivals/cleanlab
set -eu
venv=${1:-/tmp/rivals/cleanlab}
test -x "$venv/bin/python" || python3 -m venv "$venv"
"$venv/bin/python" -m pip -q --disable-pip-version-check install cleanlab==2.9.0
"$venv/bin/python" -c "import cleanlab; print(cleanlab.__version__)"
