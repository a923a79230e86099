"""The model card of a trained checkpoint: what it was made from, how, and how good it is."""

from dataclasses import dataclass
from pathlib import Path

from search_strategy.proposals import Proposal, segments
from training.report import figures_table

FRONT_MATTER = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- clip
- layer-pruning
{base_model}---
"""
USAGE = """
```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")
```
"""


@dataclass(frozen=True)
class ModelCard:
    """Facts about a training that do not change while it runs. `origin`: where the choice of the layers comes from."""

    folder: str
    model: str
    num_layers: int
    dropped_layers: Proposal | None  # None: trained from scratch
    origin: str
    num_clip_layers: int
    trained: str
    dataset: str
    num_pairs: int
    command: str

    def text(self, validation: dict, test: dict[str, dict[str, float]] | None = None) -> str:
        """`validation`: figures of the checkpoint; `test`: those of all models compared, where they are known already."""
        is_local = Path(self.model).exists()
        parts = [
            FRONT_MATTER.format(base_model="" if is_local else f"base_model: {self.model}\n"),
            f"# {self.folder}\n\n{self._making()}\n\nMade by\n\n    {self.command}\n",
            USAGE.format(folder=self.folder),
            f"\nValidation ({self._name(validation)}):\n\n{figures_table({'this model': validation}, 'pipe')}\n",
        ]
        if test:
            parts.append(f"\nTest:\n\n{figures_table(test, 'pipe')}\n")
        return "".join(parts)

    def _making(self) -> str:
        left = self.num_layers - self.num_clip_layers
        data = f"on {self.num_pairs:,} pairs of `{self.dataset}`"
        if self.dropped_layers is None:
            return f"A CLIP with {left} text layers in the shape of `{self.model}`: {self.trained} from scratch {data}."
        return (
            f"`{self.model}` with {left} of its {self.num_layers} text layers: CoMFLP dropped {segments(self.dropped_layers)} "
            f"(counted from 1; from {self.origin}), then {self.trained} fine-tuned {data}."
        )

    @staticmethod
    def _name(validation: dict) -> str:
        return (
            f"epoch {validation['epoch']}"
            if "epoch" in validation
            else f"mean of epochs {validation['mean_of_epochs']}"
        )
