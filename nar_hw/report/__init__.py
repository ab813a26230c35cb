"""The report of a run: one self-contained HTML page, and its headline for the terminal."""

from nar_hw.report.page import render, write_report
from nar_hw.report.run import read_run
from nar_hw.report.terminal import terminal_table

__all__ = ["read_run", "render", "terminal_table", "write_report"]
