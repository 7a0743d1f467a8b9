#!/usr/bin/env bash
# Runs the same experiment with several values of one config key, one after another, each in its own workdir.
#
#   launch/sweep.sh workdirs/seeds seed 0 1 2 -- --config=configs/digits_fixer.py
#   launch/sweep.sh workdirs/epsilon run.fixer.attack.epsilon 4/255 8/255 -- --config=configs/cifar_fixer.py
#
# The workdirs are FOLDER/KEY=VALUE, with / in the value replaced by _.  Stops at the first failure; repeat the command
# to continue, without retraining what is already trained.  Set PYTHON to use another interpreter.
set -euo pipefail

usage() {
  echo "usage: launch/sweep.sh FOLDER KEY VALUE... -- --config=FILE [FLAGS]" >&2
  exit 2
}

(($# >= 5)) || usage
folder=$1
key=$2
shift 2
values=()
while (($# > 0)) && [[ $1 != -- ]]; do
  values+=("$1")
  shift
done
(($# >= 2 && ${#values[@]} > 0)) || usage
shift

for value in "${values[@]}"; do
  echo "== $key=$value"
  "${PYTHON:-python}" -m advjax.main --workdir="$folder/$key=${value//\//_}" "$@" "--config.$key=$value"
done
