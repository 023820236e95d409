"""Reports: fold results to tables, intervals, figures and pages; of several runs, what differs between them."""

from __future__ import annotations

from dfer_dist.report.files import write_comparison, write_report, write_summary
from dfer_dist.report.results import read_fold
from dfer_dist.report.sections import summary_table
from dfer_dist.report.summary import confusion_png, summarize

__all__ = ["confusion_png", "read_fold", "summarize", "summary_table", "write_comparison", "write_report", "write_summary"]
