"""One test for each form of `data/README.md`, on ten images: which captions, which image each has, which split."""

import csv
import io
import json
import tarfile
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from data import load_labels, load_pairs
from data.annotations import HEAD_CHARACTERS

COLOURS = [(25 * i, 255 - 25 * i, 0) for i in range(10)]
CAPTIONS = [[f"caption {n} of {i}" for n in range(5)] for i in range(10)]
FLAT = [caption for captions in CAPTIONS for caption in captions]


def encode(colour, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with 0.png to 9.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        (folder / f"{i}.png").write_bytes(encode(colour))
    return folder


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, ending="png", text=lambda i: CAPTIONS[i][0]):
    """Members of a shard: an image, its text and its json."""
    return [
        member
        for i in numbers
        for member in (
            (f"{i:04}.{ending}", encode(COLOURS[i], {"jpg": "JPEG"}.get(ending, ending.upper()))),
            (f"{i:04}.txt", text(i).encode()),
            (f"{i:04}.json", json.dumps({"caption": "not this", "title": f"title {i}"}).encode()),
        )
    ]


def check(pairs, numbers=range(10), captions=CAPTIONS, exact=True):
    """The pairs are the captions of these images, in order, each with its image."""
    assert pairs.captions == [caption for i in numbers for caption in captions[i]]
    expected = [i for i in numbers for _ in captions[i]]
    assert len(pairs.images) == len(set(expected))
    for image, i in zip(pairs.image_index, expected, strict=True):
        difference = np.abs(np.subtract(pairs.images[int(image)].getpixel((4, 4)), COLOURS[i])).max()
        assert difference == 0 if exact else difference < 30


@pytest.mark.parametrize(("name", "separator"), [("pairs.csv", "\t"), ("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_open_clips_table_is_read_whatever_its_separator(pictures, name, separator):
    with (pictures / name).open("w", newline="") as file:
        rows = [(f"{i}.png", caption) for i in range(10) for caption in CAPTIONS[i]]
        csv.writer(file, delimiter=separator).writerows([("filepath", "title"), *rows])
    pairs = load_pairs(str(pictures / name), "all")
    check(pairs)
    assert repr(separator) in pairs.notes["form"]


def test_webdataset_shards_are_read_from_a_folder_a_file_and_two_kinds_of_pattern(tmp_path):
    folder = tmp_path / "shards"
    for shard in range(2):
        write_tar(folder / f"{shard:05}.tar", samples(range(5 * shard, 5 * shard + 5)))
        (folder / f"{shard:05}_stats.json").write_text('{"count": 5}')  # as img2dataset leaves them
        pa.parquet.write_table(pa.table({"url": ["u"], "caption": ["not this"]}), folder / f"{shard:05}.parquet")
    first = [captions[:1] for captions in CAPTIONS]
    for name in (folder, folder / "{00000..00001}.tar", folder / "*.tar", f"{folder}/00000.tar::{folder}/00001.tar"):
        check(load_pairs(str(name), "all"), captions=first)
    check(load_pairs(str(folder / "00001.tar"), "all"), range(5, 10), first)
    titles = load_pairs(str(folder), "all", caption_column="json.title").captions
    assert titles == [f"title {i}" for i in range(10)]


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "webp"])
def test_shards_hold_images_of_every_kind_side_by_side(tmp_path, ending):
    write_tar(tmp_path / "0.tar", samples(range(5)) + samples(range(5, 10), ending))
    check(load_pairs(str(tmp_path / "0.tar"), "all"), captions=[captions[:1] for captions in CAPTIONS], exact=False)


def test_a_shard_without_txt_gives_the_caption_of_its_json(tmp_path):
    members = [
        (name, content.replace(b"not this", b"this")) for name, content in samples(range(10)) if ".txt" not in name
    ]
    write_tar(tmp_path / "0.tar", members)
    assert load_pairs(str(tmp_path / "0.tar"), "all").captions == ["this"] * 10


def test_samples_that_lack_a_member_are_skipped_and_counted(tmp_path):
    members = [(f"{i:04}.png", encode((i, 0, 0))) for i in range(200)]
    members += [(f"{i:04}.txt", f"caption {i}".encode()) for i in range(1, 201)]
    write_tar(tmp_path / "0.tar", sorted(members))
    with pytest.warns(UserWarning, match="skipped 1 of 201 captions"):
        pairs = load_pairs(str(tmp_path / "0.tar"), "all")
    assert len(pairs) == 200
    broken = np.array([image is None for image in pairs.images])
    with pytest.warns(UserWarning, match="skipped 1 of 200 images"):
        assert pairs.without_images(broken).captions == [f"caption {i}" for i in range(1, 200)]


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="0.tar: cannot be read as a .tar"):
        load_pairs(str(tmp_path / "0.tar"), "all")


def test_clip_benchmarks_folder_gives_a_caption_a_line_and_its_classes(tmp_path):
    members = samples(range(10), text=lambda i: "\n".join(CAPTIONS[i]) + "\n")
    write_tar(tmp_path / "test" / "0.tar", sorted(members + [(f"{i:04}.cls", str(i).encode()) for i in range(10)]))
    (tmp_path / "test" / "nshards.txt").write_text("1")
    pairs = load_pairs(str(tmp_path), "all")
    check(pairs)
    assert load_labels(pairs, "cls") == list(range(10))
    assert "test" in pairs.notes["read"]


def test_shards_below_folders_of_splits_are_these_splits(tmp_path):
    for split, numbers in (("train", range(4)), ("val", range(4, 7)), ("test", range(7, 10))):
        write_tar(tmp_path / split / "0.tar", samples(numbers))
    for split, numbers in (("train", range(4)), ("validation", range(4, 7)), ("test", range(7, 10))):
        check(load_pairs(str(tmp_path), split), numbers, [captions[:1] for captions in CAPTIONS])


def test_img2datasets_loose_files_are_paired_by_name(tmp_path):
    (tmp_path / "00000").mkdir()
    for name, content in samples(range(10)):
        (tmp_path / "00000" / name).write_bytes(content)
    check(load_pairs(str(tmp_path), "all"), captions=[captions[:1] for captions in CAPTIONS])


def coco(numbers):
    return {
        "info": {"year": 2014},
        "images": [{"id": 100 + i, "file_name": f"{i}.png", "coco_url": "http://images/1"} for i in (*numbers, 77)],
        "annotations": [
            {"id": n, "image_id": 100 + i, "caption": CAPTIONS[i][n] + "\n"} for n in range(5) for i in numbers
        ],
    }


def test_a_coco_file_is_read_with_its_images_elsewhere(pictures, tmp_path):
    path = write_lines(tmp_path / "annotations" / "captions_val2014.json", [json.dumps(coco(range(10)))])
    check(load_pairs(str(path), "all", image_root=pictures))
    with pytest.raises(FileNotFoundError, match="0.png is not there; paths are relative to --image_root"):
        load_pairs(str(path), "all")
    assert load_pairs(str(path), "all", images=False).captions == FLAT


def test_a_coco_file_with_sorted_keys_has_its_images_last(pictures):
    content = coco(range(10))
    content["annotations"] += [{"id": n, "image_id": 5, "caption": "of no image"} for n in range(2000)]
    text = json.dumps(content, sort_keys=True)
    assert text.index('"images"') > HEAD_CHARACTERS
    check(load_pairs(str(write_lines(pictures / "captions_val2014.json", [text])), "all"))


def test_cocos_own_folders_give_its_splits(pictures):
    folder = pictures.parent
    for name, numbers in (("train2017", range(8)), ("val2017", range(8, 10))):
        write_lines(folder / "annotations" / f"captions_{name}.json", [json.dumps(coco(numbers))])
        (folder / name).mkdir()
        for i in numbers:
            (pictures / f"{i}.png").rename(folder / name / f"{i}.png")
    check(load_pairs(str(folder), "validation"), range(8, 10))
    assert set(load_pairs(str(folder / "annotations"), "validation").captions) == set(FLAT[40:])


@pytest.mark.parametrize("below", ["val2014", None])
def test_karpathys_splits_are_kept_and_restval_joins_train(pictures, below):
    splits = ["train"] * 4 + ["restval"] * 2 + ["val"] * 2 + ["test"] * 2
    images = [
        {"filename": f"{i}.png", "split": split, "sentences": [{"raw": text, "tokens": ["a"]} for text in CAPTIONS[i]]}
        | ({"filepath": below} if below else {})
        for i, split in enumerate(splits)
    ]
    path = write_lines(pictures.parent / "dataset.json", [json.dumps({"images": images, "dataset": "coco"})])
    if below:
        pictures.rename(pictures.parent / below)
    root = pictures.parent if below else pictures
    for split, numbers in (("train", range(6)), ("validation", (6, 7)), ("test", (8, 9))):
        check(load_pairs(str(path), split, image_root=root), numbers)


def test_a_json_of_neither_kind_is_named(tmp_path):
    path = write_lines(tmp_path / "odd.json", ['{"images": [{"filename": "a"}]}'])
    with pytest.raises(ValueError, match="odd.json: not the json of COCO's captions, nor Karpathy's"):
        load_pairs(str(path), "all")


def row(i, **more):
    return {"image": {"bytes": encode(COLOURS[i]), "path": None}} | more


IMAGE = {"image": datasets.Image()}
TEXT = datasets.Value("string")


def write_parquet(path, rows, **features):
    datasets.Dataset.from_list(rows, features=datasets.Features(IMAGE | features)).to_parquet(path)
    return path


def test_a_split_column_wins_over_the_only_split(tmp_path):
    """As Flickr30k is on the hub: all of it in the split test."""
    splits = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    rows = [row(i, caption=CAPTIONS[i], split=split) for i, split in enumerate(splits)]
    path = write_parquet(tmp_path / "test.parquet", rows, caption=datasets.List(TEXT), split=TEXT)
    for name in (path, tmp_path):
        for split, numbers in (("train", range(5)), ("validation", (5, 6)), ("test", range(7, 10))):
            pairs = load_pairs(str(name), split)
            check(pairs, numbers)
            assert pairs.notes["read"].startswith("read by the column split")


STRUCT = datasets.Features({"raw": TEXT, "tokens": datasets.List(TEXT)})


@pytest.mark.parametrize(
    ("columns", "feature"),
    [
        (lambda c: {"sentences_raw": c}, datasets.List(TEXT)),
        (lambda c: {"alt_text": c}, datasets.List(TEXT)),
        (lambda c: {"answer": c}, datasets.List(TEXT)),
        (lambda c: {"sentences": [{"raw": text, "tokens": ["a"]} for text in c]}, datasets.List(dict(STRUCT))),
        (lambda c: {"captions": [{"caption": text, "id": 1} for text in c]}, None),
        (lambda c: {"caption": {"raw": c}}, None),
        (lambda c: {f"caption_{n}": text for n, text in enumerate(c)}, TEXT),
        (lambda c: {"TEXT": "\n".join(c)}, TEXT),
        (lambda c: {"Caption": json.dumps(c)}, TEXT),
        (lambda c: {"raw": repr(c)}, TEXT),
        (lambda c: {"raw": str(np.array(c))}, TEXT),
        (lambda c: {"text": json.dumps([{"raw": text} for text in c])}, TEXT),
    ],
)
def test_captions_are_found_under_usual_names_in_every_shape(tmp_path, columns, feature):
    rows = [row(i, **columns(CAPTIONS[i])) for i in range(10)]
    features = {name: feature for name in rows[0] if name != "image"} if feature else {}
    made = datasets.Dataset.from_list(rows, **({"features": datasets.Features(IMAGE | features)} if feature else {}))
    made.to_parquet(tmp_path / "pairs.parquet")
    check(load_pairs(str(tmp_path / "pairs.parquet"), "all"))


def test_several_columns_of_captions_can_be_named(tmp_path):
    rows = [row(i, en=CAPTIONS[i][0], de=CAPTIONS[i][1], fr="non") for i in range(10)]
    path = write_parquet(tmp_path / "pairs.parquet", rows, en=TEXT, de=TEXT, fr=TEXT)
    check(load_pairs(str(path), "all", caption_column="en,de"), captions=[captions[:2] for captions in CAPTIONS])
    with pytest.raises(ValueError, match="no caption column; looked for it"):
        load_pairs(str(path), "all", caption_column="en,it")


@pytest.mark.parametrize("column", ["bytes", "struct"])
def test_parquet_not_written_by_datasets_holds_its_images_as_bytes(tmp_path, column):
    content = [encode(colour) for colour in COLOURS]
    images = content if column == "bytes" else [{"bytes": part, "path": "x.png"} for part in content]
    pa.parquet.write_table(pa.table({"jpg": images, "caption": CAPTIONS}), tmp_path / "0.parquet")
    check(load_pairs(str(tmp_path / "0.parquet"), "all"))


def test_addresses_alone_give_captions_and_a_word_on_images(tmp_path):
    table = {"URL": [f"http://a/{i}" for i in range(10)], "TEXT": [captions[0] for captions in CAPTIONS]}
    pa.parquet.write_table(pa.table(table), tmp_path / "laion.parquet")
    assert load_pairs(str(tmp_path / "laion.parquet"), "all", images=False).captions == table["TEXT"]
    with pytest.raises(ValueError, match="column URL has addresses: download .* captions alone do for"):
        load_pairs(str(tmp_path / "laion.parquet"), "all")
    pa.parquet.write_table(pa.table({"image": table["URL"], "caption": table["TEXT"]}), tmp_path / "urls.parquet")
    with pytest.raises(ValueError, match="column image holds addresses"):
        load_pairs(str(tmp_path / "urls.parquet"), "all")


def test_what_img2dataset_could_not_download_is_left_out(tmp_path):
    statuses = ["success"] * 8 + ["failed_to_download"] * 2
    table = {"url": ["u"] * 10, "caption": [captions[0] for captions in CAPTIONS], "status": statuses}
    pa.parquet.write_table(pa.table(table), tmp_path / "0.parquet")
    assert len(load_pairs(str(tmp_path / "0.parquet"), "all", images=False)) == 8


@pytest.mark.parametrize("form", ["flickr8k", "flickr8k tokens", "flickr30k", "flickr30k tokens"])
def test_flickrs_text_files_are_read(pictures, form):
    (pictures / "images").mkdir()
    for path in pictures.glob("*.png"):
        path.rename(pictures / "images" / path.name)
    texts = [[*captions[:4], f'a "quoted" word, {i}'] for i, captions in enumerate(CAPTIONS)]
    rows = [(i, n, text) for i in range(10) for n, text in enumerate(texts[i])]
    quoted = [(i, n, '"' + text.replace('"', '""') + '"') for i, n, text in rows]
    lines = {
        "flickr8k": ["image,caption", *(f"{i}.png,{text}" for i, n, text in quoted)],
        "flickr30k": ["image_name| comment_number| comment", *(f"{i}.png| {n}| {text}" for i, n, text in rows)],
    }
    tokens = [f"{i}.png#{n}\t{text}" for i, n, text in rows]
    path = write_lines(pictures / "captions.txt", lines.get(form, tokens))
    check(load_pairs(str(path), "all"), captions=texts)


def test_plain_captions_are_read_a_line_each(tmp_path):
    lines = ["A dog, text, and a cat", *FLAT[:8], "", "a, caption"]
    path = write_lines(tmp_path / "captions.txt", lines)
    pairs = load_pairs(str(path), "all", images=False)
    assert pairs.captions == [line for line in lines if line]
    with pytest.raises(
        ValueError, match="no image column; .* captions alone do for the analyses, --objective embedding"
    ):
        load_pairs(str(path), "all")


def test_captions_with_commas_that_are_not_quoted_are_refused(tmp_path):
    (tmp_path / "commas.csv").write_text("caption\na heart, red\na star, blue\n")
    with pytest.raises(ValueError, match="commas.csv: its rows have more fields .* put captions with commas in quotes"):
        load_pairs(str(tmp_path / "commas.csv"), "all", images=False)


def test_words_that_pandas_takes_for_missing_values_are_captions(tmp_path):
    (tmp_path / "words.csv").write_text("caption\nNone\nNA\nnull\n007\n")
    assert load_pairs(str(tmp_path / "words.csv"), "all", images=False).captions == ["None", "NA", "null", "007"]


def test_a_table_without_a_header_may_begin_with_an_empty_caption(tmp_path):
    path = write_lines(tmp_path / "pairs.csv", ["0.png,", *(f"{i}.png,caption {i}" for i in range(1, 200))])
    with pytest.warns(UserWarning, match="skipped 1 of 200 captions"):
        pairs = load_pairs(str(path), "all", images=False)
    assert pairs.captions == [f"caption {i}" for i in range(1, 200)]


@pytest.mark.parametrize("name", ["conceptual.tsv", "captions.csv"])
def test_tables_of_captions_alone_are_read(tmp_path, name):
    lines = {"conceptual.tsv": [f"{text}\thttp://a/1.jpg" for text in FLAT], "captions.csv": ["caption", *FLAT]}
    assert load_pairs(str(write_lines(tmp_path / name, lines[name])), "all", images=False).captions == FLAT


def test_a_folder_saved_to_disk_with_one_split_is_read(tmp_path):
    rows = [row(i, caption=CAPTIONS[i]) for i in range(10)]
    features = datasets.Features(IMAGE | {"caption": datasets.List(TEXT)})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    check(load_pairs(str(tmp_path / "saved"), "all"))
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="saved: cannot be read"):
        load_pairs(str(tmp_path / "saved"), "all")


def test_captions_beside_pictures_are_pointed_at(pictures):
    write_lines(pictures / "captions.csv", ["image,caption", *(f"{i}.png,c{i}" for i in range(10))])
    with pytest.raises(ValueError, match="no caption column; .* pass a file of captions that is there: captions.csv"):
        load_pairs(str(pictures), "all")
    assert len(load_pairs(str(pictures / "captions.csv"), "all").images) == 10


def test_two_texts_can_be_a_pair(tmp_path):
    rows = [{"query": f"q{i}", "text": f"t{i // 2}"} for i in range(10)]
    datasets.Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    columns = {"caption_column": "query", "target_column": "text"}
    pairs = load_pairs(str(tmp_path / "pairs.jsonl"), "all", **columns)
    assert pairs.images is None and pairs.targets == [f"t{i}" for i in range(5)]
    assert pairs.captions == [f"q{i}" for i in range(10)] and pairs.image_index.tolist() == [i // 2 for i in range(10)]
    assert pairs.identity()["targets"] == 5


@pytest.mark.parametrize("form", ["csv", "tar", "txt", "saved"])
def test_a_stream_gives_the_first_captions(tmp_path, form):
    path = tmp_path / f"pairs.{form}"
    if form == "tar":
        write_tar(path, samples(range(10), text=lambda i: "\n".join(CAPTIONS[i])))
    elif form == "saved":
        datasets.DatasetDict(train=datasets.Dataset.from_dict({"caption": CAPTIONS})).save_to_disk(path)
    else:
        write_lines(path, ["caption", *FLAT] if form == "csv" else FLAT)
    pairs = load_pairs(str(path), "all", images=False, streaming=True, max_pairs=12)
    assert pairs.captions == FLAT[:12]
    with pytest.raises(ValueError, match="--streaming true reads captions alone, and needs --max_pairs"):
        load_pairs(str(path), "all", streaming=True, max_pairs=12)


def test_a_streams_split_column_counts_as_in_a_table(tmp_path):
    splits = ["extra", "extra", *["train"] * 4, "val", "val", "test", "test"]
    for names in (splits, ["val"] * 8 + ["test"] * 2):
        rows = [{"caption": f"caption {n}", "split": name} for n, name in enumerate(names)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
        with warnings.catch_warnings(record=True):  # validation in the place of train
            options = {"images": False, "or_validation": True, "max_pairs": 20}
            table, stream = (load_pairs(str(tmp_path), "train", streaming=way, **options) for way in (False, True))
        wanted = [f"caption {n}" for n, name in enumerate(names) if name == ("train" if "train" in names else "val")]
        assert stream.captions == table.captions == wanted


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        (lambda c: {"meta": {"summary": c, "id": "x"}}, "meta.summary"),
        (lambda c: {"json": json.dumps({"title": c})}, "json.title"),
        (lambda c: {"json.title": c}, "json.title"),
        (lambda c: {"meta": {"en": c, "de": "nein"}, "a": c}, "meta.en, a"),
    ],
)
def test_a_stream_gives_fields_and_dotted_columns_as_a_table_does(tmp_path, columns, asked):
    datasets.Dataset.from_list([columns(text) for text in FLAT]).to_parquet(tmp_path / "pairs.parquet")
    options = {"images": False, "caption_column": asked, "max_pairs": 12}
    table, stream = (load_pairs(str(tmp_path), "all", streaming=streaming, **options) for streaming in (False, True))
    assert stream.captions == table.captions
    assert set(stream.captions) <= set(FLAT)


def test_a_stream_of_something_else_than_captions_is_named(tmp_path):
    datasets.Dataset.from_list([{"meta": 3}] * 5).to_parquet(tmp_path / "pairs.parquet")
    options = {"images": False, "caption_column": "meta.summary", "streaming": True, "max_pairs": 2}
    with pytest.raises(ValueError, match="its captions cannot be read"):
        load_pairs(str(tmp_path), "all", **options)


def test_a_stream_finds_its_target_column_in_any_case(tmp_path):
    datasets.Dataset.from_list([{"Query": f"q{i}", "Text": f"t{i}"} for i in range(10)]).to_parquet(
        tmp_path / "p.parquet"
    )
    options = {"caption_column": "query", "streaming": True, "max_pairs": 4}
    pairs = load_pairs(str(tmp_path), "all", target_column="text", **options)
    assert (pairs.captions, pairs.targets) == ([f"q{i}" for i in range(4)], [f"t{i}" for i in range(4)])
    with pytest.raises(ValueError, match="no target column; looked for title; the columns are Query, Text"):
        load_pairs(str(tmp_path), "all", target_column="title", **options)


def test_a_stream_is_read_no_further_than_needed(tmp_path, monkeypatch):
    read = []

    def sample(members):
        read.append(1)
        return {"txt": next(members).content.decode()}

    monkeypatch.setattr("data.shards._sample", sample)
    write_tar(tmp_path / "0.tar", [(f"{i}.txt", f"caption {i}".encode()) for i in range(500)])
    load_pairs(str(tmp_path / "0.tar"), "all", images=False, streaming=True, max_pairs=10)
    assert len(read) < 50


def test_the_first_pairs_alone_can_be_asked_for(tmp_path):
    rows = [row(i, caption=CAPTIONS[i]) for i in range(10)]
    path = write_parquet(tmp_path / "pairs.parquet", rows, caption=datasets.List(TEXT))
    pairs = load_pairs(str(path), "all", max_pairs=7)
    assert pairs.captions == FLAT[:7] and len(pairs.images) == 2
    assert pairs.identity()["max_pairs"] == 7 and pairs.identity()["images"] == 2


@pytest.mark.parametrize("folder", ["ä [x] {y} *q?", '甲 "q" #1 %41'])
def test_a_file_may_lie_anywhere(tmp_path, folder):
    path = write_lines(tmp_path / folder / "captions.csv", ["caption", *FLAT])
    assert load_pairs(str(path), "all", images=False).captions == FLAT


def test_a_folder_whose_path_is_a_pattern_is_refused_in_words(tmp_path):
    for folder in ("[x]", "a::b"):
        write_lines(tmp_path / folder / "captions.csv", ["caption", *FLAT])
        with pytest.raises(ValueError, match="rename it, or link to it"):
            load_pairs(str(tmp_path / folder), "all", images=False)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "--dataset is empty"),
        ("exp/typo", FileNotFoundError, "'exp/typo' is not a bundled name .*, not a local file or folder$"),
        ("{0..3}.tar", FileNotFoundError, "looked for the file"),
    ],
)
def test_names_that_are_no_hub_names_are_not_asked_for_there(name, error, message):
    with pytest.raises(error, match=message):
        load_pairs(name, "all")


def test_a_damaged_folder_is_named(tmp_path):
    write_lines(tmp_path / "README.md", ["---", "a: [", "---"])
    write_lines(tmp_path / "captions.csv", ["caption", *FLAT])
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*: cannot be read"):
        load_pairs(str(tmp_path), "all", images=False)


def test_a_split_without_rows_is_named(tmp_path):
    features = datasets.Features({"caption": TEXT})
    for split, captions in (("train", FLAT), ("validation", FLAT), ("test", [])):
        datasets.Dataset.from_dict({"caption": captions}, features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match="no rows in test.parquet"):
        load_pairs(str(tmp_path), "test", images=False)


def test_arrays_that_numpy_has_written_are_refused(tmp_path):
    written = str([{"raw": "a cat", "tokens": np.arange(2)}])
    datasets.Dataset.from_dict({"caption": [written] * 10}).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"found NumPy's arrays as text: \[\{'raw': 'a cat'"):
        load_pairs(str(tmp_path), "all", images=False)
