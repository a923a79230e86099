"""A CLIP written for other runtimes, and read again there from nothing but the folder written.

Every kind has a `write(clip, folder, options)` and a `read(folder, captions, images)`; the latter returns embeddings by
name: `captions` (n, d), and `images` (m, d) where the export has an image tower. The model is on the CPU. Runtimes are
imported where they are needed.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from models.clip import Clip
from models.open_clip_folder import save_open_clip

ONNX_NAME = "text_encoder.onnx"
BATCH_SIZES = (1, 7, 64)  # of the captions of a comparison, in turn: an export must take any


@dataclass(frozen=True)
class OnnxOptions:
    """The flags that only `--to onnx` has."""

    ids: str = "int64"
    normalize: bool = True


class TextEncoder(nn.Module):
    """From token ids (n, T) to embeddings (n, d), the graph of the ONNX export."""

    def __init__(self, clip: Clip, normalize: bool):
        super().__init__()
        self.model, self.normalize = clip.model, normalize

    def forward(self, input_ids: Tensor) -> Tensor:
        embeddings = self.model.get_text_features(input_ids=input_ids).pooler_output
        return F.normalize(embeddings, dim=-1) if self.normalize else embeddings


# --- writing


def write_onnx(clip: Clip, folder: Path, options: OnnxOptions) -> None:
    example = clip.batch(clip.prepare(["a", "two words"]), range(2)).inputs["input_ids"]
    longest = clip.model.config.text_config.max_position_embeddings
    program = torch.onnx.export(
        TextEncoder(clip, options.normalize).eval(),
        (example.to(getattr(torch, options.ids)),),
        input_names=["input_ids"],
        output_names=["text_embeds"],
        dynamic_shapes={"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=longest)}},
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props["normalized"] = str(options.normalize).lower()
    program.save(folder / ONNX_NAME, external_data=False)
    save_tokenizer(clip, folder)


def write_open_clip(clip: Clip, folder: Path, _: OnnxOptions) -> None:
    save_open_clip(clip.model, clip.processor, folder, tokenizer_name=Path(clip.name).name)


def write_text(clip: Clip, folder: Path, _: OnnxOptions) -> None:
    config = copy.deepcopy(clip.model.config.text_config)
    config.projection_dim = clip.model.config.projection_dim
    text = CLIPTextModelWithProjection(config)
    parts = ("text_model.", "text_projection.")
    text.load_state_dict({name: t for name, t in clip.model.state_dict().items() if name.startswith(parts)})
    text.save_pretrained(folder)
    save_tokenizer(clip, folder)


def save_tokenizer(clip: Clip, folder: Path) -> None:
    """The tokenizer with the model's length, so that it truncates without being told."""
    tokenizer = copy.deepcopy(clip.processor.tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, clip.model.config.text_config.max_position_embeddings)
    tokenizer.save_pretrained(folder)


# --- reading again, with nothing but the folder


def read_onnx(folder: Path, captions: Sequence[str], images: Sequence) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_NAME, providers=["CPUExecutionProvider"])
    dtype = session.get_inputs()[0].type.removeprefix("tensor(").removesuffix(")")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    embeddings = []
    for batch in batches(captions):
        ids = tokenizer(batch, padding=True, truncation=True, return_tensors="np")["input_ids"].astype(dtype)
        embeddings.append(torch.from_numpy(session.run(["text_embeds"], {"input_ids": ids})[0]))
    return {"captions": torch.cat(embeddings)}


def read_open_clip(folder: Path, captions: Sequence[str], images: Sequence) -> dict[str, Tensor]:
    import open_clip

    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    text = torch.cat([model.encode_text(tokenizer(batch)) for batch in batches(captions)])
    return {"captions": text, "images": model.encode_image(torch.stack([preprocess(image) for image in images]))}


def read_text(folder: Path, captions: Sequence[str], images: Sequence) -> dict[str, Tensor]:
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens = (tokenizer(batch, padding=True, truncation=True, return_tensors="pt") for batch in batches(captions))
    return {"captions": torch.cat([model(input_ids=batch["input_ids"]).text_embeds for batch in tokens])}


EXPORTS = {
    "onnx": (write_onnx, read_onnx),
    "open_clip": (write_open_clip, read_open_clip),
    "text": (write_text, read_text),
}


def batches(captions: Sequence[str]) -> Iterator[list[str]]:
    """The captions in batches of changing size."""
    start, number = 0, 0
    while start < len(captions):
        size = BATCH_SIZES[number % len(BATCH_SIZES)]
        yield list(captions[start : start + size])
        start, number = start + size, number + 1


# --- comparison


def original(clip: Clip, captions: Sequence[str], images: Sequence, normalize: bool) -> dict[str, Tensor]:
    """The embeddings of the model that is exported, by name as the `read` functions return them."""
    text = torch.empty(len(captions), clip.model.config.projection_dim)
    for batch in clip.batches(captions, 64):
        text[batch.rows] = clip.deployed(batch.inputs)
    image = clip.model.get_image_features(pixel_values=clip.preprocess(images)).pooler_output if images else text[:0]
    return {"captions": F.normalize(text, dim=-1) if normalize else text, "images": image}


def largest_difference(export: Tensor, original: Tensor) -> float:
    """Of any entry, as a share of the length of the original's embedding. NaN counts as infinity."""
    difference = (export - original).abs() / original.norm(dim=-1, keepdim=True)
    return difference.nan_to_num(nan=torch.inf).max().item()
