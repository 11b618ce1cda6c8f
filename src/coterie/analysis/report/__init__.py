"""One page of answers about a model's experts, each computed from a profile, with what becomes of it in both halves."""

from coterie.analysis.report.assembly import ReportPages, make_report
from coterie.analysis.report.findings import Answer, Claim, Picture, Report, Table
from coterie.analysis.report.pages import html_page, markdown_page
from coterie.analysis.report.salience import SalientTokens
from coterie.analysis.report.trial import Heads, Trial, run_trial

__all__ = [
    "Answer",
    "Claim",
    "Heads",
    "Picture",
    "Report",
    "ReportPages",
    "SalientTokens",
    "Table",
    "Trial",
    "html_page",
    "make_report",
    "markdown_page",
    "run_trial",
]
