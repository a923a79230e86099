# Repair without training of the bundled model: what the search found, every other layer, the last layers. 10 minutes on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
repair() { python clip_finetune_train.py --num_layers 12 --max_epoch 0 "$@"; }
repair --output_dir repaired_12to6 --num_clip_layers 6
repair --output_dir repaired_12to6_every_other --num_clip_layers 6 --clip_layers 2,4,6,8,10,12
repair --output_dir repaired_12to6_last --num_clip_layers 6 --clip_layers 7-12
repair --output_dir repaired_12to6_winner_left_out --num_clip_layers 6 --clip_layers 3-4,6-9
repair --output_dir repaired_12to4_every_other --num_clip_layers 8 --clip_layers 2-3,5-6,8-9,11-12
repair --output_dir repaired_12to4_last --num_clip_layers 8 --clip_layers 5-12
python -m benchmarks.repair_ablation --max_pairs 1000 --out exp/repair_ablation.json
