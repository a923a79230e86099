"""Step 4: build the pruned model from the winner of the search, and fine-tune its text tower.

    python clip_finetune_train.py --output_dir clip12to6_exp1 --resume_epoch 0 --num_layers 12 --num_clip_layers 6

The image tower is frozen and its embeddings are computed once, so stored image embeddings stay valid. With
`--clip_mode scratch` the trained towers start from fresh weights instead.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import experiment
from data import load_pairs
from experiment import boolean, bounded, positive_int
from models import Clip, load_clip
from models.retrieval import retrieval_recall, task_loss
from training.batches import PairBatches
from training.loop import Settings, Trainer, save_clip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fine-tune a pruned CLIP text transformer, or train one from scratch.")
    parser.add_argument("--output_dir", required=True, help="folder under exp/ for this run")
    parser.add_argument(
        "--resume_epoch", type=bounded(int, 0), default=0, help="go on after this epoch (default: 0, a new run)"
    )
    parser.add_argument("--num_layers", type=positive_int, required=True, help="text layers of the model")
    parser.add_argument("--num_clip_layers", type=bounded(int, 0), required=True, help="how many of them are dropped")
    parser.add_argument("--clip_mode", choices=("finetune", "scratch"), default="finetune", help="default: finetune")
    parser.add_argument("--freeze_vision", type=boolean, default=True, help="keep the image tower (default: true)")
    parser.add_argument("--max_epoch", type=positive_int, default=50, help="default: 50")
    parser.add_argument("--batch_size", type=positive_int, default=256, help="pairs in a step (default: 256)")
    parser.add_argument("--lr", type=bounded(float, 0), default=1e-4, help="peak learning rate (default: 1e-4)")
    parser.add_argument("--weight_decay", type=bounded(float, 0), default=0.1, help="on matrices (default: 0.1)")
    parser.add_argument(
        "--warmup_steps", type=bounded(int, 0), default=100, help="linear warm-up, then cosine (default: 100)"
    )
    parser.add_argument("--max_grad_norm", type=bounded(float, 0), default=1.0, help="default: 1")
    experiment.add_common_flags(parser)
    return parser


@experiment.script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    output_dir = args.exp_dir / args.output_dir
    device = experiment.set_up(args, output_dir / "train.log", append=args.resume_epoch > 0)
    set_seed(args.seed)
    clip = load_clip(args.model, device, weights=False)
    train = load_pairs(args.dataset, "train")
    validation = load_pairs(args.dataset, "validation")
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__ if hasattr(args, name)})

    def validate() -> dict:
        images = clip.image_embeddings(validation.images)
        text = clip.text_embeddings(validation.captions)
        recall = retrieval_recall(text, images, torch.from_numpy(validation.image_index))
        loss = task_loss(text, images[validation.image_index], clip.logit_scale, 256)
        return {"task_loss": loss, **recall, "mean_recall": sum(recall.values()) / len(recall)}

    batches = PairBatches(clip, train, None)
    trainer = Trainer(clip, batches, validate, output_dir, settings, Accelerator(cpu=device == "cpu"))
    trainer.train(args.resume_epoch, experiment.show_progress())


if __name__ == "__main__":
    main()
