"""What every graph in workflows/ must be for somebody who opens it for the first time; tests/browser looks at wires."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui.serve import PACK

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]
DEMO_MODEL = "snoopi-shapes.safetensors"
NO_ADDRESS = {  # nothing that we could read supports one
    "instaflow.safetensors", "yoso-lora.safetensors", "pixart-alpha-dmd.safetensors",
    DEMO_MODEL,  # `make demo` makes it
}  # fmt: skip
FILE = re.compile(r"\.(safetensors|bin|ckpt|pt)$")
QUALITY = re.compile(r"blur|bad|worst|ugly|low|poor|quality|deform|artifact|noise", re.IGNORECASE)
every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture
def graph(path):
    return json.loads(path.read_text())


def of_kind(graph, kind):
    return [node for node in graph["nodes"] if kind in node["type"]]


def test_the_beginners_graph_is_the_first_and_a_short_one():
    first = json.loads(WORKFLOWS[0].read_text())
    assert WORKFLOWS[0].stem == "01 Negative prompt in one step" and len(first["nodes"]) <= 8
    assert len({path.stem[:2] for path in WORKFLOWS}) == len(WORKFLOWS)


def test_the_most_used_few_step_models_have_one():
    presets = {node["widgets_values"][2] for path in WORKFLOWS for node in json.loads(path.read_text())["nodes"]
               if node["type"] == "SNOOPIOneStepSampler"}  # fmt: skip
    assert presets >= {
        "flux-schnell", "flux2-klein", "z-image-turbo", "qwen-image-lightning-4step", "sd35-turbo", "ltx2-distilled",
        "wan22-lightx2v-high-noise", "wan22-lightx2v-low-noise", "krea2-turbo", "anima-turbo", "auto",
    }  # fmt: skip


@every
def test_name_is_short_and_numbered(path):
    assert re.fullmatch(r"\d\d [^()]{3,29}", path.stem)


@every
def test_note_of_at_most_60_words(graph):
    (note,) = of_kind(graph, "Note")
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and len(text.split()) <= 60


@every
def test_at_most_1500_pixels_wide(graph):
    left = min(node["pos"][0] for node in graph["nodes"])
    assert max(node["pos"][0] + node["size"][0] for node in graph["nodes"]) - left <= 1500


@every
def test_nothing_overlaps_in_nodes_2_0_where_no_node_is_narrower_than_225_pixels(graph):
    boxes = [(*node["pos"], max(node["size"][0], 225), node["size"][1]) for node in graph["nodes"]]
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, across, down in boxes[:number]:
            assert x >= left + across or left >= x + width or y - 30 >= top + down or top - 30 >= y + height


@every
def test_every_node_but_the_note_lies_in_one_numbered_group(graph):
    groups = [(group["title"], *group["bounding"]) for group in graph["groups"]]
    assert [title[0] for title, *_ in sorted(groups)] == [str(number) for number in range(1, len(groups) + 1)]
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        around = [
            title
            for title, left, top, across, down in groups
            if left <= x and x + width <= left + across and top <= y - 30 and y + height <= top + down
        ]
        assert len(around) == (0 if "Note" in node["type"] else 1), node.get("title", node["type"])
    for number, (_, x, y, width, height) in enumerate(groups):
        for _, left, top, across, down in groups[:number]:
            assert x >= left + across or left >= x + width or y >= top + down or top >= y + height


@every
def test_every_node_names_its_pack(graph):
    ours = ("SNOOPI", "NASA")
    for node in graph["nodes"]:
        if "Note" not in node["type"]:
            expected = PROJECT["name"] if node["type"].startswith(ours) else "comfy-core"
            assert node["properties"]["cnr_id"] == expected and node["properties"]["ver"]


@every
def test_every_file_has_an_address_and_a_folder(graph):
    (note,) = (node["widgets_values"][0] for node in of_kind(graph, "Note"))
    for node in of_kind(graph, "Loader"):
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        files = {Path(value).name for value in node["widgets_values"] if FILE.search(str(value))}
        assert set(models) == files - NO_ADDRESS
        for name, model in models.items():
            source = re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/([\w./-]+)", model["url"])
            assert model["directory"] in ("checkpoints", "diffusion_models", "loras", "text_encoders", "vae")
            assert Path(source[1]).name == name or f"`{source[1]}`" in note and f"renamed to `{name}`" in note


@every
def test_the_negative_names_one_visible_thing(graph):
    (negative,) = (node["widgets_values"][0] for node in graph["nodes"] if node.get("title") == "Negative prompt")
    (prompt,) = (node["widgets_values"][0] for node in graph["nodes"] if node.get("title") == "Prompt")
    assert re.fullmatch(r"[a-z]+", negative) and not QUALITY.search(negative) and negative not in prompt.split()


@every
def test_thumbnail_is_square_and_split(path):
    with Image.open(path.with_suffix(".jpg")) as image:
        assert image.width == image.height >= 384
        pixels = np.asarray(image.convert("L"), dtype=float)
    middle = pixels.shape[1] // 2
    left, right = pixels[60:-60, 10 : middle - 10], pixels[60:-60, middle + 10 : -10]
    assert left.std() > 10 and right.std() > 10 and np.abs(left - right).mean() > 3
    assert path.with_suffix(".jpg").stat().st_size < 100_000


@pytest.mark.parametrize("name", ["without_vs_with", "NASAAlphaSweep", "NASAAttentionMap"])
def test_pictures_of_what_the_nodes_make_open_as_a_graph_where_they_are_dropped(name):
    with Image.open(PACK / "web" / "docs" / f"{name}.png") as image:
        inside = json.loads(image.text["workflow"])
    graphs = [json.loads(path.read_text()) for path in WORKFLOWS]
    assert {node["type"] for node in inside["nodes"]} in [{node["type"] for node in graph["nodes"]} for graph in graphs]
    assert of_kind(inside, "NASA") and of_kind(inside, "Note")
