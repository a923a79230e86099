"""Step 1: similarity between all layers of the text transformer on captions, or of the image tower on images.

Captions go through the text transformer once; a measure sees their hidden states h_0 .. h_L, as one vector a caption or
one a token (CoMFLP, Liu, Peng, Lee, Interspeech 2023, section 2.1). Matrix, picture and run record go to `exp/<model>/`
under the names of `matrix_files`.

    measure_captions(encoder, captions, MatrixSettings("svcca", {"thre": 0.99}))     # (L+1, L+1)
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from common import files, plots, tower_dir, write_array, write_json
from common.cli import caption_flags, format_table
from common.matrix_files import MatrixSettings
from common.matrix_flags import analysis_settings
from common.run import Record, Stopwatch, is_main_process, set_up, show_progress
from data import load_pairs
from measures.base import Measure
from measures.baseline import Shuffled
from models import Encoder, load_encoder
from models.feeds import FEEDS

CHUNK_VALUES = 2**24  # of all hidden states that wait for the measure: 128 MiB in float64


def run(args: argparse.Namespace) -> None:
    """From the flags of an analysis script to files under `exp/` and a printed table."""
    settings = analysis_settings(args)
    device = set_up(args)
    record = Record(args, device)
    with record.warnings():
        encoder = load_encoder(args.model, args.tower, device)
        pairs = load_pairs(args.dataset, "train", **caption_flags(args, settings.num_captions))
        draws = draw_samples(encoder, encoder.samples(pairs), settings)
        record.note(model=encoder.identity(), dataset=files.dataset_name(settings.dataset), captions=len(draws[0]))
        record.note_data(data=pairs)
        for part in encoder.parts().values():  # not the other tower, which is larger
            part.to(getattr(torch, args.precision))
        found = measure_draws(encoder, draws, settings, baseline=args.baseline, stopwatch=record)
    if not is_main_process():
        return
    record.note(**found.diagnostics[0] if len(draws) == 1 else {"draws": found.diagnostics})
    path = settings.path(tower_dir(args.exp_dir, args.model, args.tower))
    results = summarise(found)
    write_results(results, path, settings, record)
    print(result_table(results))
    print(f"wrote {path} and its .png and .json")


def measure_captions(encoder: Encoder, captions: Sequence[str], settings: MatrixSettings) -> np.ndarray:
    """The (L+1, L+1) matrix of an encoder, as the scripts make it: on captions drawn by the seed of the settings."""
    return summarise(measure_draws(encoder, draw_samples(encoder, captions, settings), settings))[""]


def measure_several(
    encoder: Encoder, samples: Sequence, settings: Sequence[MatrixSettings], stopwatch: Stopwatch
) -> list[np.ndarray]:
    """The matrices of several settings, each of one draw, from one pass over the samples for all that see the same."""
    groups: dict[tuple, list[int]] = {}
    for number, setting in enumerate(settings):
        same = (setting.kind.fed, setting.batch_size, setting.iter_num, setting.mode, setting.pool, setting.seed)
        groups.setdefault(same, []).append(number)
    matrices: dict[int, np.ndarray] = {}
    for numbers in groups.values():
        first = settings[numbers[0]]
        measures = [settings[number].new_measure() for number in numbers]
        feed(encoder, draw_samples(encoder, samples, first)[0], first, measures, stopwatch)
        matrices |= {
            number: measure.matrix() for number, measure in zip(numbers, merge_processes(measures), strict=True)
        }
    return [matrices[number] for number in range(len(settings))]


def draw_samples(encoder: Encoder, samples: Sequence, settings: MatrixSettings) -> list[list]:
    """`repeats` lists of `batch_size` times `iter_num` captions (or images), all at different places: the first of a
    seeded permutation, broken images passed over."""
    needed, drawn = settings.num_captions, samples
    if needed <= len(samples):
        order = np.random.default_rng(settings.seed).permutation(len(samples))
        drawn = encoder.readable((samples[row] for row in order), needed, settings.dataset)
    if needed > len(drawn):
        repeats = f" times --repeats {settings.repeats}" if settings.repeats > 1 else ""
        raise ValueError(
            f"--batch_size {settings.batch_size} times --iter_num {settings.iter_num}{repeats} is {needed} captions; "
            f"the train split of {settings.dataset} has {len(drawn)}: ask for fewer with --batch_size and --iter_num"
        )
    size = needed // settings.repeats
    return [drawn[start : start + size] for start in range(0, needed, size)]


class Draws(NamedTuple):
    """What each draw of captions gave: its matrix, that of its shuffled rows if asked for, the diagnostics."""

    matrices: list[np.ndarray]
    baselines: list[np.ndarray]
    diagnostics: list[dict]


def measure_draws(
    encoder: Encoder,
    draws: Sequence[list[str]],
    settings: MatrixSettings,
    *,
    baseline: bool = False,
    stopwatch: Stopwatch | None = None,
) -> Draws:
    """Measure every draw of captions; several processes share each of them."""
    stopwatch = stopwatch or Stopwatch()
    # other rows in every process: the same order would keep together what is to be taken apart
    generator = torch.Generator().manual_seed(settings.seed + PartialState().process_index)
    found = Draws([], [], [])
    for captions in draws:
        measures = [settings.new_measure()]
        if baseline:
            measures.append(Shuffled(settings.new_measure(), generator))
        feed(encoder, captions, settings, measures, stopwatch)
        with stopwatch.timed("merge"):
            measures = merge_processes(measures)
        for measure, matrices in zip(measures, found, strict=False):  # found: matrices, baselines, diagnostics
            with stopwatch.timed(timer(measure)):
                matrices.append(measure.matrix())
        found.diagnostics.append(measures[0].diagnostics())
    return found


def feed(
    encoder: Encoder,
    captions: Sequence[str],
    settings: MatrixSettings,
    measures: Sequence[Measure],
    stopwatch: Stopwatch,
) -> None:
    """Feed this process's part of the captions to the measures, batch by batch where an update is a draw."""
    tokens = encoder.prepare(captions)
    longest = max(map(len, tokens))  # of all processes' captions: flattened sequences are as wide as that
    kind = FEEDS[settings.kind.fed]
    with tqdm(total=len(captions), unit=" captions", disable=not show_progress(), leave=False) as bar:
        for part in chunks(own_batches(tokens, settings), settings, kind.values(encoder, settings, longest)):
            with stopwatch.timed("forward"):
                tensors = kind.tensors(encoder, part, settings, longest)
                if encoder.device.type == "cuda":
                    torch.cuda.synchronize()  # else its seconds would be those of the measure
            for measure in measures:
                with stopwatch.timed(timer(measure)):
                    size = settings.batch_size if measure.per_draw else len(tensors[0])
                    for batch in zip(*(tensor.split(size) for tensor in tensors), strict=True):
                        measure.update(batch)
            bar.update(len(part))


def own_batches(tokens: Sequence[list[int]], settings: MatrixSettings) -> list[list[int]]:
    """The batches of tokenised captions that are this process's part: every n-th of n processes."""
    processes, size = PartialState(), settings.batch_size
    # whole batches, so that a draw of a measure is the same captions whatever the number of processes
    starts = range(processes.process_index * size, len(tokens), processes.num_processes * size)
    return [caption for start in starts for caption in tokens[start : start + size]]


def chunks(tokens: Sequence[list[int]], settings: MatrixSettings, values: int) -> Iterator[Sequence[list[int]]]:
    """The captions in parts of whole batches (but the last) of about `CHUNK_VALUES`; `values`: those of one caption."""
    size = max(1, CHUNK_VALUES // (values * settings.batch_size)) * settings.batch_size
    return (tokens[start : start + size] for start in range(0, len(tokens), size))


def timer(measure: Measure) -> str:
    """The name of the seconds that a measure takes."""
    return "baseline" if isinstance(measure, Shuffled) else "measure"


def merge_processes(measures: list[Measure]) -> list[Measure]:
    """What all processes have seen, in each of them."""
    first, *others = gather_object([measures])
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            mine.merge(theirs)
    return first


def summarise(found: Draws) -> dict[str, np.ndarray]:
    """What is written, by the end of the file's name: "" for the mean matrix; "_std", the sample standard deviation of
    several draws; "_baseline", the mean matrix of shuffled rows where there are any."""
    results = {"": np.mean(found.matrices, axis=0)}
    if len(found.matrices) > 1:
        results["_std"] = np.std(found.matrices, axis=0, ddof=1)  # of one draw, not of their mean
    if found.baselines:
        results["_baseline"] = np.mean(found.baselines, axis=0)
    return results


def write_results(results: dict[str, np.ndarray], path: Path, settings: MatrixSettings, record: Record) -> None:
    """The arrays, the picture and the run record."""
    files = {path.with_name(f"{path.stem}{ending}.npy"): array for ending, array in results.items()}
    for file, array in files.items():
        write_array(file, array)
    plots.heat_map(
        results[""], path.with_suffix(".png"), title(settings, path.parent.name), baseline=results.get("_baseline")
    )
    record.note(files=[file.name for file in files])
    write_json(path.with_suffix(".json"), record.content())


def title(settings: MatrixSettings, model: str) -> str:
    batches = f"{settings.iter_num} batches of {settings.batch_size}"
    sample = batches if settings.kind.measure.per_draw else f"{settings.draw_size:,}"
    return f"{settings.measure} between the layers of {model}\n{sample} captions, mode {settings.mode}"


def result_table(results: dict[str, np.ndarray]) -> str:
    """What each layer leaves as it was, M[i-1, i], and the median of all pairs of layers."""
    headers = {"": "similarity", "_std": "std", "_baseline": "shuffled rows"}
    layers = np.arange(1, len(results[""]))
    pairs = np.triu_indices(len(layers) + 1, 1)
    rows = [[f"input and output of layer {i}", *(array[i - 1, i] for array in results.values())] for i in layers]
    rows.append(["median of all pairs", *(np.median(array[pairs]) for array in results.values())])
    return format_table(rows, ["", *(headers[ending] for ending in results)])
