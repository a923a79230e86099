"""A model written for other runtimes, and read again there from nothing but the folder written.

ONNX takes the text tower of any family, the other kinds CLIP alone. Every kind has a `write(encoder, folder, options)`
and a `read(folder, captions, images)`; the latter returns embeddings by name: `captions` (n, d), and `images` (m, d)
where the export has an image tower. The model is on the CPU. Runtimes are imported where they are needed.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection

from models.clip import Clip
from models.encoders import Encoder
from models.open_clip_folder import save_open_clip

ONNX_NAME = "text_encoder.onnx"
BATCH_SIZES = (1, 7, 64)  # of the captions of a comparison, in turn: an export must take any


@dataclass(frozen=True)
class Options:
    """The flags that only one kind of export has: `ids` and `normalize` onnx, `hub_name` open_clip."""

    ids: str = "int64"
    normalize: bool = True
    hub_name: str = ""


class TextEncoder(nn.Module):
    """From token ids (n, T), perhaps with a mask, to embeddings (n, d): the graph of the ONNX export."""

    def __init__(self, encoder: Encoder, names: Sequence[str], normalize: bool):
        super().__init__()
        self.model, self.deployed, self.names, self.normalize = encoder.model, encoder.deployed, names, normalize

    def forward(self, *inputs: Tensor) -> Tensor:
        embeddings = self.deployed(dict(zip(self.names, inputs, strict=True)))
        return nn.functional.normalize(embeddings, dim=-1) if self.normalize else embeddings


# --- writing


def write_onnx(encoder: Encoder, folder: Path, options: Options) -> None:
    prepared = encoder.prepare(["a", "two words"])
    example = encoder.batch(prepared, range(2)).inputs
    shape = {0: torch.export.Dim("batch")}
    if len(set(map(len, prepared))) > 1:  # else every text is padded to the trained length
        shape[1] = torch.export.Dim("length", min=2, max=encoder.max_length)
    program = torch.onnx.export(
        TextEncoder(encoder, list(example), options.normalize).eval(),
        tuple(tensor.to(getattr(torch, options.ids)) for tensor in example.values()),
        input_names=list(example),
        output_names=["text_embeds"],
        dynamic_shapes=((shape,) * len(example),),
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props["normalized"] = str(options.normalize).lower()
    program.save(folder / ONNX_NAME, external_data=False)
    save_tokenizer(encoder, folder)


def write_open_clip(clip: Clip, folder: Path, options: Options) -> None:
    name = options.hub_name or Path(clip.name).name
    save_open_clip(clip.model, clip.processor, folder, tokenizer_name=name)


def write_text(clip: Clip, folder: Path, _: Options) -> None:
    config = copy.deepcopy(clip.model.config.text_config)
    config.projection_dim = clip.model.config.projection_dim
    text = CLIPTextModelWithProjection(config)
    parts = ("text_model.", "text_projection.")
    text.load_state_dict({name: t for name, t in clip.model.state_dict().items() if name.startswith(parts)})
    text.save_pretrained(folder)
    save_tokenizer(clip, folder)


def save_tokenizer(encoder: Encoder, folder: Path) -> None:
    """The tokenizer with the model's length, so that it truncates without being told."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = encoder.max_length
    tokenizer.save_pretrained(folder)


# --- reading again, with nothing but the folder


def read_onnx(folder: Path, captions: Sequence[str], images: Sequence) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_NAME, providers=["CPUExecutionProvider"])
    entries = session.get_inputs()
    dtype, length = entries[0].type.removeprefix("tensor(").removesuffix(")"), entries[0].shape[1]
    padding = "max_length" if isinstance(length, int) else True
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    embeddings = []
    for batch in batches(captions):
        tokens = tokenizer(batch, padding=padding, truncation=True, return_tensors="np")
        inputs = {entry.name: tokens[entry.name].astype(dtype) for entry in entries}
        embeddings.append(torch.from_numpy(session.run(["text_embeds"], inputs)[0]))
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


def check_kind(encoder: Encoder, to: str) -> None:
    """Raise ValueError where a model of this family cannot be exported so."""
    if to != "onnx" and not isinstance(encoder.model, CLIPModel):
        ways = "--to onnx takes it"
        if encoder.library_name != "transformers":
            ways += f", and {encoder.library_name} loads its folder as it is"
        kind = encoder.model.config.model_type
        raise ValueError(f"{encoder.name}: --to {to} is for CLIP alone (model_type clip), found {kind}; {ways}")


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


def original(encoder: Encoder, captions: Sequence[str], images: Sequence, normalize: bool) -> dict[str, Tensor]:
    """The embeddings of the model that is exported, by name as the `read` functions return them."""
    text = torch.empty(len(captions), encoder.dim)
    for batch in encoder.batches(captions, 64):
        text[batch.rows] = encoder.deployed(batch.inputs)
    image = text[:0]
    if images:
        image = encoder.model.get_image_features(pixel_values=encoder.preprocess(images)).pooler_output
    return {"captions": nn.functional.normalize(text, dim=-1) if normalize else text, "images": image}


def largest_difference(export: Tensor, original: Tensor) -> float:
    """Of any entry, as a share of the length of the original's embedding. NaN counts as infinity."""
    difference = (export - original).abs() / original.norm(dim=-1, keepdim=True)
    return difference.nan_to_num(nan=torch.inf).max().item()
