#!/usr/bin/env bash
# Train 100 steps, resume to 200; train 200 in one go; both must end in identical files. Then the six-phase test.
set -euo pipefail
cd "$(dirname "$0")/.."
resumed=.demo/resumed uninterrupted=.demo/uninterrupted
rm -rf .demo

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Train 100 steps"
python train.py --save_separate_optimizer=True --max_iters=100 --out_dir="$resumed" --sample_tokens=0
ls "$resumed"/checkpoint-*-model.pt "$resumed"/checkpoint-*-optimizer.pt

say "2. Resume to 200 in a new process, reading data with 2 workers"
python train.py --save_separate_optimizer=True --max_iters=200 --out_dir="$resumed" --num_workers=2

say "3. Train 200 steps in one go"
python train.py --save_separate_optimizer=True --max_iters=200 --out_dir="$uninterrupted" --sample_tokens=0

say "4. Compare every byte"
for file in checkpoint-step000200-model.pt checkpoint-step000200-optimizer.pt metrics.csv; do
    cmp "$resumed/$file" "$uninterrupted/$file"
    echo "identical: $file"
done
neuromanifold verify "$resumed"

say "5. The six-phase test"
python test_training_resumption.py
