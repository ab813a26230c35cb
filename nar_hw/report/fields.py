"""Checked reading of JSON objects: an absent value is None, a wrong one is a RunError that names file and field."""

from collections.abc import Mapping
from typing import Any

from nar_hw.errors import RunError


class Fields:
    """One JSON object whose values are read with checks that name the file and the field."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        self.value = value
        self.where = where

    def _get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        value = self.value.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise RunError(f"{self.where}: {name} must be {what}, but is {str(value)[:60]!r}")
        return value

    def number(self, name: str) -> float | None:
        """0 or a number between 1e-30 and 1e30 in size."""
        value = self._get(name, (int, float), "a number")
        if value is not None and not _plain(value):
            raise RunError(f"{self.where}: {name} must be 0 or a number between 1e-30 and 1e30 in size, but is {str(value)[:60]}")
        return None if value is None else float(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value: str | None = self._get(name, str, "a text")
        return value

    def object(self, name: str) -> "Fields":
        """An object; an empty one when it is absent."""
        return Fields(self._get(name, dict, "an object") or {}, f"{self.where}: {name}")

    def objects(self, name: str) -> list["Fields"]:
        """A list of objects; an empty one when it is absent."""
        items = self._get(name, list, "a list") or []
        if wrong := [item for item in items if not isinstance(item, dict)]:
            raise RunError(f"{self.where}: {name} must hold objects, but holds {str(wrong[0])[:60]!r}")
        return [Fields(item, f"{self.where}: {name}") for item in items]

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of strings."""
        items = self._get(name, list, "a list")
        if items is None:
            return None
        if wrong := [item for item in items if not isinstance(item, str)]:
            raise RunError(f"{self.where}: {name} must hold operator names, but holds {str(wrong[0])[:60]!r}")
        return tuple(items)

    def numbers(self) -> dict[str, float]:
        """Everything that is such a number, by name."""
        return {name: float(value) for name, value in self.value.items() if _plain(value)}

    def words(self) -> dict[str, str]:
        """Everything that is there, as short texts; what lies in an inner object is named by both."""
        found: dict[str, str] = {}
        for name, value in self.value.items():
            if isinstance(value, dict):
                found |= {f"{name}.{inner}": text for inner, text in Fields(value, self.where).words().items()}
            elif value not in (None, "", []):
                found[name] = _short(value)
        return found


def _plain(value: object) -> bool:
    """Whether ``value`` is a number that a chart can hold (JSON may hold integers beyond any float, 1e999 and 5e-324)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or 1e-30 < abs(value) < 1e30)


def _short(value: object, limit: int = 160) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= limit else f"{text[:limit]} ..."
