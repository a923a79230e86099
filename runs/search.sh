# The matrices of the bundled model and the search of the README; every strategy, every measure and five draws of the captions beside
# all subsets, for the bundled model and its other seeds (made by bundled_model.sh). Two and a half hours on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
python svcca_analysis.py --batch_size 32 --iter_num 300 --thre 0.99 --mode U
python dc_analysis.py --batch_size 4 --iter_num 10
cd search_strategy
python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc
for dropped in 6 8; do  # the five best repaired cut by cut (four minutes each)
    python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers $dropped --select_measure dc --refit 5
done
compare="python compare_strategies.py --num_layers 12 --max_pairs 1000 --repair false --draws 5"
$compare --num_clip_layers 6 --scratch ../exp/depth6
for dropped in 3 8; do
    $compare --num_clip_layers $dropped
done
for model in iconclip_seed1 iconclip_seed2 iconclip_seed3; do
    for dropped in 6 3 8; do
        $compare --num_clip_layers $dropped --model ../exp/$model
    done
done
# The same of three of them, every proposal repaired
for model in iconclip iconclip_seed1 iconclip_seed2; do
    for dropped in 6 8; do
        python compare_strategies.py --num_layers 12 --num_clip_layers $dropped --max_pairs 1000 --model ../exp/$model
    done
done
# After a change of the search or of the draws, `--losses` takes the losses of all subsets from an earlier file: a minute each
# The refinement alone, from random proposals, replayed on the recorded losses of all models
cd ..
python -m benchmarks.replay_search results/*/compare_clip12to*_left_out.json results/earlier/*/compare_clip12to*_left_out.json --chances 0.007 0.004 --out exp/replay.json
