"""Tiny models of every family as folders with tokenizer and image processor; weights let every layer matter."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CamembertConfig,
    CamembertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MetaClip2Config,
    MetaClip2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

PAD, START, END, VOCAB = 1, 2, 3, 300
TOWER_LENGTH = 8  # positions of the texts of a model with two towers
TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
LENGTH = 12
AFTER_PADDING = {"max_position_embeddings": LENGTH + PAD + 1}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**WIDTH, **TOKENS, max_position_embeddings=LENGTH)),
    "camembert": lambda: CamembertModel(CamembertConfig(**WIDTH, **TOKENS, **AFTER_PADDING)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            dim=16,
            hidden_dim=24,
            n_layers=4,
            n_heads=2,
            vocab_size=VOCAB,
            pad_token_id=PAD,
            max_position_embeddings=LENGTH,
        )
    ),
    "electra": lambda: ElectraModel(ElectraConfig(**WIDTH, **TOKENS, embedding_size=8, max_position_embeddings=LENGTH)),
    "modernbert": lambda: ModernBertModel(  # four layers behind the first block
        ModernBertConfig(
            **WIDTH | {"num_hidden_layers": 5},
            **TOKENS,
            max_position_embeddings=LENGTH,
            local_attention=4,
            global_attn_every_n_layers=2,
        )
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**WIDTH, **TOKENS, **AFTER_PADDING)),
    "roberta": lambda: RobertaModel(RobertaConfig(**WIDTH, **TOKENS, **AFTER_PADDING)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**WIDTH, **TOKENS, **AFTER_PADDING)),
}
CHAIN = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
IMAGES = {"image_size": 32, "patch_size": 16}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_modules(folder: Path, chain=CHAIN) -> None:
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(chain)
    ]
    write_json(folder / "modules.json", entries)


def write_sentence_encoder(folder: Path, words: set[str], kind: str = "mpnet") -> Path:
    """A sentence encoder with weights large enough for every layer to matter."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {
        word: number
        for number, word in enumerate([*special, *sorted(words), *(f"unused{i}" for i in range(300))][:VOCAB])
    }
    BertTokenizer(vocab=vocab, model_max_length=100).save_pretrained(folder)
    write_modules(folder)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
    return folder


def write_tokenizer(folder: Path, words: set[str], end: int, pad: int) -> None:
    """Words, and an end token after them."""
    vocab = {f"[{number}]": number for number in range(VOCAB)}
    names = {"[UNK]": 0, "</s>": end, "<pad>": pad} if pad != end else {"[UNK]": 0, "</s>": end}
    names |= {word: number for number, word in enumerate(sorted(words), start=10)}
    vocab = names | {name: number for name, number in vocab.items() if number not in names.values()}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    padding = "</s>" if pad == end else "<pad>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", pad_token=padding)
    fast.save_pretrained(folder)


def scale_weights(model) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def write_siglip(folder: Path, words: set[str], pad: int = 1) -> Path:
    text = {
        **WIDTH,
        "vocab_size": VOCAB,
        "max_position_embeddings": TOWER_LENGTH,
        "pad_token_id": pad,
        "eos_token_id": 1,
    }
    config = SiglipConfig(text_config={**text, "bos_token_id": None}, vision_config=WIDTH | IMAGES)
    model = SiglipModel(config)
    scale_weights(model)
    model.save_pretrained(folder)
    write_tokenizer(folder, words, end=1, pad=pad)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_clip(folder: Path, words: set[str], meta: bool) -> Path:
    """A CLIP, or a MetaCLIP 2, whose end token is 2 and not the largest of a caption."""
    text = {**WIDTH, "vocab_size": VOCAB, "max_position_embeddings": TOWER_LENGTH, "eos_token_id": 2, "bos_token_id": 3}
    sizes = {"text_config": text | {"pad_token_id": 1}, "vision_config": WIDTH | IMAGES, "projection_dim": 12}
    model = MetaClip2Model(MetaClip2Config(**sizes)) if meta else CLIPModel(CLIPConfig(**sizes))
    scale_weights(model)
    model.save_pretrained(folder)
    write_tokenizer(folder, words, end=2, pad=1)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
