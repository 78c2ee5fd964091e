"""The nodes in other languages: locales/ and the help pages hold what the nodes and the English pages hold, no more.

The frontend reads these keys of nodeDefs.json (litegraphService.ts, NodeTooltip.vue); it does not translate the entries
of lists. Where a help page in `web/docs/<node>/<language>.md` is missing, it shows `web/docs/<node>.md`.
"""

import json
import re
from collections import Counter

import pytest

from comfyui.serve import PACK

LANGUAGES = ("de", "es", "fr", "ja", "ko", "pt-BR", "ru", "zh", "zh-TW")
DOCS = PACK / "web" / "docs"
PAGES = ("NASACrossAttentionPatch", "SNOOPIOneStepSampler")
OPTIONS = re.compile(r"(?<![A-Za-z])(?:auto|nasa|difference|vsf)(?![A-Za-z])")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
CODE = re.compile(r"`([^`]+)`")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
KINDS = re.compile(r"#+ |- |\||!\[|```")


def words(language):
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flat(tree, *path):
    """{path: text} of a tree of dictionaries."""
    if not isinstance(tree, dict):
        return {".".join(path): tree}
    return {key: text for name, part in tree.items() for key, text in flat(part, *path, name).items()}


@pytest.fixture(scope="module")
def english(pack):
    """What a nodeDefs.json has to hold, in English; an output named as its type is translated by the frontend."""
    tree = {}
    for node in pack.nodes.NODES:
        schema = node.GET_SCHEMA()
        tree[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {entry.id: {"name": entry.id, "tooltip": entry.tooltip} for entry in schema.inputs},
            "outputs": {
                str(slot): {"tooltip": entry.tooltip}
                | ({} if entry.display_name == entry.get_io_type() else {"name": entry.display_name})
                for slot, entry in enumerate(schema.outputs)
            },
        }
    return tree


def test_the_languages_are_those():
    assert tuple(sorted(folder.name for folder in (PACK / "locales").iterdir())) == tuple(sorted(LANGUAGES))
    assert {path.name for path in (PACK / "locales").glob("*/*")} == {"nodeDefs.json"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_every_node_is_translated_and_none_is_left_over(english, language):
    wanted, there = flat(english), flat(words(language))
    assert (wanted.keys() - there.keys(), there.keys() - wanted.keys()) == (set(), set()), "missing, left over"
    same = {key for key, text in wanted.items() if key.endswith(("tooltip", "description")) and there[key] == text}
    assert not same and all(text.strip() == text != "" for text in there.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_and_options_are_those_of_the_english_text(english, language):
    """A text that says another number than the English one has not followed it; the list of models is not repeated."""
    there = flat(words(language))
    for key, text in flat(english).items():
        if not key.endswith("inputs.model.tooltip"):
            for kind in (NUMBER, OPTIONS):
                assert Counter(kind.findall(there[key])) == Counter(kind.findall(text)), (key, text, there[key])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_vue_i18n_reads_as_syntax(language):
    """A | would cut the text in two, @ and {} are looked up, and older frontends run HTML."""
    assert not {key: text for key, text in flat(words(language)).items() if set(text) & set("|@{}<>")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_input_has_one_name_on_all_nodes(language):
    for part in ("inputs", "outputs"):
        names = {}
        for node in words(language).values():
            for key, entry in node[part].items():
                names.setdefault(key if part == "inputs" else entry.get("name"), set()).add(entry.get("name"))
        assert {key: found for key, found in names.items() if len(found) > 1} == {}


def blocks(page):
    """The page's headings, list items, rows, pictures, code and paragraphs, each in one line."""
    found, in_code = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_fence = line.startswith("```")
        if in_code or is_fence:
            if is_fence and not in_code:
                found.append("")
            in_code ^= is_fence
            found[-1] += line.split("#")[0].rstrip() + "\n"
        elif not line or KINDS.match(line) or not found or not found[-1]:
            found.append(line)
        else:
            found[-1] += " " + line.strip()
    return [block for block in found if block]


def shape(block, names):
    """What a translation keeps of a block: its kind, code, numbers, pictures, and the inputs it names.

    `names` has the name by which the node shows an input; where it differs, its first mention adds the input's own.
    """
    for name, shown in names.items():
        block = block.replace(f"**{shown}** (`{name}`)", f"**{shown}**")
    kind = KINDS.match(block)
    if block.startswith("```"):  # what is before the colons
        return [line.split(":")[0] for line in block.splitlines()], Counter(NUMBER.findall(block))
    code = Counter(CODE.findall(block))
    return (
        kind and kind[0],
        block.count("|"),
        code,
        Counter(NUMBER.findall(CODE.sub("", block))),
        re.findall(r"\]\(([^)]*)\)", block),
        Counter(names.get(name, name) for name in BOLD.findall(block)),
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES)
def test_help_page_has_what_the_english_one_has(english, page, language):
    node, there = english[page], words(language)[page]
    names = {entry: there["inputs"][entry]["name"] for entry in node["inputs"]}
    names |= {entry["name"]: there["outputs"][slot]["name"] for slot, entry in node["outputs"].items()}
    theirs, ours = blocks(DOCS / page / f"{language}.md"), blocks(DOCS / f"{page}.md")
    assert there["display_name"].startswith(theirs[0].removeprefix("# "))
    for translated, text in zip(theirs, ours, strict=False):
        assert shape(translated, names) == shape(text, names), (text, translated)
        assert translated != text or not re.search("[a-z]{4}", CODE.sub("", text)) or text.startswith("|"), translated
    assert len(theirs) == len(ours)


def test_help_pages_are_in_these_languages_and_no_other():
    assert {(path.parent.name, path.stem) for path in DOCS.glob("*/*")} == {(p, to) for p in PAGES for to in LANGUAGES}
