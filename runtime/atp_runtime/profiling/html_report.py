"""A profile as one page that needs nothing else: no network, no script."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from atp_runtime.profiling.charts import memory, part_name, roofline, tokens, waterfall
from atp_runtime.profiling.limits import share_of_ceiling
from atp_runtime.profiling.profile_file import DENSE, PRUNED, Profile, Row
from atp_runtime.profiling.shares import share_lines
from atp_runtime.profiling.text_report import sensor_line
from atp_runtime.schema import to_json

_STYLE = """
:root { --ink: #1d2230; --paper: #fff; --pale: #6c7486; --rule: #dfe3ea; --dense: #8a94a8;
  --pruned: #1273c4; --segment: #1273c4; --other: #3f93d8; --vision: #7d56b3; --select: #d9481c;
  --host: #e0a021; --head: #2a9d6f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --paper: #14171f; --pale: #98a1b3;
  --rule: #2c3240; --dense: #7e889c; --pruned: #4da3ea; --segment: #2a78bd; --other: #1c5c96; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 960px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .4rem; }
p { margin: .3rem 0 .8rem; } .pale, .small { color: var(--pale); fill: var(--pale); }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 1.2rem 0; padding: 0; }
.tiles li { list-style: none; flex: 1 1 180px; border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px 14px; } .tiles b { display: block; font-size: 1.45rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 13px; fill: var(--ink); }
svg .small { font-size: 12px; fill: var(--pale); } svg .bar { fill: #fff; font-size: 12px; }
.segment-even { fill: var(--segment); } .segment-odd { fill: var(--other); }
.vision { fill: var(--vision); } .select { fill: var(--select); } .host { fill: var(--host); }
.head { fill: var(--head); } .dense { fill: var(--dense); } .pruned { fill: var(--pruned); }
.line { fill: none; stroke-width: 2; } .line.dense { stroke: var(--dense); fill: none; }
.line.pruned { stroke: var(--pruned); fill: none; } .roof { stroke: var(--ink); }
.rule { stroke: var(--rule); } img { max-width: 100%; border-radius: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; } pre { white-space: pre-wrap;
  font-size: .8rem; } .key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin: 0 5px 0 14px; vertical-align: -1px; background: var(--c); }
"""
_KEY = {
    "segment": "segments",
    "select": "selection",
    "vision": "vision",
    "head": "head",
    "host": "host",
}
_HEAD = (
    "part",
    "tokens in",
    "tokens out",
    "min ms",
    "median",
    "90 %",
    "99 %",
    "GFLOP/s",
    "GB/s",
    "of best",
)


def html_report(profile: Profile, pictures: Sequence[Image.Image]) -> str:
    """The page.

    Args:
        profile: What was measured.
        pictures: Photos with what was pruned of them.
    """
    title = f"{escape(profile.bundle.name)} on {escape(profile.setting.machine)}"
    body = "\n".join(_sections(profile, pictures))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _sections(profile: Profile, pictures: Sequence[Image.Image]) -> Iterator[str]:
    bundle, asked = profile.bundle, profile.asked
    yield f"<h1>{escape(bundle.name)}</h1>"
    yield (
        f'<p class="pale">{escape(bundle.precision)}, {bundle.layers} layers · '
        f"{escape(str(profile.setting))} · {asked.runs} runs by turns, {escape(asked.source)}</p>"
    )
    yield f'<ul class="tiles">{"".join(_tiles(profile))}</ul>'
    yield "<h2>To the first token</h2>"
    yield f'<p class="key small">{"".join(_keys())}</p>{waterfall(profile)}'
    yield from (f'<p class="small">{escape(line)}</p>' for line in share_lines(profile))
    yield "<h2>Tokens of each segment</h2>" + _modes_key(profile) + tokens(profile)
    if pictures:
        yield "<h2>What was pruned</h2>"
        yield from (_image(picture) for picture in pictures)
    best = profile.ceiling
    if best and roofline(profile):
        yield (
            f"<h2>Against the machine</h2><p>At best it makes {best.gflops:.0f} GFLOP/s and reads "
            f"{best.gbps:.1f} GB/s. Each point is a stage, in prefill or decode.</p>"
            f"{_modes_key(profile)}{roofline(profile)}"
        )
    if memory(profile):
        yield "<h2>Memory during an answer</h2>" + _modes_key(profile) + memory(profile)
    if profile.sensors:
        lines = "".join(f"<li>{escape(sensor_line(row))}</li>" for row in profile.sensors)
        yield f"<h2>Sensors</h2><ul>{lines}</ul>"
    for name, mode in profile.modes.items():
        yield f'<h2>Every part, {name}</h2><div class="wide">{_table(profile, mode.rows)}</div>'
    yield "<h2>Provenance</h2>" + _provenance(profile)


def _tiles(profile: Profile) -> Iterator[str]:
    for name, mode in profile.modes.items():
        yield _tile(_ms(mode.first_token.median), f"to the first token, {name}")
    if profile.speedup:
        yield _tile(f"{profile.speedup:.2f} x", "sooner by pruning")
    last = profile.modes.get(PRUNED) or profile.modes[DENSE]
    if last.token:
        yield _tile(f"{1 / last.token.median:.1f} /s", "tokens behind the first")
    if PRUNED in profile.modes:
        yield _tile(f"{last.visual_tokens:.0f}", "visual tokens on average over the layers")
    if last.joules is not None:
        yield _tile(f"{last.joules:.1f} J", "per answer")
    yield _tile(_ms(profile.cold.load_seconds), "to load")
    if profile.peak_memory_bytes:
        yield _tile(f"{profile.peak_memory_bytes / 2**20:.0f} MiB", "peak memory")


def _tile(number: str, told: str) -> str:
    return f"<li><b>{number}</b>{told}</li>"


def _keys() -> Iterator[str]:
    for name, told in _KEY.items():
        yield f'<i style="--c: var(--{name})"></i>{told}'


def _modes_key(profile: Profile) -> str:
    marks = (f'<i style="--c: var(--{name})"></i>{name}' for name in profile.modes)
    return f'<p class="key small">{"".join(marks)}</p>'


def _image(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.convert("RGB").save(data, "JPEG", quality=85)
    encoded = base64.b64encode(data.getvalue()).decode()
    told = "the photo, and behind each pruning point what was left of it"
    return f'<p><img alt="{told}" src="data:image/jpeg;base64,{encoded}"></p>'


def _table(profile: Profile, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    lines = "".join(f"<tr>{''.join(_cells(profile, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cells(profile: Profile, row: Row) -> Iterator[str]:
    yield f"<td>{escape(part_name(row))}</td>"
    for count in (row.entering, row.leaving):
        yield f"<td>{'' if count is None else f'{count:.0f}'}</td>"
    took = row.seconds
    for seconds in (took.minimum, took.median, took.p90, took.p99):
        yield f"<td>{1e3 * seconds:.3f}</td>"
    for rate in (row.gflops, row.gbps):
        yield f"<td>{'' if rate is None else f'{rate:.1f}'}</td>"
    share = share_of_ceiling(row, profile.ceiling)
    yield f"<td>{'' if share is None else f'{100 * share:.0f} %'}</td>"


def _provenance(profile: Profile) -> str:
    told = {name: value for name, value in to_json(profile).items() if name != "modes"}
    return f"<pre>{escape(json.dumps(told, indent=2))}</pre>"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"
