# A model and texts that others made: all-mpnet-base-v2 on the package descriptions of Debian, the short one against the long one.
# Every strategy, every measure (mean and sum), their ranks among all subsets; then all subsets repaired. Needs pip, apt-get and the network.
set -euo pipefail
cd "$(dirname "$0")/.."
python tools/fetch_sentence_models.py --output_dir exp
[ -d exp/debian_pairs ] || python tools/fetch_debian_pairs.py --output_dir exp/debian_pairs
data="--model exp/all-mpnet-base-v2 --dataset exp/debian_pairs --caption_column query"
python svcca_analysis.py $data --precision float32
python dc_analysis.py $data
for measure in pwcca cka cosine angular covcorr delta_mean ablation repair; do
    python similarity_analysis.py --measure $measure $data --precision float32
done
for dropped in 3 6 8; do
    python search_strategy/compare_strategies.py --num_layers 12 --num_clip_layers $dropped $data --target_column text --max_pairs 300
    python -m benchmarks.repair_ranks --num_clip_layers $dropped $data --target_column text --max_pairs 300 \
        --out exp/all-mpnet-base-v2/repair_ranks_12to$((12 - dropped)).json
done
