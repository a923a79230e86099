# Repair without training: the best of all subsets when left out, every other layer, the last layers; the bundled model and its
# other seeds (exp/iconclip_seed1 and 2, made by bundled_model.sh). Fifteen minutes on one core; the ablations and the ranks of all
# subsets, which read the matrices that search.sh leaves, take half an hour more. The ridges on all-mpnet-base-v2 need what
# sentence_encoder.sh fetches, and ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
repair() {
    python clip_finetune_train.py --num_layers 12 --max_epoch 0 --model exp/$1 --output_dir $1_$2 --num_clip_layers $3 --clip_layers $4
}
for model in iconclip iconclip_seed1 iconclip_seed2; do
    repair $model 12to6_every_other 6 2,4,6,8,10,12
    repair $model 12to6_last 6 7-12
    repair $model 12to4_every_other 8 2-3,5-6,8-9,11-12
    repair $model 12to4_last 8 5-12
done
repair iconclip 12to6_winner 6 3-4,6-9
repair iconclip 12to4_winner 8 2-3,5-9,11
repair iconclip_seed1 12to6_winner 6 3-4,7-9,12
repair iconclip_seed1 12to4_winner 8 2-4,7-9,11-12
repair iconclip_seed2 12to6_winner 6 3-6,8,11
repair iconclip_seed2 12to4_winner 8 3-6,8,10-12
# Other draws of the captions, and the winner of the default search (six minutes on one core)
for seed in 1 2 3 4; do
    for set in default_search:3-5,7,9,12 winner:3-4,6-9 every_other:2,4,6,8,10,12 last:7-12; do
        python clip_finetune_train.py --num_layers 12 --max_epoch 0 --model exp/iconclip --seed $seed --num_clip_layers 6 \
            --clip_layers ${set#*:} --output_dir iconclip_12to6_${set%:*}_seed$seed
    done
done
python -m benchmarks.recovery --clip_layers 3-4,6-9 --weights 4 --max_pairs 24000 --every 20 --num_epochs 2 --max_epoch 2 \
    --out exp/recovery_12to6.json
python -m benchmarks.repair_ablation --max_pairs 1000 --out exp/repair_ablation.json
for captions in 100 300 4000; do
    python -m benchmarks.repair_ablation --max_pairs 1000 --captions $captions --ways repaired "ridge 0.01" "ridge 0.1" \
        --out exp/ridge_iconclip_$captions.json
done
python -m benchmarks.repair_ablation --model exp/all-mpnet-base-v2 --dataset exp/debian_300 --caption_column query --target_column text \
    --captions 300 --clip_layers 3,5-9 2,4,6,8,10,12 --ways repaired "ridge 0.01" "ridge 0.1" --out exp/ridge_all-mpnet-base-v2_300.json
python -m benchmarks.repair_ranks --max_pairs 500 --out exp/repair_ranks.json
# Captions alone, left out and repaired, beside the losses that search.sh made; what is deployed, all subsets (two hours on one core)
losses=results/iconclip/compare_clip12to6_max1000
python -m benchmarks.captions_alone --losses ${losses}_left_out.json --repair false --max_pairs 1000 --out exp/captions_alone_left_out.json
python -m benchmarks.captions_alone --losses $losses.json --max_pairs 1000 --out exp/captions_alone.json
python -m benchmarks.repair_deployed --draws 924 --max_pairs 1000 --out exp/repair_deployed.json
python -m benchmarks.foretell_deployed exp/repair_deployed.json --losses ${losses}_left_out.json $losses.json
# Fine-tuning of the best of all subsets, distilled by feature (five minutes of one core each)
tune() {
    python clip_finetune_train.py --model exp/$1 --output_dir $1_tuned --num_layers 12 --num_clip_layers 6 --clip_layers $2 \
        --distill_mode feature --max_pairs 24000 --max_epoch 2
}
tune iconclip 3-4,6-9
tune iconclip_seed1 3-4,7-9,12
tune iconclip_seed2 3-6,8,11
