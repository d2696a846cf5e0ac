"""Style and HTML builders of the report, which escape every text from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink:#1f2430; --soft:#5b6472; --line:#e3e6eb; --paper:#fcfcfa; --card:#ffffff;
  --accent:#2f5fa8; --warn:#8a5300; --warnback:#fff6e3; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8e8e4; --soft:#a4abb6; --line:#343a45;
  --paper:#15181d; --card:#1d2128; --accent:#8fb4f0; --warn:#f2c572; --warnback:#33290f; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:17px/1.6 Charter,"Bitstream Charter",Georgia,serif; }
main { max-width:60rem; margin:0 auto; padding:3rem 1.5rem 5rem; }
h1,h2,h3,.eyebrow,table,.facts,figcaption,.banner,.badge {
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
.eyebrow { color:var(--soft); font-size:.85rem; letter-spacing:.06em; text-transform:uppercase;
  margin:0; }
h1 { font-size:2.05rem; line-height:1.22; margin:.4rem 0 .9rem; letter-spacing:-.015em;
  text-wrap:balance; }
h2 { font-size:1.25rem; margin:3rem 0 .8rem; padding-top:1.1rem; border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:1.6rem 0 .4rem; }
p,li { max-width:44rem; }
.lead { font-size:1.12rem; color:var(--soft); margin-top:0; }
.facts { display:grid; grid-template-columns:repeat(auto-fit,minmax(7.4rem,1fr)); gap:1rem 1.5rem;
  margin:1.6rem 0; padding:0; }
.facts div { border-left:3px solid var(--line); padding-left:.8rem; }
.facts dt { color:var(--soft); font-size:.8rem; } .facts dd { margin:0; font-size:1.3rem;
  font-weight:600; font-variant-numeric:tabular-nums; }
.facts small { display:block; font-weight:400; font-size:.8rem; color:var(--soft); }
figure { margin:1.4rem 0; }
figure .art { background:#fff; border:1px solid var(--line); border-radius:8px; padding:.8rem; }
figure svg { width:100%; height:auto; display:block; }
figcaption { color:var(--soft); font-size:.9rem; margin-top:.5rem; max-width:46rem; }
.pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));
  gap:1.2rem; }
.pair figure { margin:0; }
.scroll { margin-top:1.4rem; overflow-x:auto; border:1px solid var(--line); border-radius:8px;
  background:var(--card); }
.tall { max-height:32rem; overflow-y:auto; }
table { border-collapse:collapse; width:100%; font-size:.85rem; font-variant-numeric:tabular-nums; }
th,td { padding:.42rem .75rem; text-align:right; white-space:nowrap;
  border-bottom:1px solid var(--line); }
thead th { position:sticky; top:0; background:var(--card); color:var(--soft); font-weight:600; }
tbody tr:last-child td { border-bottom:0; } .text { text-align:left; }
.badge { font-size:.78rem; border-radius:999px; padding:.1rem .55rem; background:var(--line);
  color:var(--ink); }
.badge.bad { background:var(--warnback); color:var(--warn); }
.banner { background:var(--warnback); color:var(--warn); border-radius:8px; padding:.8rem 1rem;
  font-weight:600; margin:0 0 1.8rem; }
.notes { padding-left:1.1rem; } .notes li { margin:.45rem 0; }
code { font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere; }
.provenance td:first-child { color:var(--soft); } .provenance td { text-align:left;
  white-space:normal; }
@media print { .tall { max-height:none; } h2,figure { break-inside:avoid; } }
"""


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page that loads no other file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(block for block in body if block)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *blocks: str) -> str:
    """Return a heading with blocks below it, or nothing if all blocks are empty."""
    inside = "\n".join(block for block in blocks if block)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{inside}\n</section>" if inside else ""


def subheading(text: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(items: Iterable[tuple[str, str, str]]) -> str:
    """Return key figures in large type, each from (name, value, small print)."""
    cells = (
        f"<div><dt>{escape(n)}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>"
        for n, v, s in items
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def figure(svg: str, caption: str, alt: str) -> str:
    """Return an inlined drawing (trusted SVG) with its caption (plain text)."""
    art = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return (
        f'<figure><div class="art">{art}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Sequence[int] = (),
    kind: str = "",
    tall: bool = False,
) -> str:
    """Return a scrolling table; columns in `text` are left-aligned, `Markup` cells not escaped."""
    head = "".join(f"<th{_left(i, text)}>{escape(h)}</th>" for i, h in enumerate(headings))
    body = "".join(
        f"<tr>{''.join(f'<td{_left(i, text)}>{_cell(c)}</td>' for i, c in enumerate(row))}</tr>\n"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if headings else ""
    outer = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{outer}" tabindex="0"><table class="{kind}">{top}<tbody>\n{body}'
        "</tbody></table></div>"
    )


class Markup(str):
    """HTML text, which is not escaped."""

    __slots__ = ()


def badge(text: str, bad: bool) -> Markup:
    """Return a small label."""
    return Markup(f'<span class="{"badge bad" if bad else "badge"}">{escape(text)}</span>')


def notes(items: Iterable[str]) -> str:
    """Return a list of sentences; `Markup` items are not escaped."""
    inside = "".join(f"<li>{_cell(i)}</li>" for i in items)
    return f'<ul class="notes">{inside}</ul>' if inside else ""


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


def _left(index: int, text: Sequence[int]) -> str:
    return ' class="text"' if index in text else ""
