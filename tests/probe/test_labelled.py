"""Which clips a probe learns from, and which it is scored on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gamut.errors import RecipeError, ShardError
from gamut.probe.labelled import labelled
from gamut.recipe.check import check
from gamut.recipe.schema import Recipe
from gamut.shards import Index


def asked(recipe: Recipe, **probe: object) -> Recipe:
    return replace(recipe, probe=replace(recipe.probe, **probe))


def test_by_default_the_folds_that_are_pretrained_on_are_scored_in_turn(recipe: Recipe, labelled_set: Index) -> None:
    found, reason = labelled(replace(recipe, subset={"fold": [1, 2, 4]}), labelled_set)
    assert found is not None
    assert not reason
    fold = labelled_set.columns["fold"][found.clips.row]
    assert set(fold) == {1, 2, 4}
    np.testing.assert_array_equal(found.fold, np.searchsorted([1, 2, 4], fold))
    names = [labelled_set.labels[int(labelled_set.label_ids(int(row))[0])] for row in found.clips.row]
    assert [found.labels[k] for k in found.target.argmax(1)] == names
    assert (found.target.sum(1) == 1).all()
    assert "6 classes" in str(found)
    assert "36 clips scored in 3 folds" in str(found)


def test_a_set_and_its_parts_may_be_named(recipe: Recipe, labelled_set: Index) -> None:
    wanted = asked(recipe, data=recipe.data, train={"fold": [1, 2]}, test={"fold": [5]})
    found, _ = labelled(replace(wanted, data="/nowhere"))
    assert found is not None
    fold = labelled_set.columns["fold"][found.clips.row]
    assert set(fold[found.fold == -1]) == {1, 2}
    assert set(fold[found.fold == 0]) == {5}
    assert (np.diff(found.clips.row) > 0).all()
    assert "12 clips scored after training on 24" in str(found)


def test_of_many_clips_the_same_few_are_chosen(recipe: Recipe, labelled_set: Index) -> None:
    few, _ = labelled(asked(recipe, clips=20), labelled_set)
    fewer, _ = labelled(asked(recipe, clips=10), labelled_set)
    assert few is not None
    assert fewer is not None
    assert (len(few.clips), len(fewer.clips)) == (20, 10)
    assert set(fewer.clips.row) <= set(few.clips.row)


def test_without_labels_or_folds_there_is_no_probe_and_it_says_why(recipe: Recipe, labelled_set: Index) -> None:
    found, reason = labelled(asked(recipe, folds="speaker"), labelled_set)
    assert found is None
    assert "no column speaker" in reason
    found, reason = labelled(replace(recipe, subset={"fold": [3]}), labelled_set)
    assert found is None
    assert "single fold" in reason


def test_what_is_named_must_be_there(recipe: Recipe, labelled_set: Index) -> None:
    with pytest.raises(ShardError, match="no column speaker: name the clips"):
        labelled(asked(recipe, data=recipe.data, folds="speaker"))
    with pytest.raises(ShardError, match=r"12 clips .* in probe\.train and in probe\.test"):
        labelled(asked(recipe, train={"fold": [1, 2]}, test={"fold": [2, 3]}), labelled_set)
    with pytest.raises(ShardError, match="needs two classes"):
        labelled(asked(recipe, train={"fold": [1], "label": ["trill"]}, test={"fold": [2]}), labelled_set)
    with pytest.raises(ShardError, match="no shards at /nowhere"):
        labelled(asked(recipe, data="/nowhere"))
    with pytest.raises(RecipeError, match="must be set together"):
        check(asked(recipe, train={"fold": [1]}))
    with pytest.raises(RecipeError, match=r"probe\.test\.share"):
        check(asked(recipe, train={"fold": [1]}, test={"share": 2.0}))
