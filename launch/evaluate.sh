#!/usr/bin/env bash
# Re-evaluates trained experiments one after another, each with its own checkpoints and the config it was trained with.
#
#   launch/evaluate.sh workdirs/digits_fixer workdirs/cifar_fixer
#   launch/evaluate.sh workdirs/seeds/* -- --distributed=none          # after --: flags of advjax.main
#
# Continues after a failure and then exits with 1; exits with 42 immediately if preempted.  Set PYTHON to use another
# interpreter.
set -euo pipefail

folders=()
while (($# > 0)) && [[ $1 != -- ]]; do
  folders+=("$1")
  shift
done
if ((${#folders[@]} == 0)); then
  echo "usage: launch/evaluate.sh FOLDER... [-- FLAGS]" >&2
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
