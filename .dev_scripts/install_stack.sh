#!/usr/bin/env bash
# Builds the environment of one stack in a folder of its own:
#
#   .dev_scripts/install_stack.sh STACK FOLDER
#
# STACK is a file of requirements/ (onedl or openmmlab), FOLDER the virtual
# environment, made if it is missing. Run it again after an interruption or
# after the pins changed: what is there and fits is kept.
#
#   BASE_PYTHON  the Python to build on; default: the first that fits
#   MAX_JOBS     compilers at a time; default: one a core, as memory allows
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -ne 2 ]; then
  echo 'usage: .dev_scripts/install_stack.sh STACK FOLDER' >&2
  exit 2
fi
stack=$1
venv=$2
pins=requirements/$stack.txt
logs=$venv/logs
python=$venv/bin/python
steps=8
step=0

# What a line of a log means, and what to do about it: PATTERN => HINT.
hints=(
  'No space left on device => The disk is full: see df -h.'
  'fatal error: Python.h => No Python headers: apt-get install python3-dev'
  'Killed => Out of memory? Compile one file at a time: MAX_JOBS=1 make env'
  'CUDA_HOME environment variable is not set => A GPU but no CUDA toolkit
    (nvcc): install the one torch was built with, or compile for the CPU alone:
    CUDA_VISIBLE_DEVICES= make env'
  'CUDA version .* mismatches => nvcc is of another CUDA release than torch:
    set CUDA_HOME, or compile for the CPU: CUDA_VISIBLE_DEVICES= make env'
  'lib(GL|gthread).* cannot open shared => OpenCV needs system libraries:
    apt-get install libgl1 libglib2.0-0'
  'No matching distribution => pip found no such version for this Python. Is
    PyPI reached? Is the pin right?'
  'Connection|timed out|name resolution => Is the network up? Then run it again.'
)

die() {
  printf '\nThe environment was not built: %s\n' "$1" >&2
  exit 1
}

# run NAME TEXT COMMAND...: one step, its output in a log.
run() {
  local name=$1 log=$logs/$1.log
  step=$((step + 1))
  printf '[%d/%d] %s\n' "$step" "$steps" "$2"
  # in the foreground, so that Ctrl-C reaches pip and the compilers too
  "${@:3}" >"$log" 2>&1 </dev/null || explain "$name" "$log"
}

# A sign of life every half minute, with ninja's count of compiled files when
# the newest log has one. It ends with the script, whatever ends that.
show_life() {
  local start=$SECONDS seconds log
  while sleep 30 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    seconds=$((SECONDS - start))
    log=$(ls -t "$logs" | head -n 1)
    printf '      %d min %02d s %s\n' $((seconds / 60)) $((seconds % 60)) \
      "$(grep -oE '\[[0-9]+/[0-9]+\]' "$logs/$log" | tail -n 1)"
  done
}

indent() { cut -c 1-300 | sed 's/^/    /'; }

# explain NAME LOG: why a step failed.
explain() {
  local name=$1 log=$2 entry
  set +e  # nothing found in a log is no reason to stop here
  {
    printf '\nThe last lines of %s:\n' "$log"
    # without pip's notes on places it does not look in, nor endless lines
    grep -v '^ *WARNING: Location' "$log" | tail -n 20 | indent
    # a compiler's message stands far above the traceback that ends the log
    if grep -qE 'error: ' <(head -n -20 "$log"); then
      printf 'and its first errors:\n'
      head -n -20 "$log" | grep -E 'error: ' | head -n 5 | indent
    fi
    for entry in "${hints[@]}"; do
      if grep -qE "${entry%% => *}" "$log"; then
        printf 'Hint: %s\n' "$(tr -s ' \n' ' ' <<<"${entry#* => }")"
      fi
    done
  } >&2
  die "step $step of $steps, $name, failed."
}

# a step's output goes to its log, and so would what a trap says: hence 3
exec 3>&1
trap 'echo "Interrupted; the same command goes on from here." >&3; exit 130' \
  INT TERM

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# pin NAME: its line in the stack's file.
pin() { grep -oE "^(onedl-)?$1==[^ #]+" "$pins"; }

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
    2>/dev/null
}

# The packages declare Python 3.10 to 3.12.
find_python() {
  local candidate
  for candidate in ${BASE_PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if fits "$candidate"; then
      base=$candidate
      return
    fi
  done
  die "it needs Python 3.10 to 3.12, and ${BASE_PYTHON:-python3} is $(
    "${BASE_PYTHON:-python3}" --version 2>&1 || true). Install one, or name it:
    make env BASE_PYTHON=/path/to/python3.11"
}

# Everything that would else fail after minutes.
check_prerequisites() {
  [ -f "$pins" ] || die "there is no stack '$stack' (no file $pins)."
  find_python
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$base has no venv module: apt-get install python3-venv"
  command -v "${CXX:-c++}" >/dev/null ||
    die 'there is no C++ compiler: apt-get install g++'
  local include
  include=$("$base" -c \
    'import sysconfig; print(sysconfig.get_path("include"))')
  printf '#include <Python.h>\n#include <optional>\n' |
    "${CXX:-c++}" -std=c++17 -I"$include" -fsyntax-only -x c++ - 2>/dev/null ||
    die "${CXX:-c++} cannot compile C++17 with Python's headers:
    apt-get install g++ python3-dev"
  local free
  free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024 / 1024)}')
  [ -x "$python" ] || [ "$free" -ge 4 ] ||
    die "it needs 4 GiB of disk, and $free are free here."
}

# One compiler a core, and 2 GiB of memory for each.
compilers() {
  "$base" - <<'PY'
import os
memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
print(max(1, min(len(os.sched_getaffinity(0)), memory >> 31)))
PY
}

make_venv() {
  # an interrupted or moved one, or one whose Python is gone
  if [ -f "$venv/pyvenv.cfg" ] && ! pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
  fi
  mkdir -p "$logs"
  run venv "virtual environment $venv on $("$base" --version)" \
    create_venv
}

create_venv() { [ -x "$python" ] || "$base" -m venv "$venv"; }

ops_work() {
  "$python" - <<'PY'
import torch
from mmcv.ops import nms, roi_align, sigmoid_focal_loss  # noqa: F401

torch.set_default_device('cuda' if torch.cuda.is_available() else 'cpu')
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), .5)[1]
assert kept.tolist() == [0, 2], kept
rois = torch.tensor([[0., 0, 0, 4, 4]])
assert roi_align(torch.ones(1, 1, 8, 8), rois, 2).eq(1).all()
PY
}

install_mmcv() {
  local build=(pip install -v --no-build-isolation --constraint "$pins")
  "${build[@]}" "$(pin mmcv)" && "$python" -c 'import cv2, mmengine' || return
  if ! ops_work; then
    # compiled against another torch: by an earlier pin, or in pip's cache
    "${build[@]}" --no-cache-dir --force-reinstall --no-deps "$(pin mmcv)" &&
      ops_work
  fi
}

# One function, so that bash has read the whole file before it starts: an edit
# or a git pull meanwhile cannot derail it.
main() {
  check_prerequisites
  export MAX_JOBS=${MAX_JOBS:-$(compilers)}
  # setuptools compiles with -g; nobody debugs mmcv here, and without it a
  # file takes a third of the time
  export CFLAGS="-g0 ${CFLAGS-}"

  make_venv
  show_life &
  trap "kill $! 2>/dev/null || true" EXIT
  # Torch first and alone: as a dependency of another package it would be the
  # newest build, with gigabytes of CUDA packages.
  run torch "$(pin torch)" pip install "$(pin torch)"
  run build "what mmcv's compiled ops are built with" \
    pip install -r requirements/build.txt
  local compile=
  "$python" -c 'import torch, mmcv._ext' 2>/dev/null ||
    compile=": compiled once, in about 5 minutes on 2 cores ($MAX_JOBS jobs
      here), or taken from pip's cache"
  run mmcv "$(pin mmcv)$compile" install_mmcv
  run stack "the rest of $pins" pip install -r "$pins"
  run tests 'what tests, lint and export need' \
    pip install --constraint "$pins" -r requirements/tests.txt \
      -r requirements/export.txt
  # --no-build-isolation: setuptools is here, none need be fetched
  run package 'frn_mmdet itself, editable' \
    pip install --no-deps --no-build-isolation --editable .
  run check 'does it work? (torch, mmcv ops, mmdet)' \
    "$python" -c 'import mmdet.apis'
  printf 'The environment is ready: %s\n' "$venv"
}

main
exit
