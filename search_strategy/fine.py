"""Fine search: the task loss of many proposals at once (CoMFLP, section 2; the second step of its search).

No model is rebuilt and no weight is copied: a proposal is a list of kept layers, run from the embeddings of a batch of captions.
Proposals that begin with the same kept layers share their hidden states (a depth-first walk through the tree of prefixes), so
a batch costs at most as many layer calls as there are distinct prefixes. Images are never touched: their embeddings are given.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm import tqdm

from data import ImageCaptionPairs
from models import Clip
from search_strategy.prefix_tree import walk
from search_strategy.proposals import Proposal, kept_layers
from tasks.retrieval import pair_losses, recall_hits, summarise_hits

OBJECTIVES = ("task_loss", "recall", "embedding")
EMBEDDING_BYTES = 1 << 30  # of text embeddings held at a time; more proposals are run in parts
STATE_BYTES = 1 << 29  # of hidden states kept from one call to the next
MOST_TO_KEEP_STATES = 100  # proposals in a call whose states may serve a later one, as in a refinement


@dataclass(frozen=True)
class Evaluation:
    """What one proposal scores on the validation pairs. `values`: one a caption; their mean is the objective."""

    dropped_layers: Proposal
    objective: float
    task_loss: float | None
    recall: dict[str, float] | None
    values: np.ndarray


class FineSearch:
    """Evaluates proposals on fixed pairs; what was evaluated once is remembered.

    Args:
        clip: the model.
        captions: n validation captions.
        image_embeddings: (m, d), L2-normalised, or None for `objective="embedding"`, which needs no image.
        image_index: (n,), the image of each caption.
        objective: `task_loss` (symmetric contrastive loss), `recall` (minus R@10, mean of both directions) or `embedding`
            (mean of 1 - cosine between the pruned and the full model's text embedding). Smaller is better.
        loss_batch_size: pairs in a batch of the contrastive loss.
        batch_size: captions in a forward pass.

    The hidden states of prefixes are kept from call to call, the least recently used ones given up beyond `STATE_BYTES`, so
    a search that goes on from what it has evaluated runs only what is new.

    Attributes:
        layer_calls: calls of a layer made so far for each caption, in all evaluations.
        layer_calls_unshared: what they would have been without shared prefixes.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Sequence[str],
        image_embeddings: Tensor | None,
        image_index: np.ndarray | None,
        *,
        objective: str = "task_loss",
        loss_batch_size: int = 250,
        batch_size: int = 512,
        progress: bool = False,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if image_embeddings is None and objective != "embedding":
            raise ValueError(f"objective {objective} needs image embeddings; without images use objective embedding")
        self.clip, self.objective, self.loss_batch_size, self.progress = clip, objective, loss_batch_size, progress
        self.images = image_embeddings
        self.image_index = None if image_index is None else torch.as_tensor(image_index, device=clip.device)
        self.captions = list(captions)
        self.layer_calls = self.layer_calls_unshared = 0
        self._batch_size = batch_size
        self._batches = list(clip.batches(captions, batch_size))
        self._known: dict[Proposal, Evaluation] = {}
        self._states = RecentStates(STATE_BYTES)
        self._full: Tensor | None = None

    @classmethod
    def from_pairs(
        cls,
        clip: Clip,
        pairs: ImageCaptionPairs,
        cache_dir: Path | None = None,
        *,
        objective: str = "task_loss",
        progress: bool = False,
        **options: int,
    ) -> "FineSearch":
        """On pairs as they are loaded: image embeddings computed or read from the cache; none where none is needed."""
        embeddings = None
        if objective != "embedding":
            with PartialState().main_process_first():  # the others read its cache
                pairs, embeddings = clip.embed_pairs(pairs, cache_dir, progress)
        return cls(
            clip, pairs.captions, embeddings, pairs.image_index, objective=objective, progress=progress, **options
        )

    def restarted(self) -> "FineSearch":
        """The same search, knowing nothing yet."""
        return self.on(range(self.num_captions))

    def on(self, rows: Sequence[int]) -> "FineSearch":
        """The same search on some of the captions."""
        return FineSearch(
            self.clip,
            [self.captions[row] for row in rows],
            self.images,
            None if self.image_index is None else self.image_index[torch.as_tensor(rows)],
            objective=self.objective,
            loss_batch_size=self.loss_batch_size,
            batch_size=self._batch_size,
            progress=self.progress,
        )

    @property
    def num_captions(self) -> int:
        return len(self.captions)

    @property
    def evaluated(self) -> list[Evaluation]:
        """Everything evaluated so far but the full model, best first."""
        return sorted((e for e in self._known.values() if e.dropped_layers), key=rank_key)

    def evaluate(self, proposals: Iterable[Proposal]) -> list[Evaluation]:
        """Evaluations of the proposals (the empty one is the full model), in their order; only unknown ones are run."""
        proposals = [tuple(proposal) for proposal in proposals]
        new = [proposal for proposal in dict.fromkeys(proposals) if proposal not in self._known]
        if new and self.objective == "embedding" and self._full is None:
            self._full = self._text_embeddings([()])[0]
        for part in self._parts(new):
            # One array for all: small ones made in between would break up the memory that the large temporary ones come from.
            values = np.empty((len(part), self.num_captions))
            for proposal, text, row in zip(part, self._text_embeddings(part), values, strict=True):
                self._known[proposal] = self._evaluate_embeddings(proposal, text, row)
        return [self._known[proposal] for proposal in proposals]

    def objectives(self, proposals: Iterable[Proposal]) -> list[float]:
        """The objective of each proposal."""
        return [evaluation.objective for evaluation in self.evaluate(proposals)]

    def objectives_on(self, proposals: Iterable[Proposal], rows: np.ndarray) -> list[float]:
        """The objective of each proposal on some of the captions alone; not remembered, and counted by their share."""
        part, share = self.on(rows), len(rows) / self.num_captions
        values = part.objectives(proposals)
        self.layer_calls += share * part.layer_calls
        self.layer_calls_unshared += share * part.layer_calls_unshared
        return values

    def full_model(self) -> Evaluation:
        """The full model under the same evaluation."""
        return self.evaluate([()])[0]

    def _parts(self, proposals: list[Proposal]) -> Iterable[list[Proposal]]:
        """Neighbours in the tree together, as many as `EMBEDDING_BYTES` of embeddings allow."""
        num_layers = self.clip.num_layers
        ordered = sorted(proposals, key=lambda proposal: kept_layers(proposal, num_layers))
        bytes_each = 4 * self.num_captions * self.clip.model.config.projection_dim
        size = max(1, EMBEDDING_BYTES // bytes_each)
        return (ordered[start : start + size] for start in range(0, len(ordered), size))

    @torch.inference_mode()
    def _text_embeddings(self, proposals: list[Proposal]) -> Tensor:
        """(K, n, d): text embeddings of every caption under every proposal; each process runs a part of the batches."""
        kept = [kept_layers(proposal, self.clip.num_layers) for proposal in proposals]
        width = self.clip.model.config.projection_dim
        dtype = torch.promote_types(self.clip.model.dtype, torch.float32)
        embeddings = torch.zeros(len(kept), self.num_captions, width, dtype=dtype, device=self.clip.device)
        steps = list(walk(kept))
        processes = PartialState()
        own = range(processes.process_index, len(self._batches), processes.num_processes)
        made = 0
        bar = tqdm(total=len(own) * len(steps), desc="layer calls", disable=not self.progress, leave=False)
        for number in own:
            batch = self._batches[number]
            hidden, context = self.clip.stack.start(**batch.inputs)
            for ending, layers in enumerate(kept):
                if not layers:  # no step of the walk leads to it
                    embeddings[ending, batch.rows] = self.clip.embed(hidden, batch)
            path = [hidden]
            for prefix, ending in steps:
                del path[len(prefix) :]
                state = self._states.get((number, prefix))
                if state is None:
                    state = self.clip.stack.run(path[-1], context, prefix[-1:])
                    made += 1
                    if ending is None and len(kept) <= MOST_TO_KEEP_STATES:
                        self._states.put((number, prefix), state)
                path.append(state)
                if ending is not None:
                    embeddings[ending, batch.rows] = self.clip.embed(state, batch)
                bar.update()
        self.layer_calls += made / max(1, len(own))
        self.layer_calls_unshared += sum(map(len, kept))
        bar.close()
        return reduce(embeddings, reduction="sum")  # of what the processes filled in

    def _evaluate_embeddings(self, proposal: Proposal, text: Tensor, row: np.ndarray) -> Evaluation:
        """All figures of one proposal from its text embeddings (n, d); `row`: (n,), where the values of the captions go."""
        task_loss = recall = None
        values = {}
        if self.images is not None:
            values["task_loss"] = pair_losses(
                text, self.images[self.image_index], self.clip.logit_scale, self.loss_batch_size, self.image_index
            )
            task_loss = values["task_loss"].mean().item()
            hits = recall_hits(text, self.images, self.image_index)
            recall = summarise_hits(hits)
            both_ways = hits["text_to_image"][10].double() + hits["image_to_text"][10][self.image_index].double()
            values["recall"] = -both_ways / 2
        if self._full is not None:
            values["embedding"] = 1 - (text * self._full).sum(-1).double()
        row[:] = values[self.objective].cpu().numpy()
        return Evaluation(proposal, float(row.mean()), task_loss, recall, row)


class RecentStates:
    """Hidden states by key, the least recently used given up beyond a number of bytes."""

    def __init__(self, most_bytes: int):
        self._most_bytes, self._bytes, self._states = most_bytes, 0, OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        if key in self._states:
            self._states.move_to_end(key)
        return self._states.get(key)

    def put(self, key: Hashable, state: Tensor) -> None:
        self._states[key] = state
        self._bytes += state.nbytes
        while self._bytes > self._most_bytes:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= oldest.nbytes


def rank_key(evaluation: Evaluation) -> tuple[float, Proposal]:
    """Best objective first; ties by the layers dropped."""
    return evaluation.objective, evaluation.dropped_layers
