"""`make presets-check`: every few-step graph of the newest official templates against our rows, as a Markdown table.

It needs the network, so that pytest does not collect it by itself. It fails for no difference: what differs is for
people to judge, and its table is kept in web/docs/presets-check.md.
"""

from collections import defaultdict
from datetime import date
from pathlib import Path

from presets.templates import PACKAGE, download, graphs, settings_of, verdict

PACK = Path(__file__).parents[3]
OUT = PACK / "web" / "docs" / "presets-check.md"


def rows_of(sampling, settings):
    """The rows whose files a graph loads, of whatever family, and the rows of the same source for its other passes."""
    rows = sampling.presets.read_presets()
    found = {}
    for family in sampling.backbones.BACKBONES:
        for name, is_lora in settings.files:
            if row := sampling.names.preset_by_name(name, family, is_lora).row:
                if not (row.words and sampling.names.preset_by_name(name, family, is_lora).word):
                    found[row.name] = row
    others = [row for row in rows.values() if any(row.name.startswith(name) for name in found)]
    second = [row for row in rows.values() if row.name.endswith("second-pass") and "ltx2-distilled" in found]
    return list({row.name: row for row in (*found.values(), *others, *second)}.values())


def test_templates(sampling):
    wheel = download(PACK / "build" / "templates")
    lines, without = [], defaultdict(list)
    for template, graph in graphs(wheel):
        for settings in settings_of(template, graph):
            rows = rows_of(sampling, settings)
            if rows:
                names = ", ".join(f"`{row.name}`" for row in rows)
                lines.append(f"| {template} | {names} | {verdict(settings, rows) or 'the same'} |")
            elif min((*settings.steps, *map(len, settings.lists))) <= 16:
                files = ", ".join(name for name, _ in settings.files)
                counts = " and ".join(map(str, settings.steps or map(len, settings.lists)))
                without[files].append(f"{template} ({counts})")
    version = wheel.name.split("-")[1]
    text = [
        "# The presets against the official templates", "",
        f"Made by `make presets-check` on {date.today().isoformat()} from {PACKAGE} {version}.", "",
        "| template | our rows | how it differs |", "| --- | --- | --- |", *dict.fromkeys(lines), "",
        "Graphs of few steps at CFG 1 whose files no row is for, with their steps:", "",
        *(f"- {files}: {', '.join(dict.fromkeys(found))}" for files, found in without.items()), "",
    ]  # fmt: skip
    OUT.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    assert lines
