#!/usr/bin/env bash
# MNN 3.6.1: the command mnnconvert runs `pip install -U aliyun-log-python-sdk` before it looks at its arguments.
#
# A good engineer would guess that a converter reads one file and writes another. MNN's Python commands (mnnconvert, mnnquant) first
# import a logger that wants Alibaba Cloud's log client and, where that is missing, calls pip to install its newest version into the
# environment, without asking and whatever is pinned there. With the client in place they, by their source, fetch credentials
# over the network and report each conversion: machine, time, options, sizes. Here `pip` is a stand-in that notes how it was called and installs nothing;
# nothing is converted. The same converter without all that: `python -c "import sys, _tools; _tools.mnnconvert(sys.argv)" -f ONNX ...`,
# which is what nar_hw runs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 numpy==2.4.6
mkdir "$work/bin"
printf '#!/bin/sh\necho "pip $*" >> "%s/called"\nexit 1\n' "$work" > "$work/bin/pip"
chmod +x "$work/bin/pip"
cd "$work"
PATH="$work/bin:$PATH" env/bin/mnnconvert --version > said 2>&1 || true
echo "mnnconvert --version of MNN 3.6.1 called: $(sort -u called)"
grep -qx "pip install -U aliyun-log-python-sdk" called || { echo "the behaviour has changed"; exit 1; }
rm called
PATH="$work/bin:$PATH" env/bin/python -c "import sys, _tools; _tools.mnnconvert(sys.argv)" --version > said 2>&1 || true
echo "its converter called from Python: $(cat called 2> /dev/null || echo nothing)"
[ ! -e called ] || { echo "the behaviour has changed"; exit 1; }
