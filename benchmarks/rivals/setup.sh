#!/bin/sh
# The rivals' own environment, apart from ours: kronfluence, dattri and captum pull torchvision and more. About 2 GB.
# sh benchmarks/rivals/setup.sh [folder]      # default /tmp/rivals/venv
set -eu
venv=${1:-/tmp/rivals/venv}
test -x "$venv/bin/python" || python3 -m venv "$venv"
# One resolution, torch pinned: left free, torchvision brings another torch than the one that trained the models.
"$venv/bin/python" -m pip -q --disable-pip-version-check install torch==2.13.0 kronfluence==1.0.1 dattri==0.3.0
# captum asks for another numpy: where that does not fit, its rows say so.
"$venv/bin/python" -m pip -q --disable-pip-version-check install captum==0.9.0 || echo "captum: not installed" >&2
"$venv/bin/python" -c "import torch, kronfluence, dattri; print(torch.__version__)"
