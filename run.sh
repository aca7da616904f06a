#!/usr/bin/env bash
# Sets everything up once, then runs a command.
#
#   ./run.sh                     set up, prepare the digits, train ResNet-50 on them
#   ./run.sh test [pytest args]  set up, then lint, types and all tests on the CPU; some of them:
#                                -m fast (train nothing), -m ranks, -m faults, -k NAME
#   ./run.sh setup               set up only
#   ./run.sh COMMAND [flags]     python -m app COMMAND; see ./run.sh help
#
#   NP=4          Horovod processes (2 if not given; 1 is plain Python)
#   HOSTS=a:4,b:4 machines and slots, as in horovodrun -H
#   GPU=1         set up with TensorFlow's CUDA packages; HOROVOD_GPU_OPERATIONS=NCCL and
#                 HOROVOD_NCCL_HOME=... build Horovod with NCCL
#   PYTHON=...    a Python 3.11, 3.12 or 3.13
#   XDG_CACHE_HOME=...  for what set-up keeps; ~/.cache, or .cache in the project
#
# Exit codes: 0 done, 1 bug, 2 usage, 3 data, 4 checkpoint, 5 numbers, 6 replicas differ,
# 7 lost peer, 42 preempted and saved.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv

fail() { echo "error: $1" >&2; exit "${2:-2}"; }

# Runs a stage of the set-up with its output in the log; a line for the reader, and what goes on
# in a long one. `set -e` does not hold inside a condition: a stage of several commands returns at
# the first that fails.
stage() {
  local title=$1 started=$SECONDS from; shift
  printf '%s ... ' "$title"
  from=$(($(wc -l <"$log") + 1))
  report_progress "$title" "$from" & progress=$!
  trap 'kill "$progress" 2>/dev/null || true' EXIT
  if ! "$@" >>"$log" 2>&1; then
    kill "$progress" 2>/dev/null || true
    echo "failed"
    fail "$title failed: $(find_cause "$from"). The whole output is in $log; put that right and call ./run.sh again." 1
  fi
  kill "$progress" 2>/dev/null || true
  if [ -t 1 ]; then printf '\r\033[K%s ... ' "$title"; fi
  echo "$((SECONDS - started)) s"
}

# Shows the newest line of the log: on a terminal always, in a file every minute.
report_progress() {
  local title=$1 from=$2 started=$SECONDS newest every=60
  if [ -t 1 ]; then every=1; fi
  while sleep $every && kill -0 $$ 2>/dev/null; do
    newest=$(tail -n "+$from" "$log" | grep -vE '^ *$|^ .*[|]' | tail -n 1 | cut -c1-70)
    if [ -t 1 ]; then printf '\r\033[K%s ... %s s: %s' "$title" "$((SECONDS - started))" "${newest:0:60}"
    else printf '\n  %s s: %s ... ' "$((SECONDS - started))" "$newest"; fi
  done
}

# One sentence of the log: the last that was marked as an error, or just the last.
find_cause() {
  local output; output=$(tail -n "+$1" "$log" | grep -v '^ *$')
  { grep -iE '^ *(error|fatal error):' <<<"$output" || echo "$output"; } | tail -n 1 | sed -E 's/^ *(error|ERROR): //; s/\.$//'
}

# What is compiled and fetched, and the log: in the home, or in the project if that may not be written.
find_cache() {
  local home=~
  cache=${XDG_CACHE_HOME:-$home/.cache}/scaleproof log=$cache/setup.log
  if { [ -n "${XDG_CACHE_HOME:-}" ] || [ -d "$home" ]; } && is_writable; then return; fi
  export XDG_CACHE_HOME=$here/.cache # pip's too
  cache=$XDG_CACHE_HOME/scaleproof log=$cache/setup.log
  is_writable || fail "set-up needs a folder to write to, and $here may not be written: set XDG_CACHE_HOME to one."
}

is_writable() { { mkdir -p "$cache" && : >>"$log"; } 2>/dev/null; }

find_python() {
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12), (3, 13)])' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  local found; found=$("${PYTHON:-python3}" --version 2>/dev/null) || found="no ${PYTHON:-python3}"
  fail "scaleproof needs Python 3.11, 3.12 or 3.13, but found $found: install it, or name one with PYTHON=/path/to/python3.11."
}

# Horovod's wheel, compiled once with our patches and then kept.
install_horovod() {
  local wheel
  wheel=$("$venv/bin/python" "$here/third_party/horovod/build.py" "$cache") || return
  "$venv/bin/pip" install --no-deps --force-reinstall "$wheel"
}

build_variables() { env | grep -E '^(GPU|HOROVOD_(WITH|WITHOUT|GPU|NCCL|CUDA|ROCM|BUILD)[A-Z_]*)=' | sort || true; }

setup() {
  # An environment stays as it was built until other build variables are given.
  [ -n "$(build_variables)" ] || [ ! -f "$venv/.build" ] ||
    while IFS= read -r variable; do export "${variable?}"; done <"$venv/.build"
  local extras="build,test${GPU:+,gpu}" wanted python
  wanted=$({ cat "$here"/{constraints.txt,pyproject.toml} "$here"/third_party/horovod/*.{py,patch}; build_variables; echo "$here"; } | sha256sum | cut -c1-64)
  [ "$(cat "$venv/.done" 2>/dev/null)" = "$wanted" ] && return
  find_cache
  python=$(find_python)
  command -v c++ >/dev/null || command -v g++ >/dev/null ||
    fail "Horovod is compiled from source and there is no C++ compiler (c++ or g++): install one, for example with 'apt-get install g++'."
  local free; free=$(df -Pm "$here" | awk 'NR == 2 {print $4}')
  [ "$free" -ge 5000 ] || fail "set-up needs 5,000 MB of disk at $here, but $free MB are free."
  : >"$log"
  # A half-made environment of an interrupted set-up is made anew.
  "$venv/bin/pip" --version >/dev/null 2>&1 ||
    stage "virtual environment" "$python" -m venv --clear "$venv"
  stage "packages (TensorFlow and others, pinned)" install_packages "$extras"
  stage "Horovod (compiled once, then kept in $cache)" install_horovod
  stage "check" "$venv/bin/python" -c 'import horovod.tensorflow as hvd; hvd.init(); assert hvd.gloo_built()'
  build_variables >"$venv/.build"
  echo "$wanted" >"$venv/.done"
}

install_packages() {
  "$venv/bin/python" - "$1" "$here/pyproject.toml" >"$venv/requirements.txt" <<'PY' || return
import sys, tomllib
project = tomllib.load(open(sys.argv[2], "rb"))["project"]
extras = project["optional-dependencies"]
print("\n".join(project["dependencies"] + [r for e in sys.argv[1].split(",") for r in extras[e]]))
PY
  "$venv/bin/pip" install -c "$here/constraints.txt" -r "$venv/requirements.txt"
}

# A command; one that has ranks on NP processes, watched over.
launch() {
  export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} PATH=$venv/bin:$PATH
  # Large pages for large tensors: a step on a CPU does not wait for 4 KiB at a time.
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
  exec python -m app launch "$@"
}

case ${1:-} in
  "")
    setup
    find_cache
    (cd "$here" && stage "data (digits)" "$venv/bin/python" -m app prepare)
    launch train --experiment=resnet50_digits
    ;;
  setup) setup ;;
  test)
    shift
    setup
    cd "$here"
    export PATH=$venv/bin:$PATH
    ours=(app input models tests third_party docs README.md) # what else lies here is its owner's
    ruff check "${ours[@]}"
    ruff format --check "${ours[@]}"
    mypy
    exec python -m pytest "$@"
    ;;
  -h | --help) sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" ;;
  *)
    setup
    launch "$@"
    ;;
esac
