"""Pictures of similarity matrices: what is drawn where, and the same bytes every time."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from common import plots

pytestmark = pytest.mark.usefixtures("pictures_drawn")


def similarity(num_layers, seed=0):
    walk = np.cumsum(np.random.default_rng(seed).standard_normal((num_layers + 1, 100)), axis=0)
    return np.corrcoef(walk)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that draws a heat map and returns its axes: the matrix, the baseline if any, the colour bar."""
    figures = []
    savefig = Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(matrix, **options):
        plots.heat_map(matrix, tmp_path / "map.png", "title", **options)
        return figures[-1].axes

    return draw


def cells(ax):
    """What is written in each cell: {(row, column): text}."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}


def test_rows_and_columns_are_hidden_states(drawn):
    ax = drawn(similarity(4))[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["h0", "h1", "h2", "h3", "h4"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["h0", "h1", "h2", "h3", "h4"]
    assert ax.get_title() == "title"


def test_values_are_written_row_by_row_but_for_the_diagonal(drawn):
    matrix = np.arange(16).reshape(4, 4) / 20
    assert cells(drawn(matrix)[0]) == {
        (row, column): f"{matrix[row, column]:.2f}" for row in range(4) for column in range(4) if row != column
    }


@pytest.mark.parametrize(("lowest", "text"), [(0.3, "0.30"), (0.93, "0.930"), (0.995, "0.9950"), (-0.4, "-0.40")])
def test_values_near_one_have_more_digits(drawn, lowest, text):
    assert cells(drawn(np.array([[1, lowest], [lowest, 1]]))[0])[0, 1] == text


def test_no_values_where_they_would_be_too_small_to_read(drawn):
    assert len(drawn(similarity(14))[0].texts) == 15 * 14
    axes = drawn(similarity(15))
    assert len(axes[0].texts) == 0
    assert axes[0].get_xticklabels()[-1].get_text() == "h15"


@pytest.mark.parametrize("lowest", [-0.7, 0.0, 0.43, 0.9, 0.977, 0.99995, 1.0])
def test_colours_span_the_values(drawn, lowest):
    (image,) = drawn(np.array([[1, lowest], [lowest, 1]]))[0].images
    low, high = image.get_clim()
    assert high == 1
    assert low <= lowest
    assert 1 - low <= max(2 * (1 - lowest), 1e-5)


def test_a_segment_is_outlined_where_the_coarse_score_reads_it(drawn):
    ax = drawn(similarity(6), segments=[[2, 3], [5, 5]])[0]
    outlined = [patch for patch in ax.patches if to_hex(patch.get_edgecolor()) == plots.ACCENT]
    # the cell of row r and column c reaches from (c - 0.5, r - 0.5): row a-1, column b
    assert [patch.get_xy() for patch in outlined] == [(3 - 0.5, 1 - 0.5), (5 - 0.5, 4 - 0.5)]
    assert all(patch.get_width() == patch.get_height() == 1 for patch in outlined)
    labels = [text for text in ax.texts if text.get_text().startswith("drop")]
    assert [label.get_text() for label in labels] == ["drop 2-3", "drop 5"]


def test_the_matrix_keeps_its_place_when_segments_are_drawn(drawn):
    plain, marked = (drawn(similarity(6), segments=segments)[0] for segments in (None, [[1, 6]]))
    assert plain.get_xlim() == marked.get_xlim() == (-0.5, 6.5)
    assert plain.get_ylim() == marked.get_ylim() == (6.5, -0.5)


def test_baseline_is_drawn_beside_the_matrix_in_the_same_colours(drawn):
    matrix, baseline = similarity(4), np.where(np.eye(5), 1, 0.07)
    first, second, _ = drawn(matrix, baseline=baseline)
    assert np.array_equal(first.images[0].get_array(), matrix)
    assert np.array_equal(second.images[0].get_array(), baseline)
    assert first.images[0].get_clim() == second.images[0].get_clim()
    assert first.get_position().x1 < second.get_position().x0
    assert "shuffled" in second.get_xlabel()


def test_same_matrix_same_bytes(tmp_path):
    path = tmp_path / "map.png"
    written = []
    for seed in (0, 0, 1):
        plots.heat_map(similarity(5, seed), path, "title", segments=[[2, 3]])
        written.append(path.read_bytes())
    assert written[0] == written[1] != written[2]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info.keys() <= {"dpi"}  # no date, no software


def test_segments_are_visible_in_the_picture(tmp_path):
    path = tmp_path / "map.png"
    accent = [int(plots.ACCENT[i : i + 2], 16) for i in (1, 3, 5)]
    for segments, visible in ((None, False), ([[2, 4]], True)):
        plots.heat_map(similarity(5), path, "title", segments=segments)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert (np.abs(pixels - accent).max(-1) < 8).any() == visible


def test_a_drawing_that_fails_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    plots.heat_map(similarity(3), path, "title")
    before = path.read_bytes()

    def fail(figure, temporary, **options):
        temporary.write_bytes(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.heat_map(similarity(4), path, "title")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
