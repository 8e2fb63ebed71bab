"""The look of the report: system fonts, one column, tables and pictures that never widen the page."""

WIDTH = 10.5  # inches; of every chart

CSS = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222; font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 28px 20px 60px; }
.kicker { margin: 0; color: #666; font-size: 13px; }
h1 { margin: 2px 0 8px; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 10px; padding-bottom: 4px; border-bottom: 1px solid #ddd; font-size: 18px; }
p { margin: 8px 0; }
.verdict { max-width: 62em; font-size: 17px; }
.note, figcaption, .footnotes, .mind { color: #555; font-size: 13px; }
.warning { margin: 12px 0; padding: 8px 14px; border-left: 4px solid #d99000; background: #fff8e8; font-size: 14px; }
.warning ul { margin: 4px 0; padding-left: 20px; overflow-wrap: anywhere; }
.mind { margin: 8px 0; padding-left: 20px; color: #8a5200; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { min-width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid #eee; text-align: left; white-space: nowrap; }
th { border-bottom: 1px solid #bbb; color: #555; font-size: 13px; font-weight: 600; }
.num { padding-left: 14px; padding-right: 0; text-align: right; }
.num + :not(.num) { padding-left: 26px; }
.dot { display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 50%; }
figure { margin: 0; }
.chart { margin: 14px 0 26px; }
.chart img { display: block; width: 100%; min-width: 720px; margin-top: 6px; image-rendering: auto; }
.wide { font-size: 12.5px; }
.wide th, .wide td { padding-right: 6px; }
.wide th { font-size: 11.5px; white-space: normal; vertical-align: bottom; }
.wide .num { padding-left: 6px; }
img { image-rendering: pixelated; }
.strip { display: flex; align-items: center; gap: 16px; margin: 0 0 8px; }
.strip figcaption { flex: 0 0 150px; }
.strip img, .picture img { display: block; flex: none; }
.pictures { display: flex; flex-wrap: wrap; gap: 16px; margin: 10px 0 22px; }
.picture { max-width: 100%; }
.picture img { max-width: 100%; }
.picture figcaption { margin-top: 4px; }
figcaption b { color: #222; }
small { display: block; font-size: 12px; line-height: 1.35; }
details { margin: 4px 0; }
summary { cursor: pointer; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 14px; }
pre { margin: 6px 0 14px; padding: 10px 12px; max-height: 420px; overflow: auto; background: #f7f7f7; font-size: 12px; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.93em; }
@media (max-width: 600px) {
  .strip { flex-wrap: wrap; gap: 4px; overflow-x: auto; }
  .strip figcaption { flex-basis: 100%; }
}
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #dcdfe4; }
  h2, th { border-color: #444; }
  td { border-color: #2a2d33; }
  th, .kicker, .note, figcaption, .footnotes { color: #a4abb6; }
  figcaption b { color: #dcdfe4; }
  .mind { color: #e0a860; }
  .warning { background: #33291a; }
  pre { background: #1f2227; }
  .chart img { filter: invert(0.9) hue-rotate(180deg); }
}
"""
