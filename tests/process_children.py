"""What the processes of `test_processes` run; imported once by the server that they are forked from."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pictures import save_noise
from transformers import CLIPModel

import clip_finetune_train
from models import load_encoder
from models.repair import repaired

Figure.savefig = save_noise
FILE_EVENTS = ("os.rename", "os.remove", "os.rmdir", "open")


def train(argv: list[str], stderr: Path) -> None:
    """The script, with what it says in a file."""
    torch.set_num_threads(1)
    with stderr.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        clip_finetune_train.main(argv)


def train_and_die(argv: list[str], stderr: Path, folder: Path, events: int) -> None:
    """The script, killed with SIGKILL at the given number of renames, removals and openings of files in a folder."""
    on_file_event(folder, lambda count: count == events and os.kill(os.getpid(), signal.SIGKILL))
    train(argv, stderr)


def train_and_count(argv: list[str], stderr: Path, folder: Path, counter) -> None:
    """The script; `counter` holds the number of file events in the folder in the end."""
    on_file_event(folder, lambda count: setattr(counter, "value", count))
    train(argv, stderr)


def train_as_process(argv: list[str], stderr: Path, rank: int, world_size: int, port: int) -> None:
    """The script as one of several processes, as `accelerate launch` or `torchrun` would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(argv, stderr)


@torch.no_grad()
def repair_and_read(source: str, dropped: tuple[int, ...], captions: list[str], saved: str, found: Path) -> None:
    """Write the embeddings after a repair made here, and those of one that was saved elsewhere."""
    torch.set_num_threads(1)
    encoder = load_encoder(source)
    batch = next(encoder.batches(captions, len(captions)))
    features = CLIPModel.from_pretrained(saved).eval().get_text_features(**batch.inputs).pooler_output
    read = torch.empty_like(features)
    read[batch.rows] = torch.nn.functional.normalize(features, dim=-1)
    torch.save({"repaired": repaired(encoder, dropped, captions).embeddings(captions), "read": read}, found)


def on_file_event(folder: Path, act: Callable[[int], object]) -> None:
    count = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in FILE_EVENTS and args and str(args[0]).startswith(str(folder)):
            count += 1
            act(count)

    sys.addaudithook(hook)
