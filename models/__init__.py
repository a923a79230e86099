"""The layers of a transformer (find them, run part of them, drop some), and the encoders that stand on them."""

from models.clip import Clip, load_clip
from models.encoders import Encoder
from models.families import check_num_layers, load_encoder
from models.layer_stack import LayerStack
