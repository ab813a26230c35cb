"""Search: the supernet, the controller, rewards, strategies and the loop that joins them.

The package can be called: ``nar_hw.search(space, task, table, target_ms=...)`` is `nar_hw.search.loop.search`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from nar_hw.search.loop import search

        return search(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        from nar_hw.search.loop import search

        return inspect.signature(search)


sys.modules[__name__].__class__ = _Search
