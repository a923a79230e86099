"""The README's own commands, one after the other, as a user would type them: on a tiny model and tiny data."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PIPELINE = re.search(r"<!-- pipeline -->\s*```bash\n(.*?)```", README, re.S)[1].strip().splitlines()

# What makes a command of the README small: the tiny model has 4 layers, the tiny data 60 captions a split.
SHORTENED = {"--num_layers": "4", "--num_clip_layers": "2", "--iter_num": "8", "--batch_size": "4", "--max_epoch": "1"}


# All commands in one interpreter: each start of its own, with torch and transformers, takes seconds.
SESSION = """
import gc, json, os, runpy, sys
gc.disable()
paths = sys.path[1:]
for folder, words in json.loads(sys.argv[1]):
    print("python", *words, file=sys.stderr)
    os.chdir(folder)
    sys.argv, sys.path[:] = words, [folder, *paths]
    runpy.run_path(words[0], run_name="__main__")
"""


def shortened(words: list[str], places: list[str]) -> list[str]:
    """The command with small numbers, and with the tiny model and data; the search is told the small draws."""
    words = [SHORTENED.get(previous, word) for previous, word in zip(["", *words], words, strict=False)]
    if words[1].startswith("search_prune"):
        words += ["--bs", "4", "--iter", "8", "--loss_batch_size", "20"]
    if words[1].startswith("clip_finetune"):
        words += ["--max_epoch", "1", "--batch_size", "20"]
    return [*words[1:], *places]


def test_the_pipeline_of_the_readme_is_the_one_of_the_design():
    expected = [
        "python svcca_analysis.py --batch_size 32 --iter_num 300 --thre 0.99 --mode U",
        "python dc_analysis.py --batch_size 4 --iter_num 10",
        "cd search_strategy",
        "python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam "
        "--select_measure dc --coarse_search_only true",
        "python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam "
        "--select_measure dc",
        "cd ..",
        "python clip_finetune_train.py --output_dir clip12to6_exp1 --resume_epoch 0 --num_layers 12 "
        "--num_clip_layers 6",
    ]
    assert expected == PIPELINE


def test_the_pipeline_of_the_readme_runs_in_its_order(tiny_clip, tiny_pairs, tmp_path):
    places = ["--model", str(tiny_clip), "--dataset", str(tiny_pairs), "--exp_dir", str(tmp_path)]
    folder, commands = ROOT, []
    for line in PIPELINE:
        words = shlex.split(line)
        if words[0] == "cd":
            folder = (folder / words[1]).resolve()
        else:
            commands.append((str(folder), shortened(words, places)))
    run = [sys.executable, "-c", SESSION, json.dumps(commands)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in tmp_path.glob("*/dc_mat_*")} == {".npy", ".png", ".json"}
    assert {path.suffix for path in tmp_path.glob("*/cca_mat_*")} == {".npy", ".png", ".json"}
    found = {path.stem.endswith("_coarse") for path in tmp_path.glob("*/clip4to2_beam_dc*.json")}
    assert found == {True, False}  # the verified result is another file
    assert (tmp_path / "clip12to6_exp1" / "model.safetensors").exists()


def test_every_script_that_the_readme_shows_exists():
    folders = (ROOT, ROOT / "search_strategy")  # the pipeline changes into the latter
    shown = set(re.findall(r"python ((?:\w+/)*\w+\.py)", README))
    shown |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m ((?:\w+\.)+\w+)", README)}
    assert len(shown) > 8
    assert not [name for name in shown if not any((folder / name).exists() for folder in folders)]


def test_every_file_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_what_runs_write_under_exp_is_ignored_and_the_bundled_model_is_not():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 0

    written = ("dc_mat_mean_bs4_iter10.npy", "clip12to6_beam_dc.json", "cache/x.npy", "evaluation.png")
    assert all(ignored(f"exp/iconclip/{name}") for name in written)
    assert ignored("exp/clip12to6_exp1/model.safetensors") and ignored("exp/clip12to6_exp1.states/0001/state.json")
    assert not any(ignored(f"exp/iconclip/{name}") for name in ("README.md", "config.json", "model.safetensors"))
    assert not ignored("results/iconclip/dc_mat_mean_bs4_iter10.npy")
