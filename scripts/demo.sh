#!/usr/bin/env bash
# Train a GPT on real text under certify: twice undisturbed, then interrupted at two random steps and in the middle of a
# save; every bit that comes back must be the same.
set -euo pipefail
cd "$(dirname "$0")/.."
exec neuromanifold certify --work .demo --at-random 2 --during-save -- \
    python train.py --save_separate_optimizer=True --max_iters=60 --out_dir={out} \
    --save_interval=20 --log_interval=1 --sample_tokens=0
