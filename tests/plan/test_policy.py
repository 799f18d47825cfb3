from __future__ import annotations

from dataclasses import fields, replace

import pytest

from gamut.errors import PlanError
from gamut.plan import Policy, differing, plan_fingerprint, policy
from gamut.plan.policy import FINGERPRINTED

BASE = Policy(packs=32, tokens=2048)
OTHER = {
    "packs": 64,
    "clips": 5,
    "tokens": 1024,
    "max_clips": 8,
    "views": 2,
    "crop_frames": 96,
    "random_crop": False,
    "pad": False,
    "max_frames": 96,
    "too_long": "error",
    "hops": (160, 320),
    "pools": (1, 2),
    "pad_to": 1024,
    "max_samples": 480000,
    "local_views": 4,
    "local_frames": 96,
    "roll": 0.5,
    "drop_tokens": 0.1,
    "hidden": 0.7,
    "clones": 4,
    "mixup": 0.5,
    "mixup_beta": 5,
    "mixtures": 0.5,
    "class_token": False,
    "cached": True,
    "distillation_token": True,
    "stride": 10,
    "packer": "next_fit",
    "lookahead": 8,
    "window": 100,
    "shuffle": False,
    "locality": "node",
    "draws": 7,
    "proportions": (1.0, 3.0),
}


@pytest.mark.parametrize(
    ("packs", "lanes"), [(1, 1), (2, 2), (6, 6), (16, 16), (17, 1), (18, 9), (32, 16), (33, 11), (34, 2), (60, 15)]
)
def test_lanes_are_the_largest_divisor_of_packs_up_to_16(packs: int, lanes: int) -> None:
    assert Policy(packs=packs, clips=1).lanes == lanes


def test_every_field_is_in_the_fingerprint(make_clips) -> None:
    assert set(OTHER) == {field.name for field in fields(Policy)} - {"block"}  # which decides large sets alone
    clips = make_clips(10)
    base = plan_fingerprint(clips, 0, BASE)
    for name, value in OTHER.items():
        changed = replace(BASE, **{name: value} | ({"tokens": None} if name == "clips" else {}))
        assert changed.fingerprint() != BASE.fingerprint()
        named = f"{FINGERPRINTED.get(name, name)} ("
        assert any(text.startswith(named) for text in differing(base, plan_fingerprint(clips, 0, changed)))
    assert [text.split()[0] for text in differing(base, plan_fingerprint(clips, 1, BASE))] == ["seed"]
    assert [text.split()[0] for text in differing(base, plan_fingerprint(make_clips(10, seed=1), 0, BASE))] == ["index"]
    assert differing(base, plan_fingerprint(make_clips(10), 0, replace(BASE, block=7))) == []


def test_plans_without_mixtures_are_those_that_there_were() -> None:
    """Runs that began before there were any go on."""
    assert BASE.fingerprint() == "1373edec667e18a1"
    assert "mixtures" not in BASE.fields()


def test_the_planner_version_is_in_the_fingerprint(make_clips, monkeypatch: pytest.MonkeyPatch) -> None:
    before, print_before = plan_fingerprint(make_clips(3), 0, BASE), BASE.fingerprint()
    monkeypatch.setattr(policy, "PLANNER_VERSION", policy.PLANNER_VERSION + 1)
    assert [text.split()[0] for text in differing(before, plan_fingerprint(make_clips(3), 0, BASE))] == ["planner"]
    assert BASE.fingerprint() != print_before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"packs": 0}, "`packs`"),
        ({"tokens": None}, "`clips` and `tokens`"),
        ({"clips": 5}, "`clips` and `tokens`"),
        ({"crop_frames": 100}, "for example 96"),
        ({"max_frames": 8}, "for example 16"),
        ({"crop_frames": 96, "max_frames": 64}, "`max_frames`"),
        ({"packer": "best_fit"}, "exact or next_fit"),
        ({"locality": "rack"}, "none or node"),
        ({"too_long": "skip"}, "cut or error"),
        ({"hops": ()}, "`hops`"),
        ({"hops": (0,)}, "`hops`"),
        ({"window": 0}, "`window`"),
        ({"pools": ()}, "`pools`"),
        ({"pools": (0, 1)}, "`pools`"),
        ({"pad_to": 1000}, "for example 992"),
        ({"pad_to": 1024, "crop_frames": 96}, "`pad_to` .* `crop_frames`"),
        ({"pad_to": 1024, "pad": False}, "`pad_to` .* `pad`"),
        ({"max_samples": 399}, "`max_samples`"),
        ({"local_views": -1}, "`local_views`"),
        ({"stride": 17}, "`stride`"),
        ({"local_views": 4, "local_frames": 100}, "`local_frames`"),
        ({"roll": 1.1}, "`roll`"),
        ({"mixup": -0.1}, "`mixup`"),
        ({"mixup_beta": 0}, "`mixup_beta`"),
        ({"mixtures": 2}, "`mixtures`"),
        ({"mixtures": 0.5, "mixup": 0.5}, "`mixtures` .* `mixup`"),
        ({"mixtures": 0.5, "local_views": 2}, "`mixtures` .* `local_views`"),
        ({"drop_tokens": 0.95}, "between 0 and 0.9"),
        ({"cached": True, "views": 2}, "one view a clip"),
    ],
)
def test_a_value_that_cannot_be_is_named(wrong: dict, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        replace(BASE, **wrong)
