# The matrices of the bundled model, the search of the README, and every strategy beside it. An hour on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
python svcca_analysis.py --batch_size 32 --iter_num 300 --thre 0.99 --mode U
python dc_analysis.py --batch_size 4 --iter_num 10
for measure in pwcca cka cosine angular covcorr delta_mean ablation repair; do
    python similarity_analysis.py --measure $measure
done
cd search_strategy
python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc
python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc --repair false
python compare_strategies.py --num_layers 12 --num_clip_layers 6 --max_pairs 1000 --repair false
