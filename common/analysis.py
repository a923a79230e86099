"""Step 1, the frame of the analysis scripts: similarity between all layers of the text transformer, on captions of train.

Captions go through the text transformer once; a measure sees their hidden states h_0 .. h_L, as one vector a caption or
one a token (CoMFLP, Liu, Peng, Lee, Interspeech 2023, section 2.1). Matrix, picture and run record go to `exp/<model>/`
under the names of `matrix_files`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from common import plots
from common.cli import add_common_flags, boolean, bounded, caption_flags, format_table, positive_int
from common.files import model_dir, write_array, write_json
from common.matrix_files import OPTIONS, PER_TOKEN_MODES, MatrixSettings, default_draws, modes
from common.run import Record, is_main_process, set_up, show_progress
from data import load_pairs
from measures import MEASURES, Shuffled
from models import Encoder, load_encoder

FORWARD_TOKENS = 4096  # in a forward pass: enough for full speed, few enough to stay in the cache of a CPU
CHUNK_VALUES = 2**24  # of all hidden states that wait for the measure: 128 MiB in float64

# (encoder, draws of captions, record) -> the matrix of each draw, and of its shuffled rows where there are any
Make = Callable[[Encoder, Sequence[list[str]], Record], tuple[list[np.ndarray], list[np.ndarray]]]


def run(args: argparse.Namespace, make: Make | None = None) -> None:
    """From flags to files under `exp/` and a printed table. `make` is for matrices that no measure of MEASURES gives."""
    settings = settings_from(args)
    make = make or partial(measure_draws, settings=settings, baseline=args.baseline)
    device = set_up(args)
    record = Record(args, device)
    with record.warnings():
        encoder = load_encoder(args.model, device=device)
        pairs = load_pairs(args.dataset, "train", **caption_flags(args, num_drawn(settings)))
        draws = [[pairs.captions[i] for i in rows] for rows in draw_captions(len(pairs), settings)]
        record.note(model=encoder.identity(), captions=len(draws[0]))
        record.note_data(data=pairs)
        encoder.model.to(getattr(torch, args.precision))
        results = summary(*make(encoder, draws, record))
    if not is_main_process():
        return
    path = settings.path(model_dir(args.exp_dir, args.model))
    write(results, path, settings, record)
    print(result_table(results))
    print(f"wrote {path} and its .png and .json")


def settings_from(args: argparse.Namespace) -> MatrixSettings:
    """The settings that the flags name, after the rules across flags. Fills in the measure's options in `args`."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    settings = MatrixSettings(**{f.name: given[f.name] for f in fields(MatrixSettings) if f.name in given})
    options = settings.options()
    for option in {option for names in OPTIONS.values() for option in names} - set(options) & set(given):
        owners = ", ".join(measure for measure, names in OPTIONS.items() if option in names)
        raise ValueError(f"--{option} is an option of {owners}, not of {settings.measure}; leave it out")
    settings.check_pool()
    captions = settings.batch_size if settings.measure == "dc" else settings.batch_size * settings.iter_num
    needed = 4 if settings.estimator == "unbiased" or settings.debiased else 2
    if captions < needed:
        flags = "--batch_size" if settings.measure == "dc" else "--batch_size times --iter_num"
        raise ValueError(f"{flags} is {captions}; with these flags {settings.measure} needs at least {needed} captions")
    vars(args).update(options)
    if settings.measure in MEASURES:
        new_measure(settings)  # refuses an option out of range before anything is read
    return settings


def draw_captions(num_captions: int, settings: MatrixSettings) -> np.ndarray:
    """(repeats, batch_size * iter_num) numbers of captions, all different: the first of a seeded permutation."""
    needed = num_drawn(settings)
    if needed > num_captions:
        repeats = f" times --repeats {settings.repeats}" if settings.repeats > 1 else ""
        raise ValueError(
            f"--batch_size {settings.batch_size} times --iter_num {settings.iter_num}{repeats} is {needed} captions; "
            f"the train split of {settings.dataset} has {num_captions}: ask for fewer"
        )
    order = np.random.default_rng(settings.seed).permutation(num_captions)
    return order[:needed].reshape(settings.repeats, -1)


def num_drawn(settings: MatrixSettings) -> int:
    """Captions of all draws."""
    return settings.batch_size * settings.iter_num * settings.repeats


def summary(matrices: list[np.ndarray], chance: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What is written, by the end of the file's name: "" for the mean matrix; "_std", the sample standard deviation of
    several draws; "_baseline", the mean matrix of shuffled rows where there are any."""
    results = {"": np.mean(matrices, axis=0)}
    if len(matrices) > 1:
        results["_std"] = np.std(matrices, axis=0, ddof=1)
    if chance:
        results["_baseline"] = np.mean(chance, axis=0)
    return results


def write(results: dict[str, np.ndarray], path: Path, settings: MatrixSettings, record: Record) -> None:
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
    sample = batches if settings.measure == "dc" else f"{settings.iter_num * settings.batch_size:,}"
    return f"{settings.measure} between the layers of {model}\n{sample} captions, mode {settings.mode}"


def result_table(results: dict[str, np.ndarray]) -> str:
    """What each layer leaves as it was, M[i-1, i], and the median of all pairs of layers."""
    headers = {"": "similarity", "_std": "std", "_baseline": "shuffled rows"}
    layers = np.arange(1, len(results[""]))
    pairs = np.triu_indices(len(layers) + 1, 1)
    rows = [[f"input and output of layer {i}", *(array[i - 1, i] for array in results.values())] for i in layers]
    rows.append(["median of all pairs", *(np.median(array[pairs]) for array in results.values())])
    return format_table(rows, ["", *(headers[ending] for ending in results)])


# --- similarity of the layers


def measure_draws(
    encoder: Encoder, draws: Sequence[list[str]], record: Record, *, settings: MatrixSettings, baseline: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The matrix of each draw of captions, and with `baseline` of its shuffled rows, by a measure of hidden states.

    Notes the measure's diagnostics in the record, and the seconds of forward passes, measure and baseline.
    """
    generator = torch.Generator().manual_seed(settings.seed + PartialState().process_index)
    matrices, chance, diagnostics = [], [], []
    total = sum(len(captions) for captions in draws)
    with tqdm(total=total, unit=" captions", disable=not show_progress(), leave=False) as bar:
        for captions in draws:
            measures = {"measure": new_measure(settings)}
            if baseline:
                measures["baseline"] = Shuffled(new_measure(settings), generator)
            feed(encoder, encoder.prepare(captions), settings, measures, record, bar)
            with record.timed("merge"):
                measures = merge_processes(measures)
            with record.timed("measure"):
                matrices.append(measures["measure"].matrix())
            diagnostics.append(measures["measure"].diagnostics())
            if baseline:
                with record.timed("baseline"):
                    chance.append(measures["baseline"].matrix())
    record.note(**diagnostics[0] if len(draws) == 1 else {"draws": diagnostics})
    return matrices, chance


def new_measure(settings: MatrixSettings) -> object:
    return MEASURES[settings.measure](**settings.options())


def feed(
    encoder: Encoder,
    tokens: list[list[int]],
    settings: MatrixSettings,
    measures: dict[str, object],
    record: Record,
    bar: tqdm,
) -> None:
    """Feed the hidden states of this process's part to measures, batch by batch where each update of a measure is a draw.

    `tokens`: of all captions of a draw, since flattened sequences are as wide as the longest of them all.
    """
    longest = max(map(len, tokens))
    for part in chunks(encoder, own_batches(tokens, settings.batch_size), settings.mode, settings.batch_size):
        with record.timed("forward"):
            states = hidden_states(encoder, part, settings.mode, settings.pool, longest)
            if encoder.device.type == "cuda":
                torch.cuda.synchronize()
        for name, measure in measures.items():
            with record.timed(name):
                size = settings.batch_size if measure.per_draw else len(states[0])
                for batch in zip(*(state.split(size) for state in states), strict=True):
                    measure.update(batch)
        bar.update(len(part))


def own_batches(tokens: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """The batches of tokenised captions that are this process's part: every n-th of n processes."""
    processes = PartialState()
    starts = range(processes.process_index * batch_size, len(tokens), processes.num_processes * batch_size)
    return [caption for start in starts for caption in tokens[start : start + batch_size]]


def chunks(encoder: Encoder, tokens: Sequence[list[int]], mode: str, batch_size: int) -> Iterator[Sequence[list[int]]]:
    """The captions in order, in parts of whole batches (but the last) whose hidden states are about `CHUNK_VALUES`."""
    vectors = max(map(len, tokens)) if mode in PER_TOKEN_MODES else 1
    values = (encoder.num_layers + 1) * vectors * encoder.width * batch_size
    size = max(1, CHUNK_VALUES // values) * batch_size
    return (tokens[start : start + size] for start in range(0, len(tokens), size))


def hidden_states(encoder: Encoder, tokens: Sequence[list[int]], mode: str, pool: str, longest: int) -> list[Tensor]:
    """h_0 .. h_L of captions in their order, each (rows, d), on the model's device; padding never counts.

    Rows are captions, pooled (`U`, `mean`), or real tokens (`T`), or, for `seq`, the tokens of a caption side by side
    and then zeros, (captions, longest * d). `longest` is at least the length of any of them.
    """
    lengths = torch.tensor([len(ids) for ids in tokens])
    numbers = torch.arange(len(tokens))
    first_row = {"T": lengths.cumsum(0) - lengths, "seq": numbers * longest}.get(mode, numbers).to(encoder.device)
    num_rows = {"T": int(lengths.sum()), "seq": len(tokens) * longest}.get(mode, len(tokens))
    empty = torch.zeros(num_rows, encoder.width, dtype=encoder.dtype, device=encoder.device)
    states = [empty.clone() for _ in range(encoder.num_layers + 1)]
    with torch.inference_mode():
        for batch in encoder.prepared_batches(tokens, max(1, FORWARD_TOKENS // longest)):
            mask, rows = batch.mask, first_row[batch.rows]
            if mode in PER_TOKEN_MODES:
                rows = (rows[:, None] + torch.arange(mask.shape[1], device=rows.device))[mask]
            hidden, context = encoder.stack.start(**batch.inputs)
            for layer, state in enumerate(states):
                hidden = encoder.stack.run(hidden, context, [layer] if layer else [])
                if mode in PER_TOKEN_MODES:
                    state[rows] = hidden[mask]
                else:
                    state[rows] = encoder.pool(hidden, batch, pool)
    return [state.view(len(tokens), -1) for state in states] if mode == "seq" else states


def merge_processes(measures: dict[str, object]) -> dict[str, object]:
    """What all processes have seen, in each of them."""
    first, *others = gather_object([measures])
    for other in others:
        for name, measure in first.items():
            measure.merge(other[name])
    return first


# --- command line


def add_flags(parser: argparse.ArgumentParser, measure: str | None = None) -> None:
    """The flags of the scripts that measure hidden states; `measure` is the script's own, None where `--measure` chooses."""
    add_draw_flags(parser, measure)
    choices = modes(measure or "")
    unit = "one sample a caption (U) or a token (T)"
    if measure == "dc":
        unit = "a caption is the mean of its tokens, or the whole sequence of them"
    add = parser.add_argument
    add("--mode", choices=choices, default=choices[0], help=f"{unit} (default: %(default)s)")
    add(
        "--pool",
        choices=("mean", "eos"),
        default=MatrixSettings.pool,
        help="vector of a caption: the mean of its tokens, or its end token's (default: %(default)s)",
    )
    add(
        "--baseline",
        type=boolean,
        default=False,
        help="also the matrix of row-shuffled layers: what the measure gives by chance (default: false)",
    )


def add_draw_flags(parser: argparse.ArgumentParser, measure: str | None = None) -> None:
    """The flags of every analysis script: which captions, and how they go through the model."""
    batch_size, iter_num = default_draws(measure or "")
    add = parser.add_argument
    add("--batch_size", type=positive_int, default=batch_size, help="captions in a batch (default: %(default)s)")
    add("--iter_num", type=positive_int, default=iter_num, help="batches (default: %(default)s)")
    add(
        "--repeats",
        type=positive_int,
        default=MatrixSettings.repeats,
        help="disjoint draws of captions; their mean, and the standard deviation beside it (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("float64", "float32"),
        default="float64",
        help="of the forward pass: float64 gives the same to 1e-9 on every machine, float32 is about twice as fast "
        "and within 1e-7 of it (default: %(default)s)",
    )
    if measure:
        parser.set_defaults(measure=measure)
    add_common_flags(parser, max_pairs=False, streaming=True)


def add_threshold_flags(parser: argparse.ArgumentParser) -> None:
    """`--thre` and `--thre_on`: None where not given, so that a measure without them can refuse them."""
    parser.add_argument(
        "--thre",
        type=bounded(float, 0, 1),
        help=f"share of the singular values of a layer to keep (default: {MatrixSettings.thre})",
    )
    parser.add_argument(
        "--thre_on",
        choices=("singular", "variance"),
        help=f"share of the singular values, or of their squares (default: {MatrixSettings.thre_on})",
    )
