"""Open icon sets: downloaded from pinned npm packages, named, drawn. What the builds of the bundled data share."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Icon sets under MIT, Apache-2.0 or ISC: npm package @iconify-json/<set>, pinned.
ICON_SETS = {
    "bi": "1.2.7",
    "bx": "1.2.3",
    "carbon": "1.2.29",
    "fluent": "1.2.60",
    "heroicons": "1.2.3",
    "hugeicons": "1.2.35",
    "ic": "1.2.4",
    "iconoir": "1.2.11",
    "ion": "1.2.7",
    "lucide": "1.2.137",
    "material-symbols": "1.2.98",
    "mdi": "1.2.3",
    "mingcute": "1.2.8",
    "octicon": "1.2.36",
    "ph": "1.2.2",
    "tabler": "1.2.41",
    "uil": "1.2.3",
}
LICENSES = ("MIT", "Apache-2.0", "ISC")
SIZE_WORDS = {"10", "12", "16", "20", "24", "28", "32", "48"}  # "add-circle-24-filled": a size, not a meaning
IMAGE_SIZE = 32
GREY_BITS = 4


def collect(download_dir: Path) -> tuple[list[dict], dict[str, dict]]:
    """Every usable icon as {caption, icon_set, svg}, and the description of each set."""
    rows, infos = [], {}
    for icon_set, version in ICON_SETS.items():
        icons, infos[icon_set] = read_icon_set(icon_set, version, download_dir)
        seen = set()
        for icon_name, icon in icons["icons"].items():
            caption = caption_of(icon_name)
            if icon.get("hidden") or not caption or caption in seen:
                continue
            seen.add(caption)
            rows.append({"caption": caption, "icon_set": icon_set, "svg": svg_of(icon, icons)})
    return rows, infos


def read_icon_set(name: str, version: str, download_dir: Path) -> tuple[dict, dict]:
    """The icons (`icons.json`) and the description (`info.json`) of one pinned set, downloaded where missing."""
    archive = download_dir / f"iconify-json-{name}-{version}.tgz"
    if not archive.exists():
        download_dir.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], cwd=download_dir, check=True)
    with tarfile.open(archive) as tar:
        icons, info = (json.load(tar.extractfile(f"package/{file}.json")) for file in ("icons", "info"))
    if info["license"]["spdx"] not in LICENSES:
        raise ValueError(f"{name} {version} is under {info['license']['spdx']}; expected one of {', '.join(LICENSES)}")
    return icons, info


def caption_of(icon_name: str) -> str:
    """The icon's name as words, without size numbers."""
    return " ".join(word for word in icon_name.split("-") if word not in SIZE_WORDS)


def svg_of(icon: dict, icons: dict) -> str:
    """A square SVG of one icon, black; a missing size falls back to the set's, then to Iconify's 16."""
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    body = icon["body"].replace("currentColor", "#000")
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="{box}">{body}</svg>'


def render(svg: str) -> bytes:
    """PNG bytes, `IMAGE_SIZE` squared, `GREY_BITS` bits of grey, black on white."""
    import png  # build tools, not in requirements.txt
    import resvg_py

    rendered = resvg_py.svg_to_bytes(svg_string=svg, width=IMAGE_SIZE, height=IMAGE_SIZE, background="white")
    grey = np.asarray(Image.open(io.BytesIO(bytes(rendered))).convert("L"))
    buffer = io.BytesIO()
    png.Writer(IMAGE_SIZE, IMAGE_SIZE, greyscale=True, bitdepth=GREY_BITS, compression=9).write(
        buffer, np.rint(grey / 255 * (2**GREY_BITS - 1)).astype(np.uint8)
    )
    return buffer.getvalue()
