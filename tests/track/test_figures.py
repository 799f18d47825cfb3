"""Figures: they hold what they were given, and need no screen."""

from __future__ import annotations

import io

import numpy as np
import pytest

from gamut.track.figures import confusion_matrix, curves, masks, reconstruction


def saved(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@pytest.mark.parametrize("zeros", [True, False])
def test_masks_leave_blank_what_is_zero_and_show_what_is_filled(zeros: bool) -> None:
    rng = np.random.default_rng(0)
    clip, seen = rng.normal(size=(64, 128)), rng.normal(size=(64, 128))
    hidden = rng.random((64, 128)) < 0.5
    figure = masks(clip, {"unaligned": (seen, hidden), "aligned": (seen, ~hidden)}, zeros)
    assert [axis.get_title() for axis in figure.axes] == ["clip", "unaligned", "aligned"]
    shown = [np.ma.masked_invalid(axis.images[0].get_array()) for axis in figure.axes]
    np.testing.assert_array_equal(shown[0], clip.T)
    for found, mask in zip(shown[1:], (hidden, ~hidden)):
        np.testing.assert_array_equal(np.ma.getmaskarray(found), mask.T & zeros)
        np.testing.assert_array_equal(found.compressed(), seen.T[~(mask.T & zeros)])
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
    np.testing.assert_allclose(np.ma.filled(shown[3], np.nan)[mask.T], np.abs(made - clip).T[mask.T])
    assert saved(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="shapes differ"):
        reconstruction(clip, mask[:3], made)


def test_confusion_matrix_counts_and_shares() -> None:
    counts = np.array([[3, 1], [0, 0]])
    figure = confusion_matrix(counts, ["dog", "cat"], "fold 1")
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.75, 0.25], [0.0, 0.0]])
    assert {(text.get_position(), text.get_text()) for text in axis.texts} == {((0, 0), "3"), ((1, 0), "1")}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["dog", "cat"]
    assert saved(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="3 labels"):
        confusion_matrix(counts, ["a", "b", "c"])


def test_curves() -> None:
    figure = curves({"loss": ([1, 2, 3], [3.0, float("nan"), 1.0]), "lr": ([1], [0.1]), "x": ([], [])})
    lines = [axis.lines[0].get_xydata() for axis in figure.axes if axis.get_visible()]
    assert len(lines) == 3
    np.testing.assert_allclose(lines[0], [[1, 3.0], [2, np.nan], [3, 1.0]])
    assert saved(curves({})).startswith(b"\x89PNG")
