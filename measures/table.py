"""The measures: one row each, from which every script takes its flags, its defaults and the names of its files.

A measure is imported when it is made, so that flags can be read without torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from measures.base import Measure


@dataclass(frozen=True)
class Option:
    """A keyword of a measure, which is a flag of the scripts too, and its default.

    Attributes:
        choices: its values, where they can be listed, and what each means.
        limits: of a number, both included.
        tag: starts the value in the name of a file, where it then always stands; without one, only what is not the
            default does.
    """

    name: str
    default: object
    help: str
    choices: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[float, float] = (float("-inf"), float("inf"))
    tag: str = ""

    def suffix(self, value: object) -> str:
        """The value in the name of a file: `_svthre0.99`, `_unbiased`, `_debiased`; nothing for a default."""
        if self.tag:
            return f"_{self.tag}{value:.10g}"
        if value == self.default:
            return ""
        return f"_{value}" if isinstance(value, str) else f"_{self.name}" if value is True else f"_{self.name}{value}"


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        measure_class: module of this folder and class.
        meaning: of an entry, in a phrase.
        options: its keywords.
        modes: choices of `--mode`, the default first: what a sample is. `U`, `mean`: a caption; `T`: a token; `seq`:
            all tokens.
        draws: default `--batch_size` and `--iter_num`.
        fed: what an update holds: `states`, the hidden states h_0 .. h_L; or another of `models.feeds.FEEDS`.
        tag: its name in the names of files, where that is another.
        script: the script that makes its matrix; all others share one.
    """

    measure_class: str
    meaning: str
    options: tuple[Option, ...] = ()
    modes: tuple[str, ...] = ("U", "T")
    draws: tuple[int, int] = (32, 300)
    fed: str = "states"
    tag: str = ""
    script: str = "similarity_analysis.py"

    @property
    def measure(self) -> "type[Measure]":
        module, name = self.measure_class.split(".")
        return getattr(import_module(f"measures.{module}"), name)

    def __call__(self, **options: object) -> "Measure":
        """A new measure with these options."""
        return self.measure(**options)

    @property
    def defaults(self) -> dict:
        """Of the options."""
        return {option.name: option.default for option in self.options}


THRESHOLD = (
    Option("thre", 0.99, "share of the singular values of a layer to keep", limits=(0, 1), tag="svthre"),
    Option(
        "thre_on",
        "singular",
        "what that is a share of",
        {"singular": "the singular values, as in the original", "variance": "their squares"},
    ),
)
ESTIMATOR = Option(
    "estimator",
    "biased",
    "of the distance covariances",
    {"biased": "V-statistic, as the original", "unbiased": "U-centred, near 0 for independent layers"},
)
DEBIASED = Option("debiased", False, "HSIC without its bias")
PULL = Option(  # the default by validation, on two models; RESULTS.md, section 4
    "ridge", 0.03, "pull of a refitted map towards what it is, in samples for each feature", limits=(1e-9, math.inf)
)

KINDS = {
    "svcca": Kind(
        "svcca.SVCCA",
        "canonical correlations of the leading directions",
        THRESHOLD,
        tag="cca",
        script="svcca_analysis.py",
    ),
    "pwcca": Kind("pwcca.PWCCA", "canonical correlations, weighted by what each direction explains", THRESHOLD),
    "dc": Kind(
        "dc.DC",
        "squared distance correlation",
        (ESTIMATOR,),
        modes=("mean", "seq"),
        draws=(4, 10),
        script="dc_analysis.py",
    ),
    "cka": Kind("cka.CKA", "linear centred kernel alignment", (DEBIASED,)),
    "cosine": Kind("cosine.Cosine", "mean cosine of a sample's two states"),
    "angular": Kind("angular.Angular", "1 minus their mean angle / pi"),
    "covcorr": Kind("covcorr.CovCorr", "correlation of the entries of two layers' covariances"),
    "delta_mean": Kind("delta_mean.DeltaMean", "1 minus the relative distance of a sample's two states"),
    "ablation": Kind(
        "ablation.Ablation", "what embeddings keep without these layers", modes=("U",), draws=(4, 10), fed="ablation"
    ),
    "repair": Kind(
        "repair.Repair",
        "share of a later state that an earlier layer explains after repair",
        (PULL,),
        modes=("T",),
        draws=(32, 32),
        fed="repair",
    ),
}
MEASURES = {name: kind for name, kind in KINDS.items() if kind.fed == "states"}  # those of hidden states
