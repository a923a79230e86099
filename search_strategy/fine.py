"""Fine search: the task loss of many proposals at once (CoMFLP, section 2; the second step of its search).

No model is rebuilt and no weight is copied: a proposal is a list of kept layers, run from the embeddings of a batch of
samples. Proposals that begin with the same kept layers share their hidden states (a depth-first walk through the tree
of prefixes), so a batch costs at most as many layer calls as there are distinct prefixes. What a pair has beside its
sample is never touched: its embedding is given.

With the maps of all segments (`models/segment_maps.py`) a proposal is scored repaired: what a prefix of kept layers
leaves behind is shared as before, and the state that the next kept layer gets from it depends on which layer that is.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm import tqdm

from data import ImageCaptionPairs
from models.encoders import Encoder
from models.segment_maps import LeftOut, Runner, SegmentMaps
from search_strategy.defaults import OBJECTIVES
from search_strategy.proposals import Proposal, kept_layers, segments
from tasks.base import LOSS_BATCH_SIZE, Task
from tasks.distance import Distance
from tasks.image_retrieval import retrieval_task
from tasks.retrieval import Retrieval

EMBEDDING_BYTES = 1 << 30  # of embeddings held at a time; more proposals are run in parts
STATE_BYTES = 1 << 29  # of hidden states kept from one call to the next
MOST_TO_KEEP_STATES = 100  # proposals in a call whose states may serve a later one: a refinement's, not those of all


@dataclass(frozen=True)
class Evaluation:
    """What one proposal scores on the samples. `values`: (n,), one a sample; their mean is the objective."""

    dropped_layers: Proposal
    objective: float
    figures: dict[str, float]
    values: np.ndarray


class FineSearch:
    """Evaluates proposals for an encoder by a task; what was evaluated once is remembered.

    The hidden states of prefixes are kept from call to call, the least recently used ones given up beyond
    `STATE_BYTES`, so a search that goes on from what it has evaluated runs only what is new.

    Args:
        encoder: the model.
        samples: n samples, those of the task, in its order.
        task: scores the embeddings of all samples; smaller is better.
        maps: the repair of every segment; None: layers are left out, and that is all.
        batch_size: samples in a forward pass; None: as `Encoder.batches`.

    Attributes:
        layer_calls: calls of a layer made so far for each sample, in all evaluations; not those of the maps' guard, on
            64 held-out captions: a tenth more beside 2,000 samples.
        layer_calls_unshared: what they would have been without shared prefixes.
    """

    def __init__(
        self,
        encoder: Encoder,
        samples: Sequence,
        task: Task,
        *,
        maps: SegmentMaps | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ):
        self.encoder, self.samples, self.task, self.progress = encoder, samples, task, progress
        self.maps, self._left_out = maps, LeftOut(encoder.stack)
        self.layer_calls = self.layer_calls_unshared = 0
        self._batch_size = batch_size
        self._batches = list(encoder.batches(samples, batch_size))
        self._known: dict[Proposal, Evaluation] = {}
        self._states, self._keeps_states = RecentStates(STATE_BYTES), True

    @classmethod
    def from_pairs(
        cls,
        encoder: Encoder,
        pairs: ImageCaptionPairs,
        cache_dir: Path | None = None,
        *,
        objective: str = "task_loss",
        loss_batch_size: int = LOSS_BATCH_SIZE,
        maps: SegmentMaps | None = None,
        logit_scale: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> "FineSearch":
        """On pairs as they are loaded: targets computed or read from the cache; none where none is needed.

        objective: `task_loss` (contrastive loss), `recall` (minus R@10, mean of both directions) or `embedding` (mean
        of 1 - cosine between the embeddings of the pruned and of the full model). ValueError for any other.
        logit_scale: of the losses; by default the best for the full model on these pairs, so that the search does not
        choose by calibration.
        """
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if objective == Distance.objective:
            pairs = pairs.decodable()
            task = Distance(encoder.embeddings(encoder.samples(pairs)), loss_batch_size)
        else:
            with PartialState().main_process_first():  # the others read its cache
                pairs, targets = encoder.embed_pairs(pairs, cache_dir, progress)
            options = {"objective": objective, "batch_size": loss_batch_size, "logit_scale": logit_scale}
            task = retrieval_task(encoder, targets, pairs.image_index, **options)
        search = cls(encoder, encoder.samples(pairs), task, maps=maps, batch_size=batch_size, progress=progress)
        if logit_scale is None and isinstance(task, Retrieval):
            search.fit_scale()
        return search

    def fit_scale(self) -> None:
        """Score at the logit scale that is best for the full model, which is then known. The task is a `Retrieval`."""
        embeddings = self._embed([()], self._left_out)[0]
        self.task = self.task.fit_scale(embeddings)
        self._score((), embeddings, np.empty(self.num_samples))

    def without_memory(self) -> "FineSearch":
        """The same search, knowing nothing yet."""
        return self._with(self.samples, self.task, self.maps)

    def without_maps(self) -> "FineSearch":
        """The same search of proposals whose layers are left out without repair, knowing nothing yet."""
        return self._with(self.samples, self.task, None)

    def on_rows(self, rows: Sequence[int]) -> "FineSearch":
        """The same search on some of the samples."""
        return self._with([self.samples[row] for row in rows], self.task.on_rows(rows), self.maps)

    def _with(self, samples: Sequence, task: Task, maps: SegmentMaps | None) -> "FineSearch":
        options = {"batch_size": self._batch_size, "progress": self.progress}
        return FineSearch(self.encoder, samples, task, maps=maps, **options)

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    @property
    def evaluated(self) -> list[Evaluation]:
        """Everything evaluated so far but the full model, best first; ties by the layers dropped."""
        found = [evaluation for evaluation in self._known.values() if evaluation.dropped_layers]
        return sorted(found, key=lambda evaluation: (evaluation.objective, evaluation.dropped_layers))

    def evaluate(self, proposals: Iterable[Proposal]) -> list[Evaluation]:
        """Evaluations of the proposals (the empty one is the full model), in their order; only unknown ones are run."""
        proposals = [tuple(proposal) for proposal in proposals]
        new = [proposal for proposal in dict.fromkeys(proposals) if proposal not in self._known]
        # one array for all: what stays in between would break up the memory that the large temporary ones come from
        rows = iter(np.empty((len(new), self.num_samples)))
        self._keeps_states = len(new) <= MOST_TO_KEEP_STATES
        for part, runner in self._parts(new):
            self._score_all(part, self._embed(part, runner), rows)
        return [self._known[proposal] for proposal in proposals]

    def _score_all(self, proposals: list[Proposal], embeddings: Tensor, rows: Iterator[np.ndarray]) -> None:
        """A step of its own, so that nothing holds on to the embeddings (K, n, dim) while the next are made."""
        for proposal, of_proposal in zip(proposals, embeddings, strict=True):
            self._score(proposal, of_proposal, next(rows))

    def _score(self, proposal: Proposal, embeddings: Tensor, row: np.ndarray) -> None:
        """Remember what the embeddings (n, dim) of a proposal are worth, their values (n,) in `row`."""
        scores = self.task.score(embeddings)
        row[:] = scores.values.cpu().numpy()
        self._known[proposal] = Evaluation(proposal, float(row.mean()), scores.figures, row)

    def objectives(self, proposals: Iterable[Proposal]) -> list[float]:
        """The objective of each proposal."""
        return [evaluation.objective for evaluation in self.evaluate(proposals)]

    def objectives_on(self, proposals: Iterable[Proposal], rows: np.ndarray) -> list[float]:
        """The objective of each proposal on some of the samples alone; not remembered, and counted by their share."""
        part, share = self.on_rows(rows), len(rows) / self.num_samples
        values = part.objectives(proposals)
        self.layer_calls += share * part.layer_calls
        self.layer_calls_unshared += share * part.layer_calls_unshared
        return values

    def full_model(self) -> Evaluation:
        """The full model under the same evaluation."""
        return self.evaluate([()])[0]

    def _parts(self, proposals: list[Proposal]) -> Iterator[tuple[list[Proposal], Runner]]:
        """Neighbours in the tree together, as many as `EMBEDDING_BYTES` of embeddings allow, and what runs them."""
        size = max(1, EMBEDDING_BYTES // (4 * self.num_samples * self.encoder.dim))
        if self.maps:
            # where not all maps are fitted beforehand, those of this call come from one pass
            self.maps.prepare((a - 1, b) for proposal in proposals for a, b in segments(proposal))
        by_runner: dict[Runner, list[Proposal]] = {}
        # neighbours share the most prefixes, so little is run twice at the seams between parts
        for proposal in sorted(proposals, key=lambda proposal: kept_layers(proposal, self.encoder.num_layers)):
            by_runner.setdefault(self._runner(proposal), []).append(proposal)
        for runner, ordered in by_runner.items():
            for start in range(0, len(ordered), size):
                yield ordered[start : start + size], runner

    def _runner(self, proposal: Proposal) -> Runner:
        """The maps, where all of its own together help."""
        helped = self.maps and self.maps.help(kept_layers(proposal, self.encoder.num_layers))
        return self.maps if helped else self._left_out

    @torch.inference_mode()
    def _embed(self, proposals: list[Proposal], runner: Runner) -> Tensor:
        """(K, n, dim): embeddings of every sample under every proposal; each process runs a part of the batches."""
        encoder, processes = self.encoder, PartialState()
        kept = [kept_layers(proposal, encoder.num_layers) for proposal in proposals]
        dtype = torch.promote_types(encoder.dtype, torch.float32)
        embeddings = torch.zeros(len(kept), self.num_samples, encoder.dim, dtype=dtype, device=encoder.device)
        own = range(processes.process_index, len(self._batches), processes.num_processes)
        steps = list(depth_first(kept))
        with tqdm(total=len(own) * len(steps), desc="layer calls", disable=not self.progress, leave=False) as bar:
            made = sum(self._embed_batch(number, runner, kept, steps, embeddings, bar) for number in own)
        self.layer_calls += made / max(1, len(own))  # of one batch, whose states may have been kept from before
        self.layer_calls_unshared += sum(map(len, kept))
        # of what the processes filled in; alone it would be a copy
        return reduce(embeddings, reduction="sum") if processes.num_processes > 1 else embeddings

    def _embed_batch(
        self, number: int, runner: Runner, kept: list[Proposal], steps: list[tuple], embeddings: Tensor, bar: tqdm
    ) -> int:
        """Fill in the rows of one batch under every proposal; returns the layers called."""
        encoder, batch, made = self.encoder, self._batches[number], 0
        hidden, context = encoder.stack.start(**batch.inputs)
        path, end = [runner.run(hidden, context, 0)], encoder.num_layers + 1  # path: what each prefix leaves behind
        for proposal, layers in enumerate(kept):
            if not layers:  # no step of the walk leads to it
                embeddings[proposal, batch.rows] = encoder.embed(runner.state(path[0], 0, end), batch)
        children = Counter(prefix[:-1] for prefix, _ in steps)
        for prefix, ending in steps:
            del path[len(prefix) :]  # back to where this prefix branches off
            left = self._states.get((runner, number, prefix))
            if left is None:
                state = runner.state(path[-1], prefix[-2] if len(prefix) > 1 else 0, prefix[-1])
                left = runner.run(state, context, prefix[-1])
                made += 1
                if ending is None and self._keeps_states:
                    self._states.put((runner, number, prefix), left)
            if children[prefix[:-1]] == 1:
                path[-1] = None  # no other prefix goes on from here: a path of 500 layers is not held
            path.append(left)
            if ending is not None:
                embeddings[ending, batch.rows] = encoder.embed(runner.state(left, prefix[-1], end), batch)
            bar.update()
        return made


def depth_first(kept: Sequence[Proposal]) -> Iterator[tuple[Proposal, int | None]]:
    """Through the tree of distinct tuples of kept layers: (prefix, number of the tuple that is this prefix, or None).

    The state of a prefix is that of the prefix without its last layer, after this layer. The walk comes to it while the
    path to it is at hand, so only the states of one path are needed at a time. There are `distinct_prefixes` steps;
    none leads to the empty tuple, whose state is the one to start from.
    """
    previous: Proposal = ()
    for number in sorted(range(len(kept)), key=lambda number: kept[number]):
        layers = kept[number]
        # how far this one goes with the one before: up to there its states are at hand
        shared = next((i for i, (a, b) in enumerate(zip(previous, layers, strict=False)) if a != b), len(previous))
        for depth in range(shared + 1, len(layers) + 1):
            yield layers[:depth], number if depth == len(layers) else None
        previous = layers


def distinct_prefixes(kept: Iterable[Proposal]) -> int:
    """Number of distinct non-empty prefixes: the layer calls that a batch needs."""
    return len({layers[:depth] for layers in kept for depth in range(1, len(layers) + 1)})


class RecentStates:
    """Hidden states by key, the least recently used given up beyond a number of bytes."""

    def __init__(self, most_bytes: int):
        self._most_bytes, self._bytes, self._states = most_bytes, 0, OrderedDict()

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        if key in self._states:
            self._states.move_to_end(key)
        return self._states.get(key)

    def put(self, key: Hashable, states: tuple[Tensor, ...]) -> None:
        self._states[key] = states
        self._bytes += sum(state.nbytes for state in states)
        while self._bytes > self._most_bytes:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= sum(state.nbytes for state in oldest)
