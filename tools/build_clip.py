"""Write an untrained CLIP with a tokenizer of its own for a set of captions: what training from scratch starts from.

    python -m tools.build_clip --output_dir exp/iconclip_untrained

The tokenizer is CLIP's kind (lower case, byte-level BPE, start and end tokens last) with merges from the train
captions. The weights are made when training starts, `clip_finetune_train.py --clip_mode scratch`; with `--vision_from`
the image tower's are those of a trained CLIP, for text towers that are trained against it as it is.
"""

import argparse
import json
from pathlib import Path

from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from common import atomic_folder, script, whole_number
from common.cli import Parser
from common.files import DEFAULT_DATASET, check_new_folder, reading
from data import load_pairs

SHORTEST = 3
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], num_merges: int, max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer: every byte, inside and at the end of a word, up to `num_merges` merges, start and end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{byte}</w>" for byte in alphabet]
    tokenizer = CLIPTokenizer().backend_tokenizer  # for its normaliser and its words
    tokenizer.model = models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(endings) + num_merges,
        initial_alphabet=alphabet,
        # numbered before any merge: merges of equal count are then taken in the same order every time
        special_tokens=endings,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [*alphabet, *endings, *map("".join, merges), START, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def clip_config(tokenizer: CLIPTokenizer, args: argparse.Namespace) -> CLIPConfig:
    """Configuration of both towers, as wide as each other."""
    tower = {
        "hidden_size": args.width,
        "intermediate_size": 4 * args.width,
        "num_attention_heads": args.heads,
        "projection_dim": args.width,
        "hidden_act": args.hidden_act,
    }
    text = {
        "num_hidden_layers": args.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": args.max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": args.vision_layers, "image_size": args.image_size, "patch_size": args.patch_size}
    return CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=args.width)


def check_sizes(args: argparse.Namespace) -> None:
    """Raise ValueError where no CLIP has these sizes."""
    if args.width % args.heads:
        raise ValueError(f"--heads {args.heads} does not divide --width {args.width}")
    if args.image_size % args.patch_size:
        raise ValueError(f"--patch_size {args.patch_size} does not divide --image_size {args.image_size}")
    if args.max_length < SHORTEST:
        raise ValueError(f"--max_length {args.max_length}: expected at least {SHORTEST}, for start, one token, and end")


def write_weights(config: CLIPConfig, vision_from: str, output_dir: Path) -> None:
    """Weights with the image tower of another CLIP; those of the text tower are fresh. Other sizes are a ValueError."""
    model, trained = CLIPModel(config), CLIPModel.from_pretrained(vision_from)
    with reading(vision_from, "its image tower does not have the sizes of the flags"):
        model.vision_model.load_state_dict(trained.vision_model.state_dict())
        model.visual_projection.load_state_dict(trained.visual_projection.state_dict())
    model.save_pretrained(output_dir)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--dataset", default=DEFAULT_DATASET, help="captions of its train split make the tokenizer")
    parser.add_argument("--num_merges", **whole_number(2500, "BPE merges"))
    parser.add_argument("--max_length", **whole_number(32, "tokens in a caption"))
    parser.add_argument("--width", **whole_number(128, "of both towers"))
    parser.add_argument("--heads", **whole_number(4, "attention heads"))
    parser.add_argument("--text_layers", **whole_number(12, "of the text tower"))
    parser.add_argument("--vision_layers", **whole_number(4, "of the image tower"))
    parser.add_argument(
        "--hidden_act", choices=("quick_gelu", "gelu"), default="quick_gelu", help="default: quick_gelu, as OpenAI's"
    )
    parser.add_argument("--vision_from", help="CLIP whose image tower it gets, for training against a frozen one")
    parser.add_argument("--image_size", **whole_number(32, "pixels"))
    parser.add_argument("--patch_size", **whole_number(8, "pixels"))
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_sizes(args)
    check_new_folder(args.output_dir)
    captions = load_pairs(args.dataset, "train", images=False).captions
    tokenizer = train_tokenizer(captions, args.num_merges, args.max_length)
    size = args.image_size
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    with atomic_folder(args.output_dir) as folder:
        CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
        config = clip_config(tokenizer, args)
        config.save_pretrained(folder)
        if args.vision_from:
            write_weights(config, args.vision_from, folder)
    print(f"wrote {args.output_dir}: {args.text_layers} text layers, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
