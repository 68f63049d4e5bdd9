import sys
import types

import pytest

from worker.selftest import edit

CODE = """
def add(a, b):
    return a + b

class Base:
    def value(self):
        return 1

class Derived(Base):
    def value(self):
        return super().value() + 1

    @property
    def doubled(self):
        return 2 * self.value()
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module with the code, and one that imported `add` from it."""
    (tmp_path / "edited_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import edited_code

    user = types.ModuleType("edited_user")
    user.plus = edited_code.add
    monkeypatch.setitem(sys.modules, "edited_user", user)
    yield edited_code
    del sys.modules["edited_code"]


def test_a_function_changes_wherever_it_was_imported(code):
    edit("edited_code:add", ("a + b", "a - b"))
    assert code.add(3, 1) == 2
    assert sys.modules["edited_user"].plus(3, 1) == 2


def test_a_method_keeps_its_super_and_a_property_stays_one(code):
    edit("edited_code:Derived.value", ("+ 1", "+ 10"))
    assert code.Derived().value() == 11
    edit("edited_code:Derived.doubled", ("2 *", "3 *"))
    assert code.Derived().doubled == 33


@pytest.mark.parametrize("old", ["nowhere", "a"])
def test_a_text_that_is_not_there_exactly_once_is_refused(code, old):
    with pytest.raises(LookupError, match=r"edited_code:add: .* occurs \d times in its source, not once"):
        edit("edited_code:add", (old, "b"))
