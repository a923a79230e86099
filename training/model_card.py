"""The model card of a trained checkpoint: what it was made from, how, and how good it is."""

from dataclasses import dataclass
from pathlib import Path

from common import ROOT
from search_strategy.proposals import segments
from training.report import figures_table
from training.schedule import Stage
from training.start import Choice

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
    """What does not change while a model is trained: from what, by what, and the run record."""

    stage: Stage
    choice: Choice | None  # None: trained from scratch
    freeze_vision: bool
    record: dict

    def text(self, validation: dict, test: dict[str, dict[str, float]] | None = None) -> str:
        """`validation`: figures of the checkpoint; `test`: those of all models compared, where they are known already."""
        model, folder = self.record["model"], self.record["output_dir"]
        is_local = Path(model).exists() or (ROOT / model).exists()
        parts = [
            FRONT_MATTER.format(base_model="" if is_local else f"base_model: {model}\n"),
            f"# {folder}\n\n{self._making(model)}\n\nMade by\n\n    {self.record['command']}\n",
            USAGE.format(folder=folder),
            f"\nValidation ({self._name(validation)}):\n\n{figures_table({'this model': validation}, 'pipe')}\n",
        ]
        if test:
            parts.append(f"\nTest:\n\n{figures_table(test, 'pipe')}\n")
        return "".join(parts)

    def _making(self, model: str) -> str:
        left = self.stage.num_layers - self.stage.num_clip_layers
        towers = "text tower" if self.freeze_vision else "text and image tower"
        data = f"on {self.record['train']['captions']:,} captions of `{self.record['flags']['dataset']}`"
        if self.choice is None:
            return (
                f"A CLIP with {left} text layers in the shape of `{model}`, its {towers} trained from scratch {data}."
            )
        if not self.choice.dropped_layers:
            return f"`{model}` with all its {left} text layers, its {towers} fine-tuned {data}."
        return (
            f"`{model}` with {left} of its {self.stage.num_layers} text layers, without "
            f"{segments(self.choice.dropped_layers)} (counted from 1; from {self.choice.origin}); its {towers} "
            f"was fine-tuned {data}."
        )

    @staticmethod
    def _name(validation: dict) -> str:
        return (
            f"epoch {validation['epoch']}"
            if "epoch" in validation
            else f"mean of epochs {validation['mean_of_epochs']}"
        )
