"""The report: one self-contained HTML page for people who would rather look than read."""

from pipeline.report.page import dataset_report

__all__ = ["dataset_report"]
