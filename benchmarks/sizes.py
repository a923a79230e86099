"""Seconds and memory of the README's five steps for text towers of real sizes, with weights from the configuration.

    python -m benchmarks.sizes --size b32 --out b32.json
    python -m benchmarks.sizes --size h14 --steps svcca dc coarse fine --captions 960 --pairs 200

Each step is a process of its own, as from a shell: its CPU seconds and its largest resident memory are those that the
system counted, its parts those of its record. The image tower is a small one, so what is measured is the text tower's
share: the images of a real model are embedded once, before all else.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import ROOT, format_table, positive_int, script, switch, whole_number, write_json
from common.cli import Parser

SIZES = {  # layers, width, heads, activation of the text tower
    "b32": (12, 512, 8, "quick_gelu"),
    "h14": (24, 1024, 16, "gelu"),
}
VOCABULARY = 49408
SEARCH = "search_strategy/search_prune_then_verify_mix.py --num_layers {layers} --num_clip_layers {half}"
STEPS = {  # the script with its flags, and where its record is
    "svcca": ("svcca_analysis.py --batch_size 32 --iter_num {batches}", "exp/*/cca_mat_*.json"),
    "dc": ("dc_analysis.py", "exp/*/dc_mat_*.json"),
    "coarse": (f"{SEARCH} --coarse_search_only", "exp/*/clip*_coarse.json"),
    "fine": (f"{SEARCH} --refine 0 --score mean --repair {{repair}} {{max_pairs}}", "exp/*/clip*refine_0*.json"),
    "finetune": (
        "clip_finetune_train.py --num_layers {layers} --num_clip_layers {half} --output_dir half --max_epoch 1 "
        "--max_pairs {train_pairs} --clip_layers {middle}",
        "exp/half/metrics.jsonl",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="b32", help="of the text tower (default: b32)")
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=list(STEPS), help="default: all")
    parser.add_argument("--captions", **whole_number(9600, "for SVCCA", 32))
    parser.add_argument("--pairs", type=positive_int, help="for the fine search (default: all 2,000 of validation)")
    parser.add_argument("--train_pairs", **whole_number(10000, "for the epoch"))
    parser.add_argument("--repair", **switch(True, "score proposals with their repairs in the fine search"))
    parser.add_argument("--dataset", default="icons", help="bundled name or path (default: icons)")
    parser.add_argument("--threads", **whole_number(1, "of each step"))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    return parser


def write_model(size: str, folder: Path) -> None:
    """A CLIP of that text tower and a small image tower, with seeded fresh weights and the bundled tokenizer."""
    from benchmarks.frame import fresh_clip
    from models import load_clip

    layers, width, heads, activation = SIZES[size]
    shape = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": width,
    }
    bundled = load_clip(str(ROOT / "exp" / "iconclip"), weights=False)
    fresh_clip(bundled, width=width, vocab_size=VOCABULARY, max_position_embeddings=77, **shape).save(folder)


def run_step(words: Sequence[str]) -> dict:
    """What the system counted of a process: wall and CPU seconds, and the most memory that it held, in bytes.

    A process begins with what its parent holds, so the parent has to stay small.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{shlex.join(words)}: ended with status {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall_seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_bytes": 1024 * used.ru_maxrss}


def read_parts(path: Path) -> dict[str, float]:
    """Wall seconds by part of a step, as its record has them."""
    content = json.loads(
        path.read_text(encoding="utf-8").splitlines()[-1] if path.suffix == ".jsonl" else path.read_text()
    )
    record = content.get("record", content)
    return {name.removeprefix("seconds_"): value for name, value in record.items() if name.startswith("seconds")}


def measure_steps(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    layers = SIZES[args.size][0]
    # in a process of its own: torch must not be in the parent, whose memory every step begins with
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(write_model, args.size, folder / "model").result()
    quarter = layers // 4
    numbers = {
        "layers": layers,
        "half": layers // 2,
        "middle": f"{quarter + 1}-{quarter + layers // 2}",
        "batches": args.captions // 32,
        "max_pairs": f"--max_pairs {args.pairs}" if args.pairs else "",
        "train_pairs": args.train_pairs,
        "repair": str(args.repair).lower(),
    }
    places = ["--model", str(folder / "model"), "--dataset", args.dataset, "--exp_dir", str(folder / "exp")]
    places += ["--device", "cpu", "--threads", str(args.threads)]
    found = {}
    for step in args.steps:
        command, record = STEPS[step]
        found[step] = run_step([*shlex.split(command.format(**numbers)), *places])
        found[step]["parts"] = read_parts(max(folder.glob(record), key=lambda path: path.stat().st_mtime))
        if args.out:  # after each, as all take long
            flags = {name: str(value) for name, value in vars(args).items()}
            write_json(args.out, {"flags": flags, "steps": found})
    return found


@script
def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.steps = [step for step in STEPS if step in args.steps]  # in the order in which they read each other's files
    if not {"coarse", "fine"}.isdisjoint(args.steps) and "dc" not in args.steps:
        parser.error("--steps coarse and fine search the matrix of dc: give it too")
    with tempfile.TemporaryDirectory(prefix="comflp_sizes_") as folder:
        found = measure_steps(args, Path(folder))
    rows = []
    for step, figures in found.items():
        parts = ", ".join(f"{name} {value:.0f}" for name, value in figures["parts"].items())
        rows.append((step, figures["cpu_seconds"], figures["wall_seconds"], figures["peak_bytes"] / 1e9, parts))
    headers = ("step", "CPU s", "wall s", "peak GB", "wall seconds of its parts")
    print(format_table(rows, headers, ("", ".0f", ".0f", ".2f", "")))


if __name__ == "__main__":
    main()
