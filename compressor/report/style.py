"""The page's style sheet: light and dark screens, and paper.

One accent marks the small model everywhere; everything else is ink and greys, so that the eye finds what was gained.
"""

from collections.abc import Mapping

COLOURS = {
    "paper": ("#fdfdfb", "#17191c"),
    "ink": ("#1b1c1e", "#e4e3de"),
    "quiet": ("#63656a", "#9c9ea2"),
    "rule": ("#dcdcd6", "#373a3f"),
    "faint": ("#ecece7", "#26292d"),
}
"""On a light and on a dark screen."""
SERIES = {
    "series-1": ("#1c5fa8", "#74b3f2"),
    "series-2": ("#b3541e", "#e8935c"),
    "series-3": ("#5f7a2e", "#a3c266"),
    "series-4": ("#7a4f9a", "#bf9adf"),
    "series-5": ("#8a8b87", "#8f918d"),
    "series-6": ("#a8862a", "#d9b95c"),
    "series-7": ("#2f8f8f", "#6cc7c7"),
    "series-8": ("#b03a62", "#ec86a8"),
}
"""Of the lines of a plot; the first is the accent."""


def variables(colours: Mapping[str, tuple[str, str]], *, dark: bool) -> str:
    """Colours as CSS variables."""
    return " ".join(f"--{name}: {of[dark]};" for name, of in colours.items())


PLOTS = "".join(
    f"svg .fill-{name} {{ fill: var(--{name}); }} svg .stroke-{name} {{ stroke: var(--{name}); }}\n"
    for name in COLOURS | SERIES
)
ALONE = f"""
:root {{ color-scheme: light dark; {variables(COLOURS | SERIES, dark=False)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(COLOURS | SERIES, dark=True)} }} }}
svg {{ background: var(--paper); font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }}
{PLOTS}"""
"""Of a plot that stands in a file of its own."""

STYLE = (
    f"""
:root {{ {variables(COLOURS | SERIES, dark=False)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(COLOURS | SERIES, dark=True)} }} }}
"""
    + """
:root {
  color-scheme: light dark;
  --panel: #f5f5f0;
  --dense: #a9aaa6; --masked: #cdb58b; --small: #1c5fa8; --caution: #9a4a00; --caution-paper: #fbf3e6;
  --prose: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif;
  --labels: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --panel: #1f2226;
    --dense: #6d7076; --masked: #8d7a54; --small: #74b3f2; --caution: #f0b266; --caution-paper: #2b2419;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.5 var(--prose); }
main, header, footer { max-width: 1096px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 44px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 21px; line-height: 1.25; font-weight: 600; margin: 0 0 14px; }
h3 { font-size: 17px; line-height: 1.3; font-weight: 600; margin: 8px 0 8px; }
h3.caution { color: var(--caution); margin-bottom: 2px; }
p { margin: 0 0 12px; }
.subtitle { color: var(--quiet); margin: 6px 0 0; overflow-wrap: anywhere; }
nav {
  display: flex; flex-wrap: wrap; column-gap: 20px; font: 13px/1.9 var(--labels); margin: 14px 0 0;
  border-top: 1px solid var(--rule); padding-top: 8px;
}
nav a { color: var(--quiet); text-decoration: none; white-space: nowrap; }
nav a:hover { color: var(--small); text-decoration: underline; }
section { display: grid; grid-template-columns: minmax(0, 720px) minmax(0, 1fr); column-gap: 48px; padding: 34px 0 0; }
section > * { grid-column: 1; min-width: 0; }
section > h2, section > .wide, section > .full { grid-column: 1 / -1; }
section > h2 { border-top: 1px solid var(--ink); padding-top: 9px; }
section > .note {
  grid-column: 2; grid-row: 2 / span 40; font-size: 14px; line-height: 1.45; color: var(--quiet);
  margin: 3px 0 0;
}
.note strong { color: var(--ink); font-weight: 600; }
code { font: 0.88em/1.4 var(--mono); overflow-wrap: anywhere; }
strong { font-weight: 600; }

.headline { display: flex; align-items: baseline; gap: 22px; margin: 2px 0 16px; }
.headline .figure {
  font: 400 66px/1 var(--labels); letter-spacing: -0.04em; color: var(--small);
  font-variant-numeric: tabular-nums; white-space: nowrap;
}
.headline .claim { font-size: 22px; line-height: 1.25; margin: 0; }
.headline .detail { font: 14px/1.5 var(--labels); color: var(--quiet); margin: 4px 0 0; }
.headline.caution .figure { color: var(--caution); }
.headline.caution .claim { color: var(--caution); }
p.quiet { color: var(--quiet); }
p.caution { color: var(--caution); }
ul.caution { color: var(--caution); margin-top: 0; }
p.missing {
  font: 14px/1.55 var(--labels); color: var(--quiet); border-left: 3px solid var(--rule);
  padding: 3px 0 3px 12px;
}
p.missing code { color: var(--ink); white-space: pre-wrap; }
ul, ol { margin: 0 0 14px; padding-left: 22px; }
li { margin: 0 0 4px; overflow-wrap: anywhere; }

.scroll { overflow-x: auto; margin: 4px 0 18px; }
table {
  border-collapse: collapse; width: 100%; font: 13px/1.35 var(--labels);
  font-variant-numeric: tabular-nums lining-nums;
}
caption { text-align: left; color: var(--quiet); padding: 0 0 4px; }
th {
  font-weight: 400; color: var(--quiet); text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--ink); padding: 3px 14px 3px 0;
}
.wide td:first-child { white-space: nowrap; }
td { vertical-align: baseline; border-bottom: 1px solid var(--faint); padding: 3px 14px 3px 0; }
th:last-child, td:last-child { padding-right: 0; }
th.numeric, td.numeric { text-align: right; white-space: nowrap; }
tbody th { color: var(--ink); padding-top: 14px; border-bottom: 1px solid var(--rule); font-weight: 600; }
tbody th code { font-weight: 600; font-size: 0.95em; }
tr.quiet td, tr.quiet code { color: var(--quiet); }
tr.accented td { color: var(--small); font-weight: 600; }
.board table { font-size: 15px; }
.board td { padding-top: 6px; padding-bottom: 6px; }
dl {
  display: grid; grid-template-columns: minmax(130px, max-content) minmax(0, 1fr); gap: 2px 22px;
  margin: 0 0 16px; font: 14px/1.5 var(--labels); font-variant-numeric: tabular-nums lining-nums;
}
dt { color: var(--quiet); max-width: 230px; }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 0 0 16px; font: 14px/1.5 var(--labels); }
summary { cursor: pointer; color: var(--quiet); }

figure { margin: 0 0 22px; }
figcaption { font: 13px/1.45 var(--labels); color: var(--quiet); margin-top: 4px; }
.drawings { display: grid; gap: 14px 24px; }
.drawings.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.drawings.three { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px 12px; }
svg { display: block; max-width: 100%; height: auto; overflow: visible; }
svg.inline { display: inline-block; vertical-align: -1px; overflow: hidden; }
svg text { font: 12px var(--labels); fill: var(--ink); font-variant-numeric: tabular-nums lining-nums; }
"""
    + PLOTS
    + """
svg .head { font-weight: 600; font-size: 13px; }
svg .panel { fill: var(--quiet); }
svg .axis { font-size: 11px; fill: var(--quiet); }
svg .value { fill: var(--ink); }
svg .label.quiet, svg .name.again { fill: var(--quiet); }
svg .label.small, svg .name.small { fill: var(--small); font-weight: 600; }
svg .cut { fill: var(--paper); font-weight: 600; }
svg line { stroke: var(--quiet); stroke-width: 1; }
svg .tick { stroke: var(--faint); }
svg .frame { stroke: var(--rule); }
svg .one { stroke: var(--quiet); stroke-dasharray: 2 2; }
svg .whisker { stroke: var(--ink); stroke-width: 1; }
svg .leader { stroke: var(--dense); stroke-width: 0.75; }
svg .dot { stroke: var(--paper); stroke-width: 1; }
svg .bar.dense, svg .dot.dense { fill: var(--dense); }
svg .bar.again { fill: none; stroke: var(--dense); }
svg .bar.before { fill: var(--rule); }
svg .bar.masked, svg .dot.masked { fill: var(--masked); }
svg .bar.small, svg .dot.small { fill: var(--small); }
tr.quiet svg .bar.small { fill: var(--dense); }
svg .curve { fill: none; stroke: var(--small); stroke-width: 1.5; }
svg .calls { fill: none; stroke-width: 2.2; stroke-linecap: round; opacity: 0.55; }
svg .calls.dense, svg .median.dense { stroke: var(--dense); }
svg .calls.small, svg .median.small { stroke: var(--small); }
footer { color: var(--quiet); font: 13px/1.5 var(--labels); padding-top: 34px; padding-bottom: 44px; }

@media (max-width: 900px) {
  section { display: block; }
  section > .note { margin: 0 0 14px; }
  .drawings.two, .drawings.three { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 600px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  .headline { display: block; }
  .headline .figure { display: block; margin-bottom: 8px; }
}
@media print {
  @page { size: A4; margin: 16mm 15mm 18mm; }
  :root {
    color-scheme: light;
    --paper: #fff; --ink: #000; --quiet: #55575b; --rule: #cfcfca; --faint: #e6e6e1;
    --dense: #a9aaa6; --masked: #cdb58b; --small: #164f90; --caution: #8a4200; --caution-paper: #fff;
  }
  body { font-size: 10.5pt; line-height: 1.4; }
  main, header, footer { max-width: none; padding: 0; }
  header { padding-top: 0; }
  nav { display: none; }
  h1 { font-size: 20pt; }
  h2 { font-size: 14pt; break-after: avoid; }
  h3 { font-size: 11pt; break-after: avoid; }
  section { display: block; padding-top: 16pt; }
  section > .note { font-size: 9pt; margin: 0 0 8pt; }
  .headline .figure { font-size: 46pt; }
  .headline .claim { font-size: 14pt; }
  .headline, figure svg, tr, dt, dd, li, figcaption { break-inside: avoid; }
  .headline, p.missing, p.caution { break-inside: avoid; }
  figcaption { break-before: avoid; }
  thead { display: table-header-group; }
  caption { break-after: avoid; }
  tbody tr:has(th) { break-after: avoid; }
  .scroll { overflow: visible; }
  table, dl, figcaption { font-size: 8.5pt; }
  .wide table { font-size: 6.5pt; }
  .wide th, .wide td { padding-right: 4pt; }
  .board table { font-size: 10pt; }
  .drawings.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .drawings.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  details { display: none; }
  a { color: inherit; text-decoration: none; }
}
"""
)
