#!/usr/bin/env bash
# Evaluates trained experiments again, one after another: the checkpoints in each folder, with the config they were
# trained with.
#
#   launch/evaluate.sh workdirs/digits_fixer workdirs/cifar_fixer
#   launch/evaluate.sh workdirs/seeds/* -- --distributed=none          # flags of advjax.main after --
#
# Goes on after a failure; exits with 1 if there was any, with 42 at once if it was preempted.  PYTHON names another
# interpreter.
set -euo pipefail

folders=()
while (($# > 0)) && [[ $1 != -- ]]; do
  folders+=("$1")
  shift
done
if ((${#folders[@]} == 0)); then
  echo "usage: launch/evaluate.sh FOLDER... [-- FLAGS OF advjax.main]" >&2
  exit 2
fi
shift $(($# > 0))

failed=()
for folder in "${folders[@]}"; do
  echo "== $folder"
  code=0
  "${PYTHON:-python}" -m advjax.main --mode=evaluate --workdir="$folder" "$@" || code=$?
  if ((code == 42)); then exit 42; fi
  if ((code != 0)); then failed+=("$folder"); fi
done
if ((${#failed[@]} > 0)); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
