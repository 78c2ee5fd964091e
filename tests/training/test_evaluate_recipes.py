"""Every recipe that comes with the trainer: what it says is missing, and its way to the end on narrow random models.

Random models prove wiring, not quality.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from training.__main__ import main
from training.errors import UserError
from training.evaluate import plan
from training.evaluate.draw import draw_variant
from training.evaluate.prompt_set import read_prompt_set
from training.evaluate.recipe import known_recipes, load_recipe
from training.evaluate.table import draw_all, score_all
from training.evaluate.watch import watch

DETECTOR = "training.shapes.judge:Detector"
FULL_SIZE = [name for name in known_recipes() if not name.startswith("shapes")]


def test_there_is_a_recipe_for_every_table_and_figure(capsys):
    tables = {"table1", "table2", "table5", "table7", "table8", "v3_negopt", "v3_nasa_t"}
    figures = {"figure2_sd15", "figure2_pixart", "figure3", "figure5"}
    small = {"shapes_table1", "shapes_table2", "shapes_table7", "shapes_harm"}
    assert set(known_recipes()) == tables | figures | small
    assert main(["evaluate", "--list"]) == 0
    assert "Table 5: zero-shot COCO-2014" in capsys.readouterr().out


@pytest.mark.parametrize("name", known_recipes())
def test_dry_run_names_every_missing_file_its_size_and_where_it_is_from(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    told = plan.report(recipe, Path("out"), Path("evaluation"))
    assert recipe.basics.title in told and "disk:" in told and "missing: " in told
    for role in {variant.model for variant in recipe.variants.values()}:
        assert f"  - {role}: " in told
    if "hpsv2" in recipe.scores:
        assert "HPS_v2_compressed.pt, 1,970 MB; https://huggingface.co/xswu/HPSv2" in told
    if "fid" in recipe.scores and name in FULL_SIZE:
        assert "weights-inception-2015-12-05-6726825d.pth, 96 MB; https://" in told
        assert "val2014, 6,640 MB; http://images.cocodataset.org" in told
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_dry_run_tells_disk_and_hours_of_a_model_that_is_here(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("figure5").with_models([str(teacher)])
    told = plan.report(recipe, Path("out"), Path("evaluation"))
    assert "3,600 in 6 variants" in told and "0.42 GB" in told  # 3,600 x 256 x 256 x 1.8 bytes
    assert "alpha_0.2: 600 pictures to draw; " in told and "on an A100" in told
    draw_all(recipe.only(["alpha_0"]), Path("out"), 1)
    assert "alpha_0: 0 pictures to draw, 100 are there" in plan.report(recipe, Path("out"), Path("evaluation"), 1)


def narrow(name: str, folder: Path, teacher: Path, pixart: Path, clip: Path) -> list[str]:
    """--set for a recipe whose models, judges and data are small: prompts of four lines, the detector as Inception."""
    Path(folder, "coco.txt").write_text("a cat\na dog\na red circle\na pet\n")
    styles = folder / "benchmark"
    styles.mkdir(exist_ok=True)
    for style in ("anime", "photo"):
        (styles / f"{style}.json").write_text(json.dumps(["a cat", "a dog"]))
    pairs = [json.dumps({"prompt": f"a pet {number}", "negative_prompt": "a cat"}) for number in range(5)]
    Path(folder, "negopt.jsonl").write_text("\n".join(pairs) + "\n")
    recipe = load_recipe(name)
    changes = ["batch=2", "size=32"]
    if recipe.prompts.source.startswith("evaluation/"):
        kind = Path(recipe.prompts.source)
        small = {"benchmark": styles, "captions_coco14_test": folder / "coco.txt"}
        source = small.get(kind.stem, folder / "negopt.jsonl")
        changes += [f"prompts.source={source}", "prompts.count=4"]
    else:
        changes += ["prompts.each=1"]
    for score in recipe.scores:
        if score in ("fid", "kid", "precision_recall"):
            changes += [f"scores.{score}.network={DETECTOR}", f"scores.{score}.reference={folder / 'real'}"]
        changes += {"kid": ["scores.kid.subset_size=4"], "precision_recall": ["scores.precision_recall.k=1"],
                    "hpsv2": ["scores.hpsv2.mean_of=2"]}.get(score, [])  # fmt: skip
        if score == "fid" and name == "table2":
            changes += ["scores.fid.halves=2"]
    for role, model in recipe.models.items():
        path, kind = (pixart, "pixart") if "pixart" in model.path.lower() or "nasa_t" in role else (teacher, None)
        values = {"path": str(path), "backbone": kind} if model.pictures == "here" else {"path": str(folder / role)}
        changes += [f"models.{role}={json.dumps(values | {'pictures': model.pictures})}"]
    return changes


@pytest.fixture(scope="module")
def small_world(tmp_path_factory, teacher, pixart, clip):
    """Reference pictures, and a CLIP of two layers in the place of every judge."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "real").mkdir()
    for number in range(6):
        Image.effect_noise((40, 32), 90 + number).convert("RGB").save(folder / "real" / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_recipe_runs_to_the_end_on_narrow_random_models(
    name, small_world, teacher, pixart, clip, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    from training.evaluate import feature_networks

    rows = {key: row | {"library": "transformers", "file": str(clip)} for key, row in feature_networks.rows().items()}
    monkeypatch.setattr(feature_networks, "rows", lambda: rows)
    recipe = load_recipe(name, narrow(name, small_world, teacher, pixart, clip))
    prompts = read_prompt_set(recipe.prompts, recipe.folder)
    here = {role: model for role, model in recipe.models.items() if model.pictures == "here"}
    for settings in recipe.variants.values():  # what others drew: pictures of the same ids
        if (model := recipe.models[settings.model]).pictures == "elsewhere":
            draw_variant(Path(model.path), next(iter(here.values())), settings, prompts, 2, 32)
    draw_all(recipe, Path("out"))
    text = score_all(recipe, Path("out"), Path("weights"))
    for variant in recipe.variants:
        result = json.loads(Path("out", variant, "result.json").read_text())
        assert result["n"] == len(prompts) and result["scores"]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > len(recipe.variants)
    figures = [figure for figures in recipe.figures.values() for figure in figures.values()]
    assert all(f"/ {figure:g}" in text for figure in figures), "the paper's figures stand beside ours"


def test_watch_scores_every_checkpoint_of_a_run_and_draws_its_curve(settings, tmp_path, monkeypatch):
    """Those that are there at once, then none twice; the pictures go, the lines and the curve stay."""
    from training.distill import distill
    from training.recipe.config import parse

    monkeypatch.chdir(tmp_path)
    distill(parse(settings | {"warm_start": None, "steps": 2, "keep_checkpoints": 9}))
    Path("real").mkdir()
    for number in range(6):
        Image.effect_noise((32, 32), 90 + number).convert("RGB").save(f"real/{number}.png")
    Path("coco.txt").write_text("a cat\na dog\na red circle\na pet\n")
    changes = ["prompts={source: coco.txt}", "size=32", f"scores={{fid: {{network: '{DETECTOR}', reference: real}}}}"]
    recipe = load_recipe("figure2_sd15", changes)
    watch(recipe, Path(settings["output"]), Path("out"), Path("."), None, lambda: False, 0.1)
    rows = [json.loads(line) for line in Path("out/watch/run.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["scores"]["fid"]["value"] > 0 for row in rows)
    assert len({row["weights_sha256"] for row in rows}) > 1
    assert Image.open("out/watch.png").size == (840, 540) and not list(Path("out/watch").glob("run/step-*"))
    before = Path("out/watch/run.jsonl").stat().st_mtime_ns
    watch(recipe, Path(settings["output"]), Path("out"), Path("."), None, lambda: False, 0.1)
    assert Path("out/watch/run.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is no run: it has no config.yaml"):
        watch(recipe, Path("real"), Path("out"), Path("."), None, lambda: False)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (["variants.alpha_0.model=nobody"], "variants.alpha_0.model is 'nobody'; the recipe's models are student"),
        (["variants.alpha_0.stepps=3"], "there is no setting `variants.alpha_0.stepps`; did you mean `steps`"),
        (["variants.alpha_0.steps=0"], "variants.alpha_0.steps is 0; allowed is a whole number from 1 to 1000"),
        (["variants.alpha_0.guidance=3", "variants.alpha_0.steps=4"], "has both nasa and CFG"),
        (["variants.alpha_0.paper={removal: x}"], "paper.removal is 'x'; write a number"),
        (["variants.alpha_0.guidance_to=0.5"], "guidance_to is less than guidance"),
        (["variants={'../x': {model: student}}"], "a variant's name is a folder's"),
        (["variants=[]"], "variants is .*; it must be a mapping"),
        (["variants={}"], "needs at least one entry in `variants`"),
        (["scores={}"], "needs at least one entry in `scores`"),
        (["scores.removal=7"], "scores.removal is 7; it must be a mapping"),
        (["prompts={}"], "`prompts.source` is missing"),
        (["prompts.count=-1"], "prompts.count is -1; allowed is a whole number from 1"),
        (["sizes=3"], "a recipe has no `sizes`; known are"),
        (["order=fid"], "order is 'fid'; it must be a list"),
        (["plot={x: alpha}"], "`plot.y` is missing"),
        (["title="], "title is None|`title`"),
    ],
)
def test_a_recipe_with_a_mistake_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        load_recipe("figure5", changes)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "No recipe; give the name of one"),
        (("table9",), "There is no recipe table9; known are figure2_pixart"),
        (("none.yaml",), "Cannot read the config none.yaml"),
        (("figure5", "a", "b"), "b is one model too many: the recipe figure5 takes 1 .student."),
        (("figure5", "--only", "alpha_9"), "has no variant alpha_9; it has alpha_0, alpha_0.2"),
        (("figure5", "--shard", "4/4"), "4/4 is no part; write 0/4"),
        (("figure5", "--count", "0"), "--count: 0 is not a whole number above 0"),
        (("figure5", "--score"), "There is no folder of pictures .*alpha_0; draw them first"),
        (("figure5", "no/such/model", "--draw"), "student is no/such/model, which is not here; give student=PATH"),
        (("table1", "--draw"), "Cannot read the prompt file evaluation/captions_coco14_test.txt"),
        (("figure5", "--watch", "nowhere"), "nowhere is no run"),
    ],
)
def test_a_command_with_a_mistake_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    try:
        code = main(["evaluate", *arguments])
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "error: " in told and re.search(sentence, told), told
    assert not list(tmp_path.rglob("*.png"))
