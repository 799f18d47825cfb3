"""Figures: they hold what they were given, and need no screen."""

from __future__ import annotations

import io

import numpy as np
import pytest

from gamut.evaluate import METRICS, Metric
from gamut.track.figures import (
    arms,
    attention,
    confusion_matrix,
    curves,
    embedding,
    masks,
    probe_curves,
    reconstruction,
    sweep,
)
from tests.close import assert_close


def saved(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def test_masks_leave_blank_what_is_zero_and_show_what_is_filled() -> None:
    rng = np.random.default_rng(0)
    clip, filled = rng.normal(size=(64, 128)), rng.normal(size=(64, 128))
    hidden = rng.random((64, 128)) < 0.5
    figure = masks(clip, {"zeros": (np.where(hidden, 0.0, clip), hidden), "filled": (filled, hidden)})
    assert [axis.get_title() for axis in figure.axes] == ["clip", "zeros", "filled"]
    shown = [np.ma.filled(axis.images[0].get_array(), np.nan) for axis in figure.axes]
    for found, values in zip(shown, (clip, np.where(hidden, np.nan, clip), filled), strict=True):
        np.testing.assert_array_equal(found, values.T)
    assert saved(figure).startswith(b"\x89PNG")


def test_reconstruction_shows_the_mask_and_the_error_under_it() -> None:
    rng = np.random.default_rng(0)
    clip, made = rng.normal(size=(64, 128)), rng.normal(size=(64, 128))
    mask = np.zeros((64, 128), bool)
    mask[10:30, 40:60] = True
    figure = reconstruction(clip, mask, made, "clip 1")
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images and axis.get_ylabel()]
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[0], clip.T)
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(shown[1])), mask.T)
    np.testing.assert_array_equal(shown[2], made.T)
    assert_close(np.ma.filled(shown[3], np.nan)[mask.T], np.abs(made - clip).T[mask.T])
    assert saved(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="shapes differ"):
        reconstruction(clip, mask[:3], made)


def test_confusion_matrix_counts_and_shares() -> None:
    counts = np.array([[3, 1], [0, 0]])
    figure = confusion_matrix(counts, ["dog", "cat"], "fold 1")
    axis = figure.axes[0]
    assert_close(axis.images[0].get_array(), [[0.75, 0.25], [0.0, 0.0]])
    assert {(text.get_position(), text.get_text()) for text in axis.texts} == {((0, 0), "3"), ((1, 0), "1")}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["dog", "cat"]
    assert saved(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="3 labels"):
        confusion_matrix(counts, ["a", "b", "c"])


def test_curves() -> None:
    figure = curves({"loss": ([1, 2, 3], [3.0, float("nan"), 1.0]), "lr": ([1], [0.1]), "x": ([], [])})
    lines = [axis.lines[0].get_xydata() for axis in figure.axes if axis.get_visible()]
    assert len(lines) == 3
    assert_close(lines[0], [[1, 3.0], [2, np.nan], [3, 1.0]])
    assert saved(curves({})).startswith(b"\x89PNG")


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_attention_shows_the_clip_and_every_head(heads: int) -> None:
    rng = np.random.default_rng(0)
    clip, maps = rng.normal(size=(64, 128)), rng.random(size=(heads, 4, 8)) / 32
    figure = attention(clip, maps, "clip 1")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 1 + heads
    np.testing.assert_array_equal(shown[0].images[0].get_array(), clip.T)
    for head, axis in enumerate(shown[1:]):
        np.testing.assert_array_equal(axis.images[0].get_array(), maps[head].T)
        assert axis.images[0].get_extent() == shown[0].images[0].get_extent()
        assert f"{maps[head].max():.1%}" in axis.get_title()
    assert saved(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [4, 30])
def test_embedding_draws_every_clip_once_in_its_class(classes: int) -> None:
    points, of = np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % classes
    figure = embedding(points, of, [f"class {n}" for n in range(classes)], "clips")
    plotted = figure.axes[0].collections
    assert [len(part.get_offsets()) for part in plotted] == [int((of == n).sum()) for n in range(classes)]
    np.testing.assert_array_equal(plotted[1].get_offsets(), points[of == 1])
    assert len(figure.legends) == (classes <= 20)
    assert saved(figure).startswith(b"\x89PNG")


def test_probe_curves_have_their_reference_line() -> None:
    logged = {"probe/knn/cls": ([0, 10], [0.2, 0.4]), "probe/knn/logmel": ([0], [0.3])}
    now = {"probe/knn/cls": [(20, 0.5), (-1, 0.9)], "probe/linear/logmel": [(0, 0.6)]}
    left, right = probe_curves(logged, now, "run").axes
    assert_close(left.lines[0].get_xydata(), [[0, 20.0], [10, 40.0]])
    assert_close(left.collections[0].get_offsets(), [[20, 50.0]])
    assert list(left.lines[1].get_ydata()) == [30.0, 30.0]
    assert list(right.lines[0].get_ydata()) == [60.0, 60.0]


def test_names_are_never_read_as_formulas() -> None:
    odd = [r"A$\x$AP", "$^$", "one $"]
    shares, scores = np.array([0.5, 0.6, 0.7]), ([1.0, 2.0], [0.1, 0.2], [0.0, 0.1])
    for figure in (
        confusion_matrix(np.eye(3), odd, odd[0]),
        arms(dict.fromkeys(odd, shares), dict.fromkeys(odd, shares), odd, METRICS["mAP"]),
        curves({name: ([1], [1.0]) for name in odd}, odd[0], odd[1]),
        probe_curves({f"probe/{how}/{name}": ([1], [1.0]) for name in odd for how in ("knn", "linear")}, {}, odd[0]),
        sweep(dict.fromkeys(odd, scores), odd[0], Metric(odd[1], lambda *_: 0.0), odd[0]),
        embedding(np.zeros((3, 2)), np.arange(3), odd, odd[0]),
    ):
        assert saved(figure).startswith(b"\x89PNG")
