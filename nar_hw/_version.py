"""The version of this package and of those it stands on."""

import platform
from importlib.metadata import version

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """nar_hw, Python and the named packages; nothing is imported."""
    return {"nar_hw": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
