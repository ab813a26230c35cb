#!/usr/bin/env bash
# ONNX Runtime 1.31.1 for Linux keeps an id of the device and a queue of usage events in the home folder, from its import on.
#
# A good engineer would guess that telemetry is of the Windows builds (so the older documentation says), that importing a library
# writes nothing, and that disable_telemetry_events(), called first, prevents it. Only ORT_DISABLE_TELEMETRY=1, set before the
# import, does. Seen: deviceid and onnxruntime.db in ~/.cache/Microsoft/DeveloperTools/.onnxruntime after `import onnxruntime` alone;
# after a session was made, with the call before it, they are still there; with the variable there is nothing.
# nar_hw sets the variable (unless it is set), as do its deployment kit and what it writes for other devices.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 numpy==2.3.5
unset CI GITHUB_ACTIONS ORT_DISABLE_TELEMETRY ORT_RUNNING_UNIT_TESTS

written() {  # NAME PYTHON [VARIABLE]: how many files are in an empty home folder afterwards
  mkdir "$work/$1"
  env HOME="$work/$1" XDG_CACHE_HOME= ${3:-} "$work/env/bin/python" -c "$2"
  find "$work/$1" -type f | wc -l
}
imported=$(written imported "import onnxruntime")
called=$(written called "import onnxruntime; onnxruntime.disable_telemetry_events()")
variable=$(written variable "import onnxruntime" ORT_DISABLE_TELEMETRY=1)
echo "onnxruntime 1.31.1: files in the home folder after import: $imported, after disable_telemetry_events(): $called, with the variable: $variable"
find "$work/imported" -type f -printf '%P\n' | sort
[ "$imported" -ge 2 ] && [ "$called" -ge 2 ] && [ "$variable" -eq 0 ]
