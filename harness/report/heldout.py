"""Held-out errors of a latency model over a measurement table: table, JSON, figures and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.offline
from rich.console import Group, RenderableType
from rich.text import Text

from harness import stats
from harness.records import Interval
from harness.report import drawing, tables, words
from harness.units import format_time

if TYPE_CHECKING:
    from latency_models.tables import Prediction
    from latency_models.validation import KindError, NetworkError, Report

__all__ = [
    "by_family",
    "by_kind",
    "predicted_against_measured",
    "prediction_rows_json",
    "print_predictions",
    "print_validation",
    "report_json",
    "summary",
    "text_json",
    "validation_table",
    "write",
]

# A terminal shows this many of the networks, the worst first; the page and --json have them all.
WORST = 20
# Where a validation of a table leaves its page in the folder that it is given.
PAGE = "validation.html"
_CONFIG = {"responsive": True, "displayModeBar": False}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Predicted against measured</title>
<style>
body { margin: 0 auto; max-width: 1120px; padding: 24px; color: {{ ink }};
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 26px; } h2 { font-size: 18px; margin: 32px 0 4px; } p { max-width: 52em; }
table { border-collapse: collapse; font-size: 14px; }
td, th { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #e3e8ee; }
td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; }
</style>
<script>{{ plotly }}</script>
</head>
<body>
<h1>Predicted against measured latency</h1>
<p>{{ title }}</p>
<p>{{ summary }}</p>
{% for heading, caption, drawing in drawings %}
<h2>{{ heading }}</h2>
<p>{{ caption }}</p>
{{ drawing }}
{% endfor %}
<h2>Every network</h2>
<div class="wide"><table>
<tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
</body>
</html>
"""
_HEADINGS = ("network", "family", "how", "predicted", "interval", "measured", "error", "inside")


# --- text ---------------------------------------------------------------------------------------


def summary(report: Report) -> str:
    """The report in one sentence."""
    rank = "" if report.spearman is None else f", rank correlation {report.spearman:.3f}"
    return (
        f"{len(report.networks)} rows: median absolute error "
        f"{words.percent(report.median_error)}, mean {words.percent(report.mape)}, "
        f"{words.percent(report.within10, 0)} within 10 %{rank}; "
        f"{words.percent(report.covered, 0)} of the measurements lie inside intervals that are to "
        f"hold {words.percent(report.coverage, 0)}, whose median width is a factor of "
        f"{report.width:.2f}"
    )


def validation_table(report: Report, *, title: str) -> RenderableType:
    """The errors by network (the worst), family and kernel kind, and the summary."""
    worst = sorted(report.networks, key=lambda row: -abs(row.error))[:WORST]
    count = f"the worst {len(worst)} of {len(report.networks)}"
    networks = tables.new_table(f"Predicted against measured ({count})", *_HEADINGS, left=3)
    for row in worst:
        tables.add_row(networks, *_cells(row))
    families = tables.new_table("By family", "family", "rows", "median absolute error")
    for family, error in sorted(report.by_family, key=lambda pair: -pair[1]):
        rows = sum(row.family == family for row in report.networks)
        tables.add_row(families, family, str(rows), words.percent(error))
    kinds = tables.new_table(
        "By kernel kind (the networks' errors, weighted by the kind's share of their time)",
        "kind",
        "share of time",
        "networks",
        "absolute error",
        "signed error",
        "rank correlation",
    )
    for kind in report.by_kind:
        tables.add_row(kinds, *_kind_cells(kind))
    return Group(
        Text(title, style="bold"), networks, families, kinds, Text(_sentence(summary(report)))
    )


def _sentence(text: str) -> str:
    return f"{text}."


def _cells(row: NetworkError) -> tuple[str, ...]:
    how = ", ".join(filter(None, [row.precision, f"batch {row.batch}", row.power_mode]))
    return (
        row.name,
        row.family,
        how,
        format_time(row.predicted_s),
        words.between(Interval(row.low_s, row.high_s, 0.9), format_time),
        format_time(row.measured_s),
        f"{100 * row.error:+.1f} %",
        "yes" if row.covered else "no",
    )


def _kind_cells(kind: KindError) -> tuple[str, ...]:
    return (
        kind.kind,
        words.percent(kind.share),
        str(kind.networks),
        words.percent(kind.mape),
        f"{100 * kind.bias:+.1f} %",
        "" if kind.correlation is None else f"{kind.correlation:+.2f}",
    )


def print_validation(report: Report, *, title: str, folder: Path | None) -> None:
    """Print ``validation_table``, and where the page with the plots is."""
    parts = [validation_table(report, title=title)]
    if folder is not None:
        parts.append(Text(f"Report: {folder / PAGE}"))
    tables.show(Group(*parts))


def print_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Print how many rows were predicted, how well where that is known, and the warnings."""
    known = [
        abs(p.predicted_s / p.row.latency_s - 1) for p in predictions if p.row.latency_s is not None
    ]
    lines = [Text(f"Predictions of {len(predictions)} rows: {path}")]
    if known:
        lines.append(
            Text(
                f"{len(known)} of them measured: median absolute error "
                f"{words.percent(stats.median(known))}, largest {words.percent(max(known))}; "
                "rows that the latency model was calibrated on prove nothing"
            )
        )
    flagged = sorted({" ".join(group) for p in predictions for group in p.unsupported})
    if flagged:
        lines.append(
            Text(
                "warning: never measured on this board, so taken from the datasheet: "
                f"{words.and_list(flagged)}",
                style="yellow",
            )
        )
    tables.show(Group(*lines))


# --- json ---------------------------------------------------------------------------------------


def report_json(report: Report, *, title: str) -> dict[str, Any]:
    """The whole report, unrounded, in SI units; errors are predicted over measured, less one."""
    return {
        "title": title,
        "networks": [
            {
                "network": row.name,
                "family": row.family,
                "precision": row.precision,
                "batch": row.batch,
                "power_mode": row.power_mode,
                "predicted_s": row.predicted_s,
                "predicted_interval_s": {"low": row.low_s, "high": row.high_s},
                "measured_s": row.measured_s,
                "error": row.error,
                "inside": row.covered,
                "unsupported": [" ".join(group) for group in row.unsupported],
                "shares": dict(row.shares),
            }
            for row in report.networks
        ],
        "median_error": report.median_error,
        "mean_error": report.mape,
        "within_10_percent": report.within10,
        "rank_correlation": report.spearman,
        "coverage": report.coverage,
        "covered": report.covered,
        "median_width": report.width,
        "by_family": dict(report.by_family),
        "by_precision": dict(report.by_precision),
        "by_kind": [
            {
                "kind": kind.kind,
                "share": kind.share,
                "networks": kind.networks,
                "mean_error": kind.mape,
                "signed_error": kind.bias,
                "rank_correlation": kind.correlation,
            }
            for kind in report.by_kind
        ],
    }


def text_json(report: Report, *, title: str) -> str:
    """``report_json`` as text."""
    return json.dumps(report_json(report, title=title), indent=2, allow_nan=False)


def prediction_rows_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """One object a row of the table, in SI units; ``measured_s`` is null where it is not known."""
    return [
        {
            "network": str(p.row.network),
            "precision": p.row.precision,
            "batch": p.row.batch,
            "power_mode": p.row.power_mode,
            "latency_s": p.predicted_s,
            "interval_s": {"low": p.low_s, "high": p.high_s},
            "measured_s": p.row.latency_s,
            "unsupported": [" ".join(group) for group in p.unsupported],
        }
        for p in predictions
    ]


# --- figures ------------------------------------------------------------------------------------


def predicted_against_measured(report: Report) -> go.Figure:
    """Every network's prediction, with its interval, against its measurement."""
    figure = drawing.blank(height=460)
    ends = [end for r in report.networks for end in (r.low_s, r.high_s, r.measured_s)]
    axis = drawing.log_axis(ends, format_time, pad=1.12)
    low, high = (10**end for end in axis["range"])
    for factor, name, dash in ((1.0, "predicted = measured", "dot"), (1.1, "10 % off", "dash")):
        for side in {factor, 1 / factor}:
            figure.add_scatter(
                x=[low, high],
                y=[low * side, high * side],
                mode="lines",
                name=name,
                showlegend=side >= 1,
                line={
                    "color": drawing.MUTED if factor == 1 else drawing.BASELINE,
                    "width": 1,
                    "dash": dash,
                },
                hoverinfo="skip",
            )
    for precision in sorted({row.precision for row in report.networks}):
        rows = [row for row in report.networks if row.precision == precision]
        colour = drawing.PRECISION.get(precision, drawing.OTHER)
        predicted = [row.predicted_s for row in rows]
        intervals = [Interval(r.low_s, r.high_s, report.coverage) for r in rows]
        figure.add_scatter(
            x=[row.measured_s for row in rows],
            y=predicted,
            mode="markers",
            name=drawing.safe(precision),
            marker={"color": colour, "size": 7},
            error_y=drawing.bars(predicted, intervals, colour) | {"width": 0, "thickness": 0.8},
            text=[_hover(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title="measured latency", **axis)
    figure.update_yaxes(title="predicted latency", **axis)
    return figure


def by_family(report: Report) -> go.Figure:
    """Every network's error in the row of its family, the family with the largest at the top."""
    order = [name for name, _ in sorted(report.by_family, key=lambda pair: pair[1])]
    figure = drawing.blank(height=120 + 22 * len(order))
    figure.add_scatter(
        x=[100 * row.error for row in report.networks],
        y=[order.index(row.family) for row in report.networks],
        mode="markers",
        marker={"color": drawing.RESULT, "size": 8, "opacity": 0.6},
        text=[_hover(row) for row in report.networks],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title="error (predicted over measured)", ticksuffix=" %", zeroline=True)
    figure.update_yaxes(
        tickvals=list(range(len(order))), ticktext=[drawing.safe(name) for name in order]
    )
    return figure


def by_kind(report: Report) -> go.Figure:
    """The absolute error that goes with each kernel kind, that with the largest share on top."""
    kinds = report.by_kind[::-1]
    figure = drawing.blank(height=120 + 22 * len(kinds))
    figure.add_bar(
        x=[100 * kind.mape for kind in kinds],
        y=list(range(len(kinds))),
        orientation="h",
        marker={"color": drawing.RESULT, "opacity": 0.75},
        text=[f"{words.percent(kind.share)} of the time" for kind in kinds],
        textposition="outside",
        cliponaxis=False,
        customdata=["<br>".join(drawing.safe(cell) for cell in _kind_cells(k)) for k in kinds],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    widest = max((100 * kind.mape for kind in kinds), default=1.0)
    figure.update_xaxes(
        title="absolute error, weighted by the kind's share of each network's time",
        ticksuffix=" %",
        range=[0, 1.25 * widest or 1.0],
    )
    figure.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[drawing.safe(kind.kind) for kind in kinds]
    )
    return figure


def _hover(row: NetworkError) -> str:
    name, family, how, predicted, interval, measured, error, _ = map(drawing.safe, _cells(row))
    return (
        f"<b>{name}</b><br>{family}, {how}<br>predicted {predicted} ({interval})"
        f"<br>measured {measured}, error {error}"
    )


def write(report: Report, path: Path, *, title: str) -> None:
    """Write the page, which opens without a network, to ``path``."""
    drafts = (
        (
            "Predicted against measured",
            "On the dotted line a prediction is right; an interval that reaches it holds the "
            "measured value.",
            predicted_against_measured(report),
        ),
        (
            "By family",
            "Each point is a network; those in a row share their family.",
            by_family(report),
        ),
        (
            "By kernel kind",
            "The error of the networks that spend their time in a kind of kernel, whichever kernel "
            "is to blame.",
            by_kind(report),
        ),
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_PAGE).render(
        ink=drawing.INK,
        title=_sentence(title),
        summary=_sentence(summary(report)),
        plotly=markupsafe.Markup(plotly.offline.get_plotlyjs()),
        drawings=[
            (heading, caption, _drawing(figure, index))
            for index, (heading, caption, figure) in enumerate(drafts)
        ],
        headings=_HEADINGS,
        rows=[_cells(row) for row in sorted(report.networks, key=lambda row: -abs(row.error))],
    )
    path.write_text(text, encoding="utf-8")


def _drawing(figure: go.Figure, index: int) -> markupsafe.Markup:
    return markupsafe.Markup(
        figure.to_html(
            full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"figure-{index}"
        )
    )
