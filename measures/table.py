"""The measures: one row each, from which every script takes its flags, its defaults and the names of its files."""

import inspect
import math
from dataclasses import dataclass

from measures.ablation import Ablation
from measures.angular import Angular
from measures.base import Measure
from measures.cka import CKA
from measures.cosine import Cosine
from measures.covcorr import CovCorr
from measures.dc import DC
from measures.delta_mean import DeltaMean
from measures.pwcca import PWCCA
from measures.repair import Repair
from measures.svcca import SVCCA


@dataclass(frozen=True)
class Option:
    """A keyword of a measure, which is a flag of the scripts too; its default is that of the measure.

    Attributes:
        choices: its values, where they can be listed.
        limits: of a number, both included.
        tag: starts the value in the name of a file, where it then always stands; without one, only what is not the
            default does.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    limits: tuple[float, float] = (float("-inf"), float("inf"))
    tag: str = ""

    def suffix(self, value: object, default: object) -> str:
        """The value in the name of a file: `_svthre0.99`, `_unbiased`, `_debiased`; nothing for a default."""
        if self.tag:
            return f"_{self.tag}{value:.10g}"
        if value == default:
            return ""
        return f"_{value}" if isinstance(value, str) else f"_{self.name}" if value is True else f"_{self.name}{value}"


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        measure: the class.
        options: its keywords.
        modes: choices of `--mode`, the default first: what a sample is. `U`, `mean`: a caption; `T`: a token; `seq`:
            all tokens.
        draws: default `--batch_size` and `--iter_num`.
        fed: what an update holds: `states`, the hidden states h_0 .. h_L; or another of `models.feeds.FEEDS`.
        tag: its name in the names of files, where that is another.
        script: the script that makes its matrix; all others share one.
    """

    measure: type[Measure]
    options: tuple[Option, ...] = ()
    modes: tuple[str, ...] = ("U", "T")
    draws: tuple[int, int] = (32, 300)
    fed: str = "states"
    tag: str = ""
    script: str = "similarity_analysis.py"

    @property
    def defaults(self) -> dict:
        """Of the options, as the measure has them."""
        keywords = inspect.signature(self.measure).parameters
        return {option.name: keywords[option.name].default for option in self.options}


THRESHOLD = (
    Option("thre", "share of the singular values of a layer to keep", limits=(0, 1), tag="svthre"),
    Option("thre_on", "share of the singular values, or of their squares", choices=("singular", "variance")),
)
ESTIMATOR = Option("estimator", "V-statistic, as the original, or U-centred", choices=("biased", "unbiased"))
DEBIASED = Option("debiased", "HSIC without its bias")
PULL = Option("ridge", "pull of a refitted map towards what it is, in mean squares of a feature", limits=(0, math.inf))

KINDS = {
    "svcca": Kind(SVCCA, THRESHOLD, tag="cca", script="svcca_analysis.py"),
    "pwcca": Kind(PWCCA, THRESHOLD),
    "dc": Kind(DC, (ESTIMATOR,), modes=("mean", "seq"), draws=(4, 10), script="dc_analysis.py"),
    "cka": Kind(CKA, (DEBIASED,)),
    "cosine": Kind(Cosine),
    "angular": Kind(Angular),
    "covcorr": Kind(CovCorr),
    "delta_mean": Kind(DeltaMean),
    "ablation": Kind(Ablation, modes=("U",), draws=(4, 10), fed="ablation"),
    "repair": Kind(Repair, (PULL,), modes=("T",), draws=(32, 32), fed="repair"),
}
MEASURES = {name: kind.measure for name, kind in KINDS.items() if kind.fed == "states"}  # those of hidden states
