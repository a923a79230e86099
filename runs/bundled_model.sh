# The bundled model, and the towers of other depths against the same frozen image tower. Six hours on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
shape="--num_merges 1000 --max_length 48 --image_size 64 --patch_size 32 --hidden_act gelu"
python -m tools.build_clip --output_dir exp/untrained $shape
# 1. The image tower, with a text tower of four layers (25 minutes)
python clip_finetune_train.py --output_dir stage1 --clip_mode scratch --model exp/untrained --num_layers 12 --num_clip_layers 8 \
    --freeze_vision false --max_epoch 6 --batch_size 128 --lr 1e-3 --warmup_steps 200
# 2. Text towers from scratch against it: 12 layers (22 minutes), then fewer
python -m tools.build_clip --output_dir exp/start $shape --vision_from exp/stage1
for cut in 0 6 10 11; do
    python clip_finetune_train.py --output_dir depth$((12 - cut)) --clip_mode scratch --model exp/start --num_layers 12 \
        --num_clip_layers $cut --max_epoch 4 --batch_size 128 --lr 1e-3 --warmup_steps 200 --precision bf16
done
# 3. Three more seeds of the bundled model (22 minutes each)
for seed in 1 2 3; do
    python clip_finetune_train.py --output_dir iconclip_seed$seed --clip_mode scratch --model exp/start --num_layers 12 --num_clip_layers 0 \
        --max_epoch 4 --batch_size 128 --lr 1e-3 --warmup_steps 200 --precision bf16 --seed $seed
done
# 4. The icons on their split by concept, augmented: both towers from scratch (100 minutes)
python -m tools.build_clip --dataset icons --output_dir exp/icons_start --num_merges 2464
python clip_finetune_train.py --output_dir icons_36 --clip_mode scratch --model exp/icons_start --dataset icons --num_layers 12 \
    --num_clip_layers 0 --freeze_vision false --augment true --max_epoch 36 --batch_size 256 --lr 1e-3 --warmup_steps 200 --average last:5 --precision bf16
