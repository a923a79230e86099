"""--help: at once, without any of the heavy libraries, and with what each choice means."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import export_clip
from models.exports import EXPORTS
from search_strategy.defaults import OBJECTIVES
from tasks.distance import Distance
from tasks.retrieval import Retrieval
from training.losses import DISTILLATION
from training.settings import DISTILL_MODES

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "svcca_analysis.py",
    "dc_analysis.py",
    "similarity_analysis.py",
    "search_strategy/search_prune_then_verify_mix.py",
    "search_strategy/compare_strategies.py",
    "clip_finetune_train.py",
    "evaluate_clip.py",
    "export_clip.py",
)
HEAVY = {"torch", "transformers", "datasets", "accelerate", "scipy", "matplotlib", "pandas", "pyarrow"}
RUN = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
sys.path.insert(0, ".")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy_begins_with_the_docstring_and_explains_choices(script):
    run = subprocess.run([sys.executable, "-c", RUN, script], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, modules = run.stdout.rpartition("imported:")
    assert not HEAVY & set(modules.split())
    assert f"    python {Path(script).name}" in text  # a command to paste
    flags = re.split(r"\n  --", text)[1:]
    for flag in flags:
        choices = re.match(r"\w+ \{([\w,]+)\}", flag)
        if choices and not flag.startswith(("device", "split", "svcca_mode")):
            said = " ".join(flag[choices.end() :].split())
            assert all(f"{choice}: " in said for choice in choices[1].split(",")), flag


def test_choices_are_those_of_the_tables_that_dispatch():
    assert set(OBJECTIVES) == {*Retrieval.OBJECTIVES, Distance.objective}
    assert set(DISTILL_MODES) == {"none", *DISTILLATION}
    assert set(export_clip.KINDS) == set(EXPORTS)
