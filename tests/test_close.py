"""Arrays that agree up to rounding are compared relative to the whole of them, by `tests.close`, and never element by
element: that holds on one processor and fails on the next."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.close import apart, assert_close

TESTS = Path(__file__).parent
BY_ELEMENT = {"allclose", "isclose", "assert_allclose", "assert_almost_equal", "assert_approx_equal"}
BY_ELEMENT |= {"assert_array_almost_equal", "assert_array_almost_equal_nulp", "assert_array_max_ulp"}


def by_element(source: str) -> list[int]:
    """Lines that compare the elements of arrays within a tolerance each. `math.isclose` and `pytest.approx` of numbers
    are none; `approx` of an array is refused when it is called, and of one made a list here, unless its tolerance is
    an absolute one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module != "math":
            names = {alias.name for alias in node.names} & BY_ELEMENT
            if names or (node.module or "").startswith("torch.testing"):
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if (node.attr in BY_ELEMENT and of != "math") or (of, node.attr) == ("torch", "testing"):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("approx", "pytest.approx"):
            lists = any(isinstance(part, ast.Attribute) and part.attr == "tolist" for part in ast.walk(node))
            if lists and not any(word.arg == "abs" for word in node.keywords):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_compares_arrays_element_by_element(path: Path) -> None:
    lines = by_element(path.read_text())
    assert not lines, f"{path.relative_to(TESTS.parent)}, lines {lines}: use tests.close.assert_close"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.testing.assert_close(a, b)", True),
        ("from torch.testing import assert_close", True),
        ("np.testing.assert_allclose(a, b, rtol=1e-5)", True),
        ("assert numpy.allclose(a, b)", True),
        ("from numpy import isclose", True),
        ("assert a.isclose(b).all()", True),
        ("assert a == pytest.approx(b.mean(1).tolist())", True),
        ("assert a == pytest.approx(b.tolist(), abs=1e-6)", False),
        ("assert a == pytest.approx(b.item(), rel=1e-6)", False),
        ("assert math.isclose(a, b)", False),
        ("np.testing.assert_array_equal(a, b)", False),
        ("from tests.close import assert_close\nassert_close(a, b)", False),
    ],
)
def test_the_check_knows_them(source: str, found: bool) -> None:
    assert bool(by_element(source)) == found


@pytest.mark.parametrize("values", [np.ones(2), torch.ones(2), {"a": np.ones(2)}, [torch.ones(2)]])
def test_approx_takes_no_arrays(values: object) -> None:
    with pytest.raises(TypeError, match=r"tests\.close\.assert_close"):
        pytest.approx(values, rel=1e-6)
    assert [1.0, torch.tensor(2.0).item()] == pytest.approx([np.float64(1.0), 2.0])


def test_what_agrees_is_told_by_the_largest() -> None:
    assert apart([1.0, 0.001], [1.0, 0.0]) == 0.001
    assert apart([0.0, 1.0], [0.0, 0.0]) == apart([np.nan], [1.0]) == float("inf")
    assert_close(torch.tensor([1e6, 0.5]), torch.tensor([1e6, 0.0]))
    with pytest.raises(AssertionError, match=r"differ by 0\.5 of the largest"):
        assert_close([0.5, 1.0], [0.5, 2.0])
