"""The floors of the house: who may import whom, and no file that hides a package."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
LISTED = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
FILES = [path for path in map(Path, LISTED.split()) if (ROOT / path).exists() and path.parts[0] != "tests"]
# What each floor may import of ours beside itself; a longer name goes before the folder that it is in.
BELOW = {
    "measures": (),
    "common": ("measures",),
    "data": ("common",),
    "models": ("common", "data", "measures"),
    "tasks": (),
    "search_strategy": ("common", "data", "models", "tasks", "measures"),
    "common.analysis": ("common", "data", "models", "measures"),  # step 1
    "training": ("common", "data", "models", "measures", "tasks", "search_strategy", "common.analysis"),
    "commands": ("common", "data", "models", "measures", "tasks", "search_strategy", "common.analysis", "training"),
}
# What the core of the README leans on and a reader of it may leave closed; else it imports itself alone.
HELPERS = {
    *("common", "data", *(f"measures.{name}" for name in ("checks", "distances", "nuclear", "products", "ridge"))),
    *(f"models.{name}" for name in ("anatomy", "checkpoint", "families", "embedding_cache", "judging")),
    *("models.open_clip_folder", "models.segment_maps", "tasks.distance", "tasks.image_retrieval"),
    *(f"search_strategy.{name}" for name in ("climb", "defaults", "exact")),
    *(f"training.{name}" for name in ("augment", "batches", "losses", "report", "saved_run", "settings", "states")),
}
PURE = ("measures", "tasks", *(f"search_strategy.{name}" for name in ("proposals", "coarse", "exact", "climb")))
SCRIPTS = {path for path in FILES if '__name__ == "__main__"' in (ROOT / path).read_text(encoding="utf-8")}
OURS = {path.parts[0] for path in FILES if len(path.parts) > 1} | {path.stem for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports; `from common import analysis` counts as `common.analysis`."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def floor(name: str) -> str:
    """The entry of BELOW for a module or a name in it; its first part where there is none."""
    return max((part for part in BELOW if f"{name}.".startswith(f"{part}.")), key=len, default=name.split(".")[0])


def test_imports_go_down():
    for path in FILES:
        own = ".".join(path.with_suffix("").parts)
        below = BELOW if path in SCRIPTS else BELOW.get(floor(own), BELOW)
        allowed = {*below, floor(own)}  # a script: every floor, and its own folder's helpers
        for name in imported(path):
            assert floor(name) in allowed, f"{path} imports {name}; its floor may import {', '.join(sorted(allowed))}"


def read_core() -> list[Path]:
    """The files of the core, in the README's order: `measures/svcca.py, dc.py` are two of one folder."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("The core, in the order to read it")[2]
    listed = (line.partition("  ")[0].split(", ") for line in text.split("```")[1].strip().splitlines())
    return [Path(first).parent / Path(name).name for first, *rest in listed for name in (first, *rest)]


def test_the_core_imports_itself_and_a_few_helpers():
    core = read_core()
    modules = {".".join(path.with_suffix("").parts) for path in core}
    assert len(core) > 15 and set(core) <= set(FILES)
    for path in core:
        for name in imported(path):
            parts = name.split(".")
            module = ".".join(parts[:2]) if Path(*parts[:2]).with_suffix(".py") in FILES else parts[0]
            assert module in modules or {module, parts[0]} & HELPERS, f"{path} imports {name}"


def test_the_core_is_as_long_as_the_readme_says():
    lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in read_core())
    said = re.search(r"in the order to read it, about ([\d,]+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert abs(lines - int(said[1].replace(",", ""))) <= 200


def test_pure_modules_have_no_files_no_output_and_no_flags():
    for path in FILES:
        if ".".join(path.with_suffix("").parts).startswith(PURE):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not re.findall(
                r"^import (?:argparse|logging)|\bprint\(|\bopen\(|\bPath\(|^from transformers", text, re.M
            ), path


def test_no_family_of_models_is_named_outside_models_and_scripts():
    families = [module for module, _ in FAMILIES.values()]
    names = set(families)
    for module in families:
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names |= {f"{place}.{name}" for place in (module, "models") for name in defined}
    for path in FILES:
        if path.parts[0] in ("common", "data", "measures", "search_strategy", "tasks", "training"):
            assert not imported(path) & names, path


def test_scripts_are_not_imported():
    scripts = {".".join(path.with_suffix("").parts) for path in SCRIPTS}
    for path in FILES:
        for name in imported(path):
            assert not any(f"{name}.".startswith(f"{script}.") for script in scripts), f"{path} imports {name}"


def test_no_file_or_folder_has_the_name_of_a_package():
    packages = set(packages_distributions()) | sys.stdlib_module_names | {"open_clip", "onnxruntime"}
    names = {part for path in FILES for part in (*path.parts[:-1], path.stem)} - {"__init__"}
    assert not names & packages
    folders = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert not folders & {path.stem for path in FILES}  # as `benchmarks/measures.py` would hide `measures`


def test_the_path_is_changed_by_two_scripts_alone():
    changed = {path.name for path in FILES if "sys.path" in (ROOT / path).read_text()}
    assert changed == {"search_prune_then_verify_mix.py", "compare_strategies.py"}


def test_the_version_is_the_same_everywhere():
    said = {
        re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)[1]
        for name, pattern in (
            ("pyproject.toml", r'^version = "(.*)"'),
            ("CITATION.cff", r"^version: (.*)"),
            ("CHANGELOG.md", r"^## (.*)"),
        )
    }
    assert len(said) == 1
