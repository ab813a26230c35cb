"""What mkdocs does with these docs beyond Markdown: pages made from the program, figures read from the result files."""

from typing import Any

import figures
import reference
from mkdocs.structure.files import File, Files

EXAMPLES = ("examples/tiny_imagenet/results.json",)
"""Result files outside benchmarks/results."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the made pages, and the result files that pages link to."""
    for place, make in reference.PAGES.items():
        files.append(File.generated(config, place, content=make()))
    for path in sorted(figures.RESULTS.iterdir()):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    for name in EXAMPLES:
        files.append(File.generated(config, name, abs_src_path=str(figures.ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the figures; one that its file does not hold ends the build."""
    return figures.filled(markdown)
