import inspect
import re

import pytest

from nar_hw import errors
from nar_hw.errors import UnknownNameError, UserError, unknown_name


def classes() -> list[type[errors.NarError]]:
    return [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, errors.NarError)]


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__ or "")) - {"ValueError"}
    assert drawn == {item.__name__ for item in classes()}


@pytest.mark.parametrize("error", [item for item in classes() if item is not errors.NarError])
def test_user_errors_are_value_errors(error: type[Exception]) -> None:
    assert issubclass(error, UserError)
    assert issubclass(error, ValueError)


def test_a_message_cannot_steer_a_terminal() -> None:
    assert str(UserError("a\nb\x1b[2Jé\u202e")) == "a\\nb\\x1b[2Jé\\u202e"


def test_unknown_name_offers_the_nearest() -> None:
    error = unknown_name("model", "resnet81", ["vgg11", "resnet18", *(f"x{i}" for i in range(20))])
    assert isinstance(error, UnknownNameError)
    assert str(error) == "unknown model 'resnet81': use one of resnet18 (22 in all)"


def test_unknown_name_lists_all_of_a_short_registry() -> None:
    assert str(unknown_name("runtime", "zzz", ["b", "a"])) == "unknown runtime 'zzz': use one of a, b"
