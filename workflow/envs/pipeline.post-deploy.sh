#!/usr/bin/env bash
set -euo pipefail
python -m pip install --no-deps -r "$(git rev-parse --show-toplevel)/requirements-openmmlab.txt"
