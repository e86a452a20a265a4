"""The style sheet and the few lines of script inside report.html. Nothing to run."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --ink: #1f2328; --soft: #57606a; --line: #d8dde3;
  --accent: #0b62c4; --good: #1a7f37; --bad: #c0352b; --unsure: #9a6700; --own: #eaf3ff; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #171b21; --ink: #dfe4ea; --soft: #a0a9b4;
  --line: #303843; --accent: #6cb2ff; --good: #4ac26b; --bad: #ff7b72; --unsure: #e3b341; --own: #1b2b40; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 3rem; max-width: 84rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.2rem; margin: 0 0 0.7rem; }
h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 0.7rem; }
a { color: var(--accent); }
.facts, .small, .interval, .arrow { color: var(--soft); }
.facts, .small { font-size: 0.875rem; overflow-wrap: anywhere; }
section, .warning { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem clamp(0.8rem, 2vw, 1.3rem); margin: 1rem 0; }
.warning { border-left: 6px solid var(--unsure); }
.verdict { font-size: 1.25rem; line-height: 1.4; font-weight: 600; padding-left: 0.9rem;
  border-left: 6px solid var(--unsure); }
.verdict.better { border-color: var(--good); }
.verdict.worse { border-color: var(--bad); }
ul, ol { padding-left: 1.2rem; margin: 0 0 0.7rem; }
.notes { color: var(--unsure); }
nav { display: flex; flex-wrap: wrap; gap: 0.4rem 1.2rem; }
nav a { padding: 0.3rem 0; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
thead th { font-size: 0.85rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); white-space: normal;
  min-width: 8.5rem; padding-left: 0; overflow-wrap: anywhere; }
tr.own td { background: var(--own); }
tr.own th { font-weight: 700; }
.arrow { font-weight: 400; white-space: nowrap; }
.interval { display: block; font-size: 0.78rem; }
details { margin-top: 0.7rem; }
summary { cursor: pointer; padding: 0.2rem 0; }
dt { font-weight: 600; }
dd { margin: 0 0 0.5rem; }
.charts { display: grid; gap: 0 1rem; align-items: start; }
.charts section { min-width: 0; }
.charts img { display: block; width: 100%; max-width: 40rem; height: auto; margin: 0 auto; }
article { border-top: 1px solid var(--line); padding: 1rem 0 0.4rem; }
.count { color: var(--soft); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
figcaption { font-size: 0.875rem; margin-bottom: 0.3rem; }
.clips { display: grid; gap: 1rem; }
.joined { margin-top: 1rem; }
.spectrogram { display: grid; grid-template-columns: 3rem 1fr; margin-top: auto; }
.image { position: relative; height: 150px; background: #000004; border-radius: 4px; overflow: hidden; }
.image img { width: 100%; height: 100%; display: block; }
.seam { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #ffffff; opacity: 0.85; }
.hertz { position: relative; font-size: 0.7rem; color: var(--soft); }
.hertz span { position: absolute; right: 0.4rem; transform: translateY(50%); white-space: nowrap; }
.times { grid-column: 2; display: flex; justify-content: space-between; font-size: 0.7rem; color: var(--soft); }
audio { width: 100%; margin-top: 0.4rem; min-height: 40px; }
@media (min-width: 40rem) { .clips { grid-template-columns: 1fr 1fr; } }
@media (min-width: 62rem) { .charts { grid-template-columns: 1fr 1fr; }
  .clips { grid-template-columns: repeat(4, 1fr); } }
@media print { .scroll { overflow: visible; } audio, nav { display: none; } }
"""

# One player at a time: two at once compare badly.
SCRIPT = """
document.addEventListener("play", function (event) {
  for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
}, true);
"""
