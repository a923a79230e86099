"""An encoder of a few lines, of no family: `models.encoders.Encoder` is all that analysis, search and training need."""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from models.encoders import Batch, Encoder, pad_tokens
from models.layer_stack import LayerStack

WIDTH = 16


class BytesConfig(PreTrainedConfig):
    model_type = "bytes"
    hidden_size, num_hidden_layers = WIDTH, 3


class BytesModel(PreTrainedModel):
    config_class = BytesConfig

    def __init__(self, config: BytesConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(256, WIDTH)
        layer = {"d_model": WIDTH, "nhead": 2, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return hidden


class BytesEncoder(Encoder):
    """A caption is the mean of its bytes' last states."""

    tower, name, logit_scale, projection, max_length = "text", "bytes", 10.0, None, 100

    def __init__(self, model: BytesModel):
        self.model, self.stack = model, LayerStack(model)

    def prepare(self, samples):
        return [list(sample.encode()) for sample in samples]

    def batch(self, prepared, rows, length=None):
        ids, mask = pad_tokens([prepared[row] for row in rows], 0, length)
        return Batch(np.asarray(rows), {"input_ids": ids, "padding": ~mask}, mask)

    def own_pool(self, hidden, batch):
        return self.pool(hidden, batch, "mean")

    features = own_pool

    def parts(self):
        return {"model": self.model}

    def drop(self, dropped_layers, name=""):
        return BytesEncoder(self.stack.drop(dropped_layers))

    def save(self, folder):
        self.model.save_pretrained(folder)


def make_encoder() -> BytesEncoder:
    torch.manual_seed(0)
    return BytesEncoder(BytesModel(BytesConfig()).eval())
