"""What can go wrong, and what is promised then (DESIGN.md section 6): a row a situation, tried by `test_faults.py`."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ground import (
    CODE,
    DEAD,
    WEIGHTS,
    Ground,
    Make,
    all_of,
    another_training,
    as_image,
    as_npy,
    as_png,
    brings_code,
    caches,
    closed_pipe,
    cuts,
    data,
    data_folder,
    edits,
    edits_state,
    fills,
    flags,
    full_disk,
    image_is,
    interrupts,
    largest_file,
    links,
    loop,
    matrix,
    matrix_file,
    nested,
    one_layer,
    pairs,
    pickles,
    pickles_plainly,
    puts,
    removes,
    result,
    shard,
    similarity,
    state,
    states,
    stdout_is,
    turns_into_folder,
    turns_into_pipe,
    types,
    untrained_sentence_encoder,
    weights,
)
from PIL import Image


class Situation(NamedTuple):
    """`says`: a pattern in the last line on stderr; with status 0 anywhere in what is printed or logged.

    `leaves`: a pattern of the files that may be new where the status is not 0; what was there stays as it was.
    """

    name: str
    script: str
    make: Make
    says: str
    status: int = 2
    leaves: str = "^$"


SEARCH = "search_strategy.search_prune_then_verify_mix", "--num_layers 4 --num_clip_layers 2"
TRAIN = "clip_finetune_train", "--num_layers 4 --num_clip_layers 2 --output_dir out --batch_size 20 --repair false"
SCRIPTS = {  # module and flags
    "dc": ("dc_analysis", "--batch_size 4 --iter_num 2"),
    "coarse": (SEARCH[0], f"{SEARCH[1]} --coarse_search_only true"),
    "search": (
        SEARCH[0],
        f"{SEARCH[1]} --select_measure rand --topk_num 2 --refine 0 --repair false --loss_batch_size 20",
    ),
    "train": (TRAIN[0], f"{TRAIN[1]} --max_epoch 1 --clip_layers 2-3"),
    "resume": (TRAIN[0], f"{TRAIN[1]} --max_epoch 3 --clip_layers 2-3 --keep_epochs all --resume_epoch 2 --lr 1e-3"),
    "winner": (TRAIN[0], f"{TRAIN[1]} --max_epoch 0"),
    "evaluate": ("evaluate_clip", ""),
    "export": ("export_clip", "--to text --output_dir exported"),
    "icons": ("examples.icon_search", "--clip_layers 2-3 --top 2"),
    "build": ("tools.build_clip", "--output_dir {exp}/built --num_merges 10"),
}

NAN, INF = float("nan"), float("inf")
EVIL = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", None],
    "AutoProcessor": "evil.Evil",
}
LAST = "text_model.encoder.layers.3.mlp.fc2.weight"
CONFIG = "config.json: not the configuration of a model"
NO_CODE, NO_TOKENIZER, NO_WEIGHTS = "brings its own code", "the tokenizer cannot be read", "the weights cannot be read"
NO_MATRIX, NO_RESULT, BROKEN = "not a readable .npy", "clip4to2_.*: expected a search result", "cannot be decoded"
DAMAGED = "damaged .*--resume_epoch can be: 1$"
INDEX = "model.safetensors.index.json"
GREY = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
NO_JSON = {"empty": b"", "cut": b'{"a": ', "null": None, "nested": nested(), "no UTF-8": b"\xff\xfe{", "a list": []}


def nothing(ground: Ground) -> None:
    """Nothing is done."""


def of_all(change: dict) -> Make:
    """Pairs whose rows all have these values."""
    return pairs(lambda rows: [row.update(change) for row in rows])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def pairs_of(row: str, kind: str = "csv") -> Make:
    """The same short file for every split."""
    return data_folder(**{f"{split}__{kind}": row for split in ("train", "validation", "test")})


# fmt: off
CODE_OF_OTHERS = [
    Situation("a model of unknown kind with code, and y on the terminal", "dc", all_of(brings_code("evil.py"), puts("config.json", {"model_type": "evil", "auto_map": EVIL}), types("y\n")), NO_CODE),
    Situation("a CLIP with code", "dc", all_of(brings_code("evil.py"), edits("config.json", {"auto_map": EVIL}), types("y\n")), NO_CODE),
    Situation("a tokenizer with code", "dc", all_of(brings_code("evil.py"), edits("tokenizer_config.json", {"auto_map": EVIL, "tokenizer_class": "Evil"}), types("y\n")), NO_CODE),
    Situation("an image processor with code", "search", all_of(brings_code("evil.py"), edits("processor_config.json", {"image_processor.auto_map": EVIL}), types("y\n")), NO_CODE),
    Situation("a .bin with a payload", "dc", all_of(removes(WEIGHTS), pickles("pytorch_model.bin")), "a pickle of more than tensors"),
    Situation("a .bin that is a plain pickle", "dc", all_of(removes(WEIGHTS), pickles_plainly("pytorch_model.bin")), NO_WEIGHTS),
    Situation("safetensors that are a pickle", "dc", pickles(WEIGHTS), NO_WEIGHTS),
    Situation("a matrix with a payload", "coarse", matrix_file(lambda name, where: pickles_plainly(name, where, as_npy("(5, 5)", "|O")[:128])), NO_MATRIX),
    Situation("an optimiser with a payload", "resume", states(pickles("0002/optimizer.bin", "states")), f"optimizer.bin: {DAMAGED}"),
    Situation("random states with a payload", "resume", states(pickles("0002/random_states_0.pkl", "states")), f"random_states_0.pkl: {DAMAGED}"),
    Situation("a scheduler with a payload", "resume", states(pickles_plainly("0002/scheduler.bin", "states")), f"scheduler.bin: {DAMAGED}"),
    Situation("a data set with a script", "dc", data_folder(data__py=CODE.format(canary="canary"), train__csv="caption\na\n"), "data: cannot be read .*script"),
    Situation("a pickle as a data set", "dc", data("pairs.pkl", b"cbuiltins\nopen\n(Vcanary\nVw\ntR."), "expected a folder, or files of one kind"),
    Situation("a module of sentence-transformers with code", "dc", all_of(untrained_sentence_encoder, brings_code("evil.py"), edits("modules.json", {"1.type": "evil.Evil"})), "modules.json: expected Transformer, Pooling"),
]

MODELS_OF_OTHERS = [
    *(Situation(f"config.json: {what}", "dc", puts("config.json", content), CONFIG) for what, content in {**NO_JSON, "no type": {}, "7": 7, "a huge number": "1" * 5000}.items()),
    Situation("config.json of an unknown kind", "dc", puts("config.json", {"model_type": "gone"}), "model_type 'gone': this version of transformers has none"),
    Situation("config.json of another family", "evaluate", puts("config.json", {"model_type": "t5"}), "model_type t5 cannot be pruned"),
    Situation("config.json is a folder", "dc", turns_into_folder("config.json"), "expected a config.json"),
    Situation("config.json is missing", "dc", removes("config.json"), "expected a config.json"),
    Situation("the model is a file", "dc", flags("--model {model}/config.json"), "expected the folder of a model, found a file"),
    Situation("the model is missing", "dc", flags("--model {root}/nothing"), "model not found"),
    Situation("the model has no name", "dc", lambda ground: ground.flags.extend(["--model", ""]), "the name is empty"),
    *(
        Situation(f"config.json: {key} {value!r}", "dc", edits("config.json", {f"text_config.{key}": value}), says)
        for key, value, says in (
            ("hidden_size", 15, "config.json"), ("hidden_size", "16", CONFIG), ("hidden_size", 0, "config.json"), ("hidden_size", None, CONFIG), ("hidden_size", [16], CONFIG),
            ("num_hidden_layers", "4", CONFIG), ("num_hidden_layers", 0, "weights for 4 layers"), ("num_hidden_layers", 3, "weights for 4 layers in text_model.encoder.layers"),
            ("num_hidden_layers", 5, "weights that its config.json asks for are missing"), ("num_hidden_layers", 4.5, CONFIG), ("num_attention_heads", 0, CONFIG), ("num_attention_heads", 3, "config.json"),
            ("hidden_act", "nothing", "no CLIPModel can be made"), ("vocab_size", -1, "config.json|tokenizer has tokens"), ("vocab_size", 10, "the tokenizer has tokens up to"),
            ("max_position_embeddings", 0, "config.json|weights"), ("max_position_embeddings", 10**12, "the weights"), ("layer_norm_eps", "x", CONFIG), ("eos_token_id", 7, "eos_token_id 7"), ("eos_token_id", None, "eos_token_id None"),
        )
    ),
    Situation("config.json: a list for the text tower", "dc", edits("config.json", {"text_config": []}), "config.json|weights"),
    *(Situation(f"{name}: {what}", "dc", puts(name, content), f"{NO_TOKENIZER}|no tokenizer with a vocabulary") for name in ("tokenizer.json", "tokenizer_config.json") for what, content in {"empty": b"", "null": None, "nested": nested()}.items()),
    Situation("no tokenizer", "dc", removes("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    *(
        Situation(f"the image processor: {what}", "search", puts("processor_config.json", content), "image processor cannot be read")
        for what, content in {**NO_JSON, "a size of text": {"image_processor": {"size": "big"}}}.items()
    ),
    *(
        Situation(f"the weights: {what}", "dc", puts(WEIGHTS, content), NO_WEIGHTS)
        for what, content in {"empty": b"", "text": "weights", "a header of an exabyte": b"\xff" * 7 + b"\x0f" + bytes(100), "a list": b"\x02" + bytes(7) + b"[]"}.items()
    ),
    Situation("the weights: cut", "dc", cuts(WEIGHTS, 5000), NO_WEIGHTS),
    Situation("the weights are missing", "dc", removes(WEIGHTS), NO_WEIGHTS),
    Situation("the weights are a folder", "dc", turns_into_folder(WEIGHTS), NO_WEIGHTS),
    Situation("an index of weights that are missing", "dc", all_of(removes(WEIGHTS), puts(INDEX, {"metadata": {}, "weight_map": {"a": "gone.safetensors"}})), NO_WEIGHTS),
    Situation("an index of weights: cut", "dc", all_of(removes(WEIGHTS), puts(INDEX, b"{")), NO_WEIGHTS),
    *(
        Situation(f"a sentence encoder, {name}: {what}", "dc", all_of(untrained_sentence_encoder, puts(name, content)), f"{name}|pooling")
        for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
        for what, content in {"empty": b"", "7": 7, "a list": ["a"]}.items()
    ),
]

RESULTS_OF_OTHERS = [
    Situation("a matrix: missing", "coarse", nothing, "matrix not found: .*to make it, run: python .*dc_analysis.py"),
    *(
        Situation(f"a matrix: {what}", "coarse", matrix(content), says)
        for what, content, says in (
            ("empty", b"", NO_MATRIX), ("text", b"nothing", NO_MATRIX), ("cut", as_npy("(5, 5)"), NO_MATRIX), ("728 TiB by its header", as_npy("(100000000000000,)"), NO_MATRIX),
            ("a header of brackets", as_npy("(" * 60), NO_MATRIX), ("texts", np.full((5, 5), "a"), "expected numbers"), ("complex", similarity() + 0j, "expected numbers"),
            ("booleans", similarity() > 0, "expected numbers"), ("objects", similarity().astype(object), NO_MATRIX), ("records", np.zeros((5, 5), [("a", "f8")]), "expected numbers"),
            ("of 7 layers", similarity(8), "expected .5, 5. for 4 layers"), ("a vector", similarity()[0], "expected .5, 5."), ("not symmetric", np.arange(25.0).reshape(5, 5), "not symmetric"),
            ("NaN", similarity() * NAN, "NaN or infinite"), ("infinite", similarity() * INF, "NaN or infinite"), ("1e308", np.full((5, 5), 1e308), "beyond 1e.100"),
        )
    ),
    Situation("a matrix is a folder", "coarse", matrix_file(turns_into_folder), NO_MATRIX),
    Situation("a matrix is a named pipe", "coarse", matrix_file(turns_into_pipe), NO_MATRIX),
    Situation("a matrix of other data", "coarse", matrix(None, {"dataset": "others"}), "made of the data set others"),
    *(Situation(f"a matrix with a record: {what}", "coarse", matrix(None, content), "winner", 0) for what, content in NO_JSON.items()),
    *(Situation(f"a matrix of the weights {sha!r}", "search", all_of(matrix(None, {"model": {"weights_sha256": sha}}), flags("--select_measure dc")), "winner", 0) for sha in (None, 5)),
    Situation("a search result: missing", "winner", nothing, "no search result: looked for .*run: python"),
    *(
        Situation(f"a search result: {what}", "winner", result(content), NO_RESULT)
        for what, content in {
            **{what: content for what, content in NO_JSON.items() if content is not None}, "of 6 layers": {"num_layers": 6}, "to 1 layer": {"num_clip_layers": 3}, "of '4' layers": {"num_layers": "4"},
            **{f"layers {layers}": {"winner.dropped_layers": layers} for layers in (["2", "3"], [2.0, 3.5], [True, 3], [[2, 3]], {"2": 3}, [NAN, 3], [2, 9], [0, 2], [2, 2], [1, 2, 3], None, [])},
            "no winner": {"winner": None}, "a winner of text": {"winner": "2-3"}, "an objective of text": {"winner.objective": "good"}, "a date of numbers": {"record.date": 5}, "flags of text": {"record.flags": "none"},
            "another model": {"record.flags.model": "exp/another"},
        }.items()
    ),
    Situation("a search result named is missing", "winner", flags("--search_result {root}/nothing.json"), "search result not found: .*nothing.json; name another"),
    Situation("a search result is a folder", "winner", lambda ground: turns_into_folder("clip4to2_a_b.json", "results")(ground), NO_RESULT),
]

DATA_OF_OTHERS = [
    *(
        Situation(f"{name}: {what}", "dc", data(name, content), f"{name}: (cannot be read|no rows|no caption)")
        for name in ("pairs.parquet", "pairs.csv", "pairs.json", "pairs.jsonl", "pairs.arrow")
        for what, content in {"empty": b"", "cut": b'PAR1{"caption', "no UTF-8": b"\xff\xfe\x00"}.items()
    ),
    Situation("pairs.txt: no UTF-8", "dc", data("pairs.txt", b"\xff\xfe\x00"), "pairs.txt: cannot be read"),
    Situation("pairs.tar: empty", "dc", data("pairs.tar", b""), "pairs.tar"),
    Situation("pairs.tar: cut", "dc", data("pairs.tar", shard(a__txt=b"a red square" * 100)[:700]), "pairs.tar"),
    Situation("pairs.tar: no samples", "dc", data("pairs.tar", shard(a__mp3=b"a")), "pairs.tar"),
    Situation("pairs.json: nested", "dc", data("pairs.json", '{"images": ' + nested()), "pairs.json: cannot be read"),
    Situation("pairs.json: COCO's without captions", "dc", data("pairs.json", {"images": [{"id": 1}], "annotations": [{"id": 1}]}), "pairs.json: not the json of COCO"),
    Situation("pairs.json: Karpathy's with numbers", "dc", data("pairs.json", {"images": [{"filename": 5, "sentences": [], "split": "train"}]}), "pairs.json: not the json of COCO"),
    Situation("a folder with a README that is no YAML", "dc", data_folder(README__md="---\na: [\n---\n", train__csv="caption\na\n"), "data: cannot be read"),
    Situation("an empty folder", "dc", all_of(lambda ground: (ground.root / "data").mkdir(), flags("--dataset {root}/data")), "found nothing"),
    *(
        Situation(f"a folder saved to disk: {what}", "dc", data_folder(**files), "data: cannot be read")
        for what, files in {
            "empty": {"dataset_info__json": b""}, "a list": {"dataset_info__json": [], "state__json": []},
            "no splits": {"dataset_dict__json": {"splits": ["train"]}}, "text": {"dataset_dict__json": "text"},
        }.items()
    ),
    Situation("a data set without a name", "dc", lambda ground: ground.flags.extend(["--dataset", " "]), "--dataset is empty"),
    Situation("a data set that is missing", "dc", flags("--dataset nothing.csv"), "looked for the file nothing.csv"),
    Situation("no column of captions", "dc", data("pairs.csv", "a,b\n1,2\n"), "no caption column"),
    Situation("captions that are numbers", "dc", data("pairs.jsonl", '{"caption": 5}\n'), "expected captions to be text"),
    Situation("captions that are empty", "dc", data("pairs.jsonl", '{"caption": ""}\n' * 9), "9 of 9 captions are empty"),
    Situation("lists of captions that are empty", "dc", pairs(lambda rows: [row.update(caption=["a", "b"] if i % 4 else []) for i, row in enumerate(rows)]), "30 of 210 captions are empty"),
    Situation("lists in text that are empty", "dc", pairs(lambda rows: [row.update(caption='["a", "b"]' if i % 4 else "[]") for i, row in enumerate(rows)]), "30 of 210 captions are empty"),
    Situation("one empty caption of many", "dc", pairs(lambda rows: rows[5].update(caption="  ")), "skipped 1 of 120 captions", 0),
    Situation("too few pairs", "dc", pairs(number=5), "is 8 captions; the train split .* has 5"),
    Situation("no images", "search", pairs_of("caption\na\n"), "no image column"),
    Situation("images that are not there", "search", pairs_of("image,caption\na.png,a\n"), "a.png is not there"),
    Situation("images that are numbers", "search", pairs_of('{"image": 5, "caption": "a"}\n', "jsonl"), "expected images or paths"),
]

CACHES = [
    Situation(f"a cache: {what}", "search", caches(content), "not what was written there; it is made again", 0)
    for what, content in {
        "empty": lambda kept: b"", "cut": half, "one bit": lambda kept: kept[:200] + bytes([kept[200] ^ 1]) + kept[201:], "NaN": lambda kept: as_npy("(60, 16)", "<f4")[:128] + b"\xff" * 3840,
        "another shape": lambda kept: as_npy("(8,)"), "a payload": lambda kept: as_npy("(5, 5)", "|O")[:128] + b"cbuiltins\nopen\n(Vcanary\nVw\ntR.", "text": lambda kept: b"nothing",
    }.items()
] + [Situation("a cache: a folder", "search", caches(...), "cannot be written")]

BROKEN_MODELS = [
    *(
        Situation(f"{value} in {tensor}", script, fills(tensor, value), f"NaN or infinity in 1 weights .{tensor}")
        for value, tensor, script in (
            (NAN, LAST, "dc"), (INF, "text_projection.weight", "dc"), (NAN, "visual_projection.weight", "search"),
            (NAN, "logit_scale", "evaluate"), (-INF, LAST, "train"), (NAN, LAST, "icons"), (NAN, LAST, "export"),
        )
    ),
    Situation("a tensor is missing", "dc", weights(lambda state: state.pop(LAST)), f"missing .{LAST}"),
    Situation("a tensor of another shape", "dc", weights(lambda state: state.update({LAST: state[LAST][:, :3].contiguous()})), f"{LAST} is .16, 3., expected .16, 64."),
    Situation("a tensor too many", "dc", weights(lambda state: state.update(more=state[LAST].clone())), "1 weights have no place in a CLIPModel.*more", 0),
    Situation("weights of zeros", "dc", weights(lambda state: [tensor.zero_() for tensor in state.values()]), "every layer is constant"),
    Situation("captions that are all the same", "dc", of_all({"caption": "red"}), "every layer is constant"),
]

TRAININGS = [
    Situation("a learning rate of 1e30", "train", flags("--lr 1e30 --warmup_steps 1"), "is nan; pass a smaller --lr", leaves="exp/out"),
    Situation("a learning rate of 1e30 after good epochs", "resume", states(edits("0002/state.json", {"identity.lr": 1e30}, "states")), "started with"),
    *(
        Situation(f"a state: {what}", "resume", make, DAMAGED)
        for what, make in {
            "weights cut": state("weights.safetensors", half), "weights missing": state("weights.safetensors", lambda _: None),
            "an optimiser cut": state("optimizer.bin", half), "an optimiser missing": state("optimizer.bin", lambda _: None),
            "random states cut": state("random_states_0.pkl", half), "random states missing": state("random_states_0.pkl", lambda _: None),
            "a scheduler empty": state("scheduler.bin", lambda _: b""), "figures empty": state("state.json", lambda _: b""), "figures nested": state("state.json", lambda _: nested().encode()),
            "figures a list": state("state.json", lambda _: b"[]"), "figures of another epoch": edits_state(**{"history.1.epoch": 7}), "figures without recall": edits_state(**{"history.1.mean_recall": ...}),
            "figures of NaN": edits_state(**{"history.1.mean_recall": NAN}), "figures of text": edits_state(**{"history.1.mean_recall": "good"}), "figures of null": edits_state(**{"history.1.train_loss": None}),
            "a list of files": edits_state(files=[]), "no files": edits_state(files={}), "files elsewhere": edits_state(files={"../../../model/config.json": "0"}), "an identity of text": edits_state(identity="none"),
            "one file more": states(puts("0002/more.bin", b"", "states")),
        }.items()
    ),
    Situation("a state: the best weights empty", "resume", all_of(edits_state(**{"history.0.mean_recall": 1.0}), state("weights.safetensors", lambda _: b"", 1)), "0001/weights.safetensors: damaged"),
    Situation("a run with other settings", "resume", states(flags("--lr 2")), "started with lr"),
    Situation("no state of that epoch", "resume", states(flags("--resume_epoch 7")), "can be: 1, 2"),
    Situation("a folder of another run", "train", states(nothing), "pass --resume_epoch 2"),
    Situation("a folder of something else", "train", puts("out/thesis.tex", "text", "exp"), "is not empty"),
    Situation("another training in the folder", "train", another_training, "another training is writing there"),
    Situation("a lock of a dead training", "train", puts("out.states/lock", "", "exp"), "figures on test", 0),
    Situation("the folder of a run is a file", "train", puts("out", "text", "exp"), "out is a file"),
    Situation("half a state of a killed run", "train", puts("out.states/.writing/weights.safetensors", b"", "exp"), "figures on test", 0),
    Situation("half a checkpoint of a killed run", "resume", states(puts("out/.checkpoint/config.json", b"", "exp")), "figures on test", 0),
]

PICTURES = [
    *(Situation(f"one image of many: {what}", "search", image_is(content), "skipped 1 of 120 images", 0) for what, content in {"empty": b"", "cut": as_png(GREY)[:60], "text": b"red", "SVG": b"<svg></svg>", "1 x 4,000 pixels": as_png(Image.new("L", (1, 4000)))}.items()),
    Situation("a third of the images: no files", "search", image_is(b"", range(40)), f"40 of 120 images {BROKEN}"),
    Situation("a third of the images: one broken file", "search", image_is(b"red", range(40)), f"1 of 81 images {BROKEN}"),
    Situation("16 bits of grey", "search", image_is(as_png(GREY)), "winner", 0),
    Situation("an image of one pixel", "search", image_is(as_png(Image.new("1", (1, 1)))), "winner", 0),
    Situation("broken images in the icon search", "icons", image_is(b"", range(40)), BROKEN),
    Situation("one broken image in the icon search", "icons", image_is(b""), "skipped 1 of 120", 0),
    Situation("mathematics in a caption", "icons", of_all({"caption": "$5 or $\\frac{"}), "written to", 0),
    Situation("mathematics in a query", "icons", lambda ground: setattr(ground, "query", "$\\frac{ $"), "written to", 0),
    Situation("mathematics in the name of the data", "evaluate", pairs(name="$\\frac{ $x$"), "written to", 0),
]

NAMES = [
    *(Situation(f"a data set called {name}"[:40], "dc", pairs(name=name, number=12), "wrote", 0) for name in ("甲", "a b", "x" * 200, "/".join(["y" * 90] * 4), "-dash", "'q' \"d\" $H", "%41 #1")),
    *(Situation(f"a data set called {name!r}", "dc", pairs(name=name, number=12), "rename it|cannot be read") for name in ("a[b]c", "a::b", "new\nline")),
]

LEFT_OVER = [
    *(Situation(f"a matrix of a killed run, {ending}", "coarse", all_of(matrix(), lambda ground, ending=ending: puts(f".{ground.matrix.stem.replace('dc_', 'clip4to2_beam_dc_')}_coarse.{DEAD}{ending}", b"", "results")(ground)), "winner", 0) for ending in (".json", ".png")),
    *(
        Situation(f"a full disk: {script}", script, largest_file(size), "cannot be written", leaves=leaves)
        for script, size, leaves in (("dc", 1000, "npy$"), ("search", 2000, "log$"), ("export", 3000, "^$"), ("build", 3000, "^$"), ("train", 9000, "exp/out"), ("evaluate", 2000, "^$"), ("icons", 9000, "^$"))
    ),
    Situation("a full disk: another epoch", "resume", states(largest_file(9000)), "cannot be written", leaves="exp/out"),
]

PEOPLE = [
    Situation("Ctrl-C while a matrix is written", "dc", interrupts("common.files.os.replace"), "^dc_analysis.py: stopped$", 130),
    Situation("Ctrl-C in a search", "search", interrupts("commands.search.verify"), "stopped$", 130, "log$"),
    Situation("Ctrl-C in a training", "train", interrupts("training.loop.Trainer._step"), "stopped$", 130, "exp/out"),
    Situation("a pipe that nobody reads", "coarse", all_of(matrix(), stdout_is(closed_pipe)), "", 0),
    Situation("a pipe that nobody reads, and wrong input", "coarse", stdout_is(closed_pipe), "matrix not found"),
    Situation("stdout on a full disk", "coarse", all_of(matrix(), stdout_is(full_disk)), "No space left", leaves="clip4to2"),
    Situation("a terminal of ASCII", "icons", all_of(of_all({"caption": "naïve 甲"}), stdout_is(lambda: io.TextIOWrapper(io.BytesIO(), "ascii"))), "", 0),
    Situation("a query that is no UTF-8", "icons", lambda ground: setattr(ground, "query", "a\udcffb"), "UTF-8"),
]

FLAGS = [
    *(
        Situation(f"{script} {text}"[:60], script, flags(text), says)
        for script, text, says in (
            *(("dc", f"--threads {number}", "--threads: expected a number") for number in ("1e31", "3000000000", "0", "9" * 5000)), ("dc", "--batch_size nan", "--batch_size"), ("dc", "--batch_size 1", "needs at least"),
            ("dc", "--iter_num " + "9" * 30, "--iter_num"), ("dc", "--seed -1", "--seed"), ("dc", "--seed " + "9" * 40, "--seed: expected a number in 0"), ("dc", "--device tpu", "--device"),
            ("dc", "--device cuda", "no CUDA device"), ("dc", "--mode none", "--mode"), ("dc", "--baseline yes", "true or false"), ("dc", "--exp_dir /dev/null/x", "/dev/null"), ("dc", "--exp_dir {model}/config.json", "config.json"),
            ("coarse", "--num_layers 5", "has 4 layers"), ("coarse", "--num_clip_layers 4", "num_clip_layers is 4"), ("coarse", "--num_clip_layers 0", "num_clip_layers is 0"), ("coarse", "--beam_size 0", "--beam_size"),
            ("search", "--loss_batch_size 3000000000000", "--loss_batch_size"), ("search", "--topk_num -1", "--topk_num"), *(("train", f"--{flag} inf", f"--{flag}: expected a finite number") for flag in ("lr", "temperature", "distill_weight", "weight_decay")),
            ("train", "--lr nan", "--lr"), ("train", "--clip_layers 2,2", "repeats layer 2"), ("train", "--clip_layers 9-10", "layer 9"), ("train", "--clip_layers x", "cannot read"), ("train", "--batch_size 0", "--batch_size"), ("train", "--num_workers 100000", "--num_workers: expected a number in 0..256"),
            ("train", "--max_epoch -1", "--max_epoch"), ("train", "--output_dir {model}/config.json", "config.json is a file"), ("build", "--heads 3", "--heads 3 does not divide --width 128"), ("build", "--width 15", "does not divide --width 15"),
            ("build", "--patch_size 64", "--patch_size 64"), ("build", "--max_length 1", "--max_length 1"), ("build", "--image_size 30", "--image_size 30"), ("evaluate", "--labels {model}/model.safetensors", "model.safetensors: expected one"), ("evaluate", "--labels {root}/nothing", "nothing"), ("export", "--output_dir {model}", "something else than an export"),
        )
    ),
    Situation("--exp_dir in a loop of links", "dc", all_of(loop, flags("--exp_dir {root}/loop")), "loop"),
]

STRANGE_MODELS = [
    Situation("one layer alone", "dc", one_layer, "wrote", 0),
    Situation("one layer, searched", "coarse", all_of(one_layer, flags("--num_layers 1 --num_clip_layers 1")), "must be in 1..0"),
    Situation("a tokenizer without padding", "dc", edits("tokenizer_config.json", {"pad_token": None}), "wrote", 0),
    *(Situation(f"a tokenizer that cuts to {length!r}", "dc", edits("tokenizer_config.json", {"model_max_length": length}), "the tokenizer (cuts texts|cannot be read)") for length in (0, 1, -1, "x")),
    Situation("a tokenizer that never cuts", "dc", edits("tokenizer_config.json", {"model_max_length": 10**30}), "wrote", 0),
    Situation("weights of a type that there is not", "dc", edits("config.json", {"dtype": "float7"}), CONFIG),
    Situation("an attention from the hub", "dc", edits("config.json", {"_attn_implementation": "evil/kernel"}), "no CLIPModel can be made from it"),
    *(Situation(f"layer_norm_eps of {eps}", "dc", edits("config.json", {"text_config.layer_norm_eps": eps}), "its embeddings are NaN or infinite") for eps in (NAN, -1.0)),
    Situation("layer_norm_eps of NaN for images", "search", edits("config.json", {"vision_config.layer_norm_eps": NAN}), "its embeddings are NaN or infinite"),
    *(Situation(f"weights of 1e38: {script}", script, fills(LAST, 1e38), "its embeddings are NaN or infinite") for script in ("dc", "search", "evaluate", "train")),
    Situation("a logit scale of e to the 1000", "evaluate", fills("logit_scale", 1000.0), "NaN or infinity in 1 weights .logit_scale"),
    Situation("weights of half precision", "dc", weights(lambda state: [state.update({name: tensor.half()}) for name, tensor in [*state.items()]]), "wrote", 0),
    Situation("the weights are a link to themselves", "dc", links(WEIGHTS, WEIGHTS), NO_WEIGHTS),
    Situation("config.json is /dev/zero", "dc", links("config.json", "/dev/zero"), "expected a config.json"),
    *(Situation(f"{name} is a named pipe", "search", turns_into_pipe(name), "expected a file, found a named pipe") for name in ("tokenizer.json", "processor_config.json", WEIGHTS, "config.json")),
    *(
        Situation(f"an image processor with {key} {value}", "search", edits("processor_config.json", {f"image_processor.{key}": value}), "the image processor cannot be read")
        for key, value in (("size", {"shortest_edge": 0}), ("crop_size", {"height": 99, "width": 99}), ("image_mean", [0.5]), ("image_std", [0, 0, 0]), ("rescale_factor", NAN), ("do_center_crop", False))
    ),
    Situation("images of another size than the weights'", "search", edits("config.json", {"vision_config.image_size": 31}), "the weights do not fit|image processor"),
]

STRANGE_DATA = [
    Situation("a billion shards", "dc", lambda ground: ground.flags.extend(["--dataset", "x{0..999999999}.tar"]), "more than 1000000 files"),
    Situation("braces in braces in braces", "dc", lambda ground: ground.flags.extend(["--dataset", "x" + "{a,b}" * 40 + ".tar"]), "more than 1000000 files"),
    Situation("shards that count down", "dc", lambda ground: ground.flags.extend(["--dataset", "x{5..1}.tar"]), "looked for the file"),
    Situation("shards that are missing", "dc", flags("--dataset {root}/x-{{0..3}}.tar"), "looked for the file .*x-0.tar of"),
    *(
        Situation(f"a shard whose class is {what}", "dc", data("pairs.tar", shard(**{f"{i}__{end}": part for i in range(12) for end, part in (("txt", b"red square %d" % i), ("cls", label))})), "wrote", 0)
        for what, label in {"a superscript": "²".encode(), "5,000 digits": b"9" * 5000, "beyond 64 bits": b"9" * 19}.items()
    ),
    Situation("captions of NUL", "dc", data("pairs.tar", shard(**{f"{i}__txt": b"a\0b%d" % i for i in range(12)})), "wrote", 0),
    Situation("a table with a mark of byte order", "dc", data("pairs.csv", b"\xef\xbb\xbfcaption,b\n" + b"".join(b"red %d,c\n" % i for i in range(12))), "wrote", 0),
    Situation("a table with more fields than names", "dc", data("pairs.csv", "caption,b\na,b\n" + "a,c,d,e\n" * 10), "pairs.csv: cannot be read"),
    Situation("a table without rows", "dc", data("pairs.csv", "caption,b\n"), "pairs.csv: no rows"),
    Situation("half a surrogate", "dc", data("pairs.jsonl", '{"caption": "\\ud800"}\n' * 12), "pairs.jsonl: cannot be read"),
    Situation("numbers in lists of captions", "dc", data("pairs.jsonl", '{"caption": [5]}\n' * 12), "pairs.jsonl: its captions cannot be read"),
    *(Situation(f"the field of {what}", "dc", all_of(data("pairs.jsonl", f'{{"caption": "{text}"}}\n' * 12), flags("--caption_column caption.raw")), "pairs.jsonl: its captions cannot be read") for what, text in {"a text": "red", "a number": "5"}.items()),
    *(Situation(f"captions like {text[:9]!r}", "dc", data("pairs.txt", "".join(f"{text.replace('0', str(i))}\n" for i in range(1, 13))), "wrote", 0) for text in ('{"a0"}', '["a0", ' + "[" * 5000 + "]", "['\\d0']", "\u200b0", "0😀")),
    Situation("a file of a folder without bytes", "dc", all_of(pairs(number=12), lambda ground: (Path(ground.data) / "validation.parquet").write_bytes(b"")), "pairs: cannot be read"),
    Situation("a folder of a named pipe", "dc", all_of(lambda ground: (ground.root / "data").mkdir(), turns_into_pipe("data/train.csv", "root"), flags("--dataset {root}/data")), "found train.csv"),
    Situation("a data set in a loop of links", "dc", all_of(loop, flags("--dataset {root}/loop")), "data set not found"),
    Situation("a data set of 5,000 letters", "dc", lambda ground: ground.flags.extend(["--dataset", "a" * 5000]), "File name too long"),
    *(Situation(f"a data set called {name}", "dc", flags(f"--dataset {name}"), "data set not found") for name in ("s3://a/b", "http://localhost:1/a", "~/x", "a/../b")),
    Situation("one pair alone, to train on", "train", flags("--max_pairs 1"), "figures on test", 0),
    *(Situation(f"a picture: {what}", "search", image_is(as_image(mode, form)), "winner", 0) for what, mode, form in (("CMYK", "CMYK", "JPEG"), ("a palette", "P", "GIF"), ("transparent", "LA", "PNG"), ("floats", "F", "TIFF"), ("16 bits, big endian", "I;16B", "TIFF"))),
    Situation("a picture of 100 million pixels", "search", image_is(as_png(Image.new("1", (10_000, 10_000)))), "skipped 1 of 120 images", 0),
]

STRANGE_RESULTS = [
    *(
        Situation(f"a matrix: {what}", "coarse", matrix(content), "winner", 0)
        for what, content in {
            "of float16": similarity().astype("f2"), "in the order of Fortran": np.asfortranarray(similarity()), "big endian": similarity().astype(">f8"), "of whole numbers": np.ones((5, 5), int),
            "of bytes": np.eye(5, dtype="u1"), "of zeros": np.zeros((5, 5)),
        }.items()
    ),
    *(Situation(f"a matrix: {what}", "coarse", matrix(content), says) for what, content, says in (("of a number", np.array(5.0), "found shape"), ("of dates", np.zeros((5, 5), "M8[s]"), "expected numbers"), ("of -5 rows", as_npy("(-5, 5)"), NO_MATRIX), ("of '5' rows", as_npy("('5', 5)"), NO_MATRIX), ("of version 9", b"\x93NUMPY\x09\x00" + bytes(99), NO_MATRIX), ("a header of 2 GB", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99), NO_MATRIX))),
    *(Situation(f"a matrix is a link to {target}", "coarse", lambda ground, target=target: ground.matrix.symlink_to(target), says) for target, says in (("nothing", "matrix not found"), ("/dev/zero", NO_MATRIX))),
    *(
        Situation(f"a search result: {what}", "winner", result(content), NO_RESULT)
        for what, content in {"a layer of 31 digits": {"winner.dropped_layers": [10**30, 2]}, "1e400 layers": '{"num_layers": 1e400, "winner": {"dropped_layers": [2, 3]}}', "a mark of byte order": b"\xef\xbb\xbf{}", "two winners": '{"winner": {"dropped_layers": [2, 3]}, "winner": 5}', "an objective of true": {"winner.objective": True}}.items()
    ),
    Situation("a search result is a link to nothing", "winner", lambda ground: (ground.results / "clip4to2_a_b.json").symlink_to("nothing"), "search result not found: .*clip4to2_a_b.json"),
    Situation("a search result is a named pipe", "winner", lambda ground: turns_into_pipe("clip4to2_a_b.json", "results")(ground), NO_RESULT),
    Situation("a search result is /dev/zero", "winner", flags("--search_result /dev/zero"), "/dev/zero: expected a search result"),
    *(Situation(f"--output_dir {name!r}", "train", lambda ground, name=name: ground.flags.extend(["--output_dir", name]), "expected the name of a folder below") for name in ("", ".", "..", "../x")),
    Situation("--output_dir of 300 letters", "train", lambda ground: ground.flags.extend(["--output_dir", "a" * 300]), "File name too long"),
]
# fmt: on

SITUATIONS = [
    *CODE_OF_OTHERS,
    *MODELS_OF_OTHERS,
    *RESULTS_OF_OTHERS,
    *DATA_OF_OTHERS,
    *CACHES,
    *BROKEN_MODELS,
    *TRAININGS,
    *PICTURES,
    *NAMES,
    *LEFT_OVER,
    *PEOPLE,
    *FLAGS,
    *STRANGE_MODELS,
    *STRANGE_DATA,
    *STRANGE_RESULTS,
]
