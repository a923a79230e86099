"""Which class reads which checkpoint, and what no class here can prune, with the reason."""

from importlib import import_module

from transformers import PreTrainedConfig

from models import checkpoint
from models.anatomy import count_fixed
from models.encoders import Encoder
from models.open_clip_folder import find_open_clip, read_open_clip

# (model_type of the checkpoint, tower) -> module and function(name, device, weights) that loads it
SENTENCE_ENCODERS = ("bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
FAMILIES = {
    ("clip", "text"): ("models.clip", "load_clip"),
    ("clip", "vision"): ("models.vision", "load_vision"),
    ("metaclip_2", "text"): ("models.clip", "load_clip"),
    ("metaclip_2", "vision"): ("models.vision", "load_vision"),
    ("siglip", "text"): ("models.siglip", "load_siglip"),
    ("siglip", "vision"): ("models.vision", "load_vision"),
    **{(kind, "text"): ("models.sentence", "load_sentence_encoder") for kind in SENTENCE_ENCODERS},
}
# Kinds that people try and that no class here can prune, with the reason
BLOCKS_DIFFER = "its layers are not alike"
REFUSED = {
    "align": "its image tower is a convolutional network, which no class here embeds with",
    "altclip": "its text tower is an XLM-RoBERTa with a readout of its own, which no class here has",
    "blip": "its text blocks also attend to the image",
    "blip-2": "its text blocks also attend to the image",
    "chinese_clip": "its text tower is a BERT with a readout of its own, which no class here has",
    "clap": "it has sounds in the place of images",
    "clip_text_model": "it is one tower alone; pass the whole CLIP",
    "clip_vision_model": "it is one tower alone; pass the whole CLIP",
    "deberta-v2": "in some of its checkpoints a convolution changes the state between two layers",
    "deepseek_v3": f"{BLOCKS_DIFFER}: the first are no mixtures of experts",
    "longformer": "it pads its texts to its attention windows, so that states have more positions than tokens",
    "qwen3_next": f"{BLOCKS_DIFFER}: there are two kinds of attention",
    "siglip2": "it takes images of any shape (NaFlex), which no class here batches; SigLIP 2 of a fixed size is siglip",
    "t5": f"{BLOCKS_DIFFER}: the first holds the relative positions of all",
    "vision-text-dual-encoder": "its towers are of two kinds of models, with two kinds of blocks",
    "wavlm": f"{BLOCKS_DIFFER}: the first holds the relative positions of all",
    "xlnet": "its states have the position before the sample",
}


def load_encoder(name: str, tower: str = "text", device: str = "cpu", weights: bool = True) -> Encoder:
    """The encoder of a checkpoint in a local folder or on the hub, in evaluation mode, float32.

    With `weights=False` its weights are fresh. Raises FileNotFoundError where there is no such model and ValueError
    where no family here reads it.
    """
    kind = read_config(name).model_type
    if (kind, tower) not in FAMILIES:
        towers = [of for family, of in FAMILIES if family == kind]
        known = ", ".join(sorted({family for family, _ in FAMILIES}))
        reason = (
            f"{kind} has the tower {' or '.join(towers)} here"
            if towers
            else REFUSED.get(kind, f"it is none of {known}")
        )
        raise ValueError(
            f"{name}: the {tower} tower of model_type {kind} cannot be pruned by these scripts: {reason}; "
            "`models.LayerStack` drops layers of any Hugging Face model whose layers are alike"
        )
    module, load = FAMILIES[kind, tower]
    return getattr(import_module(module), load)(name, device, weights)


def read_tower_config(name: str, tower: str = "text") -> PreTrainedConfig:
    """The part of a checkpoint's configuration that describes a tower; exceptions as in `read_config`."""
    config = read_config(name)
    return getattr(config, f"{tower}_config", config)


def check_num_layers(num_layers: int, name: str, tower: str = "text") -> None:
    """Raise ValueError unless the model has so many layers, as far as its configuration says."""
    config = read_tower_config(name, tower)
    fixed = count_fixed(config)
    found = config.num_hidden_layers - fixed
    if num_layers != found:
        behind = " behind its first, which stays" if fixed else ""
        raise ValueError(f"--num_layers is {num_layers}, but the {tower} tower of {name} has {found} layers{behind}")


def read_config(name: str) -> PreTrainedConfig:
    """The configuration of a model in a local folder or on the hub, in Hugging Face or open_clip form.

    An open_clip model is a folder with an `open_clip_config.json`, or `hf-hub:<organisation>/<name>`.

    Raises FileNotFoundError where there is no such model and ValueError where its configuration cannot be used.
    """
    open_clip_folder = find_open_clip(name)
    if open_clip_folder is not None:
        return read_open_clip(open_clip_folder)[0]
    return checkpoint.read_config(name)
