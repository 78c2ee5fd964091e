"""`evaluate`, the scoring half: every score against the same number by other means, and what it refuses.

Pictures are painted, not drawn by a model: the demo world's, of which the truth is known.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from training.__main__ import main
from training.errors import UserError
from training.evaluate import intervals
from training.evaluate.draw import draw
from training.evaluate.prompt_set import Prompt, read_prompt_set
from training.evaluate.recipe import Prompts, load_recipe, score_rows
from training.evaluate.scores.alignment import of_group
from training.evaluate.table import score_all
from training.shapes import detector
from training.shapes.world import ITEMS, paint, parse

DETECTOR = "training.shapes.judge:Detector"
PROMPTS = [("a red circle", "red"), ("a blue square", "red"), ("a green cross", "cross"), ("a yellow shape", "red")]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": prompt, "negative": negative, "group": prompt}) for prompt, negative in PROMPTS]
    Path("pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def prompt_set(each: int = 6) -> list[Prompt]:
    return read_prompt_set(Prompts(source="pairs.jsonl", negative="negative", group="group", each=each), Path())


def painted(part: list[Prompt], other: bool = False) -> numpy.ndarray:
    """A picture of the world that fits the prompt, chosen by its id; `other`: any picture."""
    pictures = []
    for prompt in part:
        fitting = [item for item in ITEMS if other or parse(prompt.prompt).fits(item)]
        chosen = int.from_bytes(hashlib.sha256(f"{prompt.id}{other}".encode()).digest()[:4], "big")
        pictures.append(paint(fitting[chosen % len(fitting)]))
    return numpy.stack(pictures)


def paint_variants(output: str = "out", each: int = 6, **variants) -> None:
    for name, painter in variants.items():
        draw(Path(output, name), painter, {"model": name}, prompt_set(each), 8, None)


def paint_reference(folder: str = "reference", count: int = 40) -> None:
    Path(folder).mkdir()
    for number, item in enumerate(ITEMS[:: len(ITEMS) // count][:count]):
        Image.fromarray(paint(item)).save(f"{folder}/{number:03d}.png")


def score_with(scores: dict, each: int = 6, names: tuple = ("plain",), weights: str = ".", **changes) -> dict:
    """Writes the recipe, scores all, returns {variant: the scores of its result.json}."""
    content = {
        "title": "a test",
        "prompts": {"source": "pairs.jsonl", "negative": "negative", "group": "group", "each": each},
        "models": {"student": "no such model is needed"},
        "variants": {name: {"model": "student"} for name in names},
        "scores": scores,
    } | changes
    Path("recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    score_all(load_recipe("recipe.yaml"), Path("out"), Path(weights))
    return {name: json.loads(Path("out", name, "result.json").read_text())["scores"] for name in names}


# --- FID, KID, precision, recall, CMMD: against numpy, written here ------------------------------------------------
def both_features() -> tuple[numpy.ndarray, numpy.ndarray]:
    drawn = painted(prompt_set(), other=True)
    real = numpy.stack([numpy.asarray(Image.open(path)) for path in sorted(Path("reference").glob("*.png"))])
    return detector.features(drawn).astype(float), detector.features(real).astype(float)


def scored(here, kind: str, **settings) -> dict:
    paint_variants(plain=lambda part: painted(part, other=True))
    paint_reference()
    return score_with({kind: {"network": DETECTOR, "reference": "reference"} | settings})["plain"]


def frechet(x: numpy.ndarray, y: numpy.ndarray) -> float:
    """|mu_x - mu_y|^2 + tr(Sx + Sy - 2 (Sx^1/2 Sy Sx^1/2)^1/2), by symmetric square roots."""

    def root(matrix):
        values, vectors = numpy.linalg.eigh(matrix)
        return vectors * numpy.sqrt(values.clip(0)) @ vectors.T

    sx, sy = (numpy.cov(part, rowvar=False) for part in (x, y))
    middle = root(root(sx) @ sy @ root(sx))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + numpy.trace(sx + sy) - 2 * numpy.trace(middle))


def test_fid_agrees_with_numpy_to_1e_3(here):
    found = scored(here, "fid", halves=10)["fid"]
    assert found["value"] == pytest.approx(frechet(*both_features()), rel=1e-3)
    low, high = found["interval"]
    assert low < found["value"] < high and found["n"] == 24 and found["more"]["reference_n"] == 40


def test_fid_of_a_set_with_itself_is_0(here):
    paint_variants(plain=painted)
    found = score_with({"fid": {"network": DETECTOR, "reference": "out/plain"}})["plain"]["fid"]
    assert found["value"] == pytest.approx(0, abs=1e-6)


def test_kid_agrees_with_numpy_to_1e_3(here):
    """All pictures in one subset: then there is nothing random in it."""
    found = scored(here, "kid", subsets=1, subset_size=24)["kid"]
    x, y = both_features()
    numpy_random = numpy.random.RandomState(2020)  # torch-fidelity's seed
    numpy_random.choice(24, 24, replace=False)
    y = y[numpy_random.choice(40, 24, replace=False)]

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n = 24
    wanted = sum((k.sum() - numpy.trace(k)) / (n * (n - 1)) for k in (xx, yy)) - 2 * xy.mean()
    assert found["value"] == pytest.approx(wanted, rel=1e-3)


def test_precision_and_recall_agree_with_numpy_to_1e_3(here):
    found = scored(here, "precision_recall", k=2)
    x, y = both_features()

    def reached(points, by):
        """The share of points within the k-th neighbour's distance of any of `by`."""
        own = numpy.sort(numpy.linalg.norm(by[:, None] - by[None], axis=-1), axis=1)[:, 2]  # 0 is itself
        return (numpy.linalg.norm(points[:, None] - by[None], axis=-1) <= own).any(1).mean()

    for name, wanted, n in (("precision", reached(x, y), 24), ("recall", reached(y, x), 40)):
        assert 0 < wanted < 1 and found[name]["value"] == pytest.approx(wanted, rel=1e-3)
        assert found[name]["interval"] == pytest.approx(intervals.wilson(wanted * n, n))


def test_cmmd_agrees_with_numpy_to_1e_3(here):
    found = scored(here, "cmmd")["cmmd"]
    x, y = (part / numpy.linalg.norm(part, axis=1, keepdims=True) for part in both_features())

    def mean(a, b):
        return numpy.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean()

    assert found["value"] == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-3)


def test_the_interval_of_halves_is_as_wide_as_other_draws_are_apart():
    random = numpy.random.RandomState(0)
    apart = numpy.std([random.randn(500).mean() for _ in range(400)])
    one = random.randn(500)
    low, high = intervals.of_halves(one.mean(), lambda chosen: float(one[chosen].mean()), 500, 200)
    assert (high - low) / 2 == pytest.approx(1.96 * apart, rel=0.2)


# --- CLIP score, CLIP+ and CLIP-, HPSv2, PickScore -----------------------------------------------------------------
@pytest.fixture
def narrow_clip(tmp_path) -> Path:
    """An open_clip of two layers, random, in a folder with its own config, under the names of the judges' files."""
    import open_clip

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    network = open_clip.model.CLIP(8, vision, text)
    for name in ("CLIP-ViT-g-14-laion2B-s12B-b42K.safetensors", "HPS_v2_compressed.pt",
                 "CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors"):  # fmt: skip
        folder = tmp_path / "weights" / name
        folder.mkdir(parents=True)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        safetensors.torch.save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return tmp_path / "weights"


def test_clip_scores_are_the_cosines_of_pictures_and_texts(here, narrow_clip):
    """CLIP score with its prefix, CLIP+ and CLIP-: by open_clip itself, picture by picture."""
    import open_clip

    paint_variants(plain=painted)
    found = score_with({"clip_score": None, "clip_plus": None, "clip_minus": None}, weights="weights")["plain"]
    name = f"local-dir:{narrow_clip}/CLIP-ViT-g-14-laion2B-s12B-b42K.safetensors"
    network, _, prepare = open_clip.create_model_and_transforms(name)
    tokens, network = open_clip.get_tokenizer(name), network.eval()
    for score, prefix, text in (("clip_score", "A photo depicts ", 0), ("clip_plus", "", 0), ("clip_minus", "", 1)):
        cosines = []
        for prompt in prompt_set():
            with torch.no_grad():
                seen = network.encode_image(prepare(Image.fromarray(painted([prompt])[0]))[None])
                read = network.encode_text(tokens([prefix + (prompt.prompt, prompt.negative)[text]]))
            cosines.append(torch.nn.functional.cosine_similarity(seen, read).item())
        assert found[score]["value"] == pytest.approx(numpy.mean(cosines), abs=1e-5)
        assert found[score]["interval"] == pytest.approx(intervals.of_mean(cosines), abs=1e-5)
        assert set(found[score]["groups"]) == {prompt for prompt, _ in PROMPTS}
    assert len({round(found[score]["value"], 6) for score in found}) == 3


def test_hpsv2_is_the_mean_of_means_of_80_by_hand():
    """800 pictures of a style: ten means of 80, their mean, and their deviation as the spread."""
    values = numpy.repeat(numpy.arange(10.0), 80) + numpy.tile([-1.0, 1.0], 400)
    found = of_group("anime", values, 80)
    assert found.value == 4.5 and found.n == 800
    assert found.more["deviation_of_means"] == pytest.approx(numpy.sqrt(8.25))
    assert score_rows()["hpsv2"] == {"kind": "alignment", "network": "hps_v2", "scale": 100, "mean_of": 80}
    with pytest.raises(UserError, match="The group anime holds 799 pictures; .*a multiple"):
        of_group("anime", values[:799], 80)


def test_hpsv2_by_style_and_over_all(here, narrow_clip):
    paint_variants(plain=painted)
    found = score_with({"hpsv2": {"mean_of": 2}}, weights="weights")["plain"]["hpsv2"]
    assert found["value"] == pytest.approx(numpy.mean([group["value"] for group in found["groups"].values()]))
    assert all(group["n"] == 6 and "deviation_of_means" in group["more"] for group in found["groups"].values())
    plain = score_with({"hpsv2": {"mean_of": 2, "scale": 1}}, weights="weights")["plain"]["hpsv2"]
    assert found["value"] == pytest.approx(100 * plain["value"], rel=1e-4)


def test_pickscore_reads_a_folder_in_transformers_layout(here, clip):
    shutil.copytree(clip, "weights/PickScore_v1")
    paint_variants(plain=painted)
    found = score_with({"pickscore": None}, weights="weights")["plain"]["pickscore"]
    assert found["n"] == 24 and -100 <= found["value"] <= 100 and found["value"] != 0


def test_a_score_of_negatives_where_there_are_none_is_told(here, narrow_clip):
    paint_variants(plain=painted)
    prompts = {"source": "pairs.jsonl", "each": 6, "group": "group"}
    with pytest.raises(UserError, match="24 pictures have no negative prompt"):
        score_with({"clip_minus": None}, weights="weights", prompts=prompts)


# --- Inception -----------------------------------------------------------------------------------------------------
@pytest.fixture
def inception(tmp_path, monkeypatch) -> Path:
    """torch-fidelity's own network with random weights, under the name of the real file; its hash is another."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    def state(url, progress):
        torch.manual_seed(0)
        monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        return {}

    monkeypatch.setattr(module, "load_state_dict_from_url", state)
    network = module.FeatureExtractorInceptionV3("inception", ["2048"], verbose=False)
    monkeypatch.undo()
    path = tmp_path / "weights" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def test_inception_reads_local_weights_and_refuses_others_under_the_right_name(here, inception, monkeypatch):
    monkeypatch.chdir(here)
    paint_variants(each=1, plain=painted)
    settings = {"reference": "out/plain", "subset_size": 4, "subsets": 1}  # no FID, whose 2048 x 2048 takes its time
    with pytest.raises(UserError, match="is another file than its name says: its SHA-256 is .* begin with 6726825d"):
        score_with({"kid": settings}, each=1, weights="weights")
    ours = hashlib.sha256(inception.read_bytes()).hexdigest()
    found = score_with({"kid": settings | {"sha256": ours[:16]}}, each=1, weights="weights")["plain"]["kid"]
    assert found["n"] == 4 and found["value"] < 0.1  # of a set with itself; unbiased, so it may be below 0
    used = json.loads(Path("out/plain/result.json").read_text())["used"]
    assert used["inception"]["sha256"] == ours and used["inception"]["library"].startswith("torch-fidelity ")
    (features, *_) = Path("out/features").glob("*.safetensors")
    assert safetensors.torch.load_file(features)["features"].shape == (4, 2048)


def test_a_file_of_weights_that_would_run_code_is_not_unpickled(here):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (Path("ran"),))

    path = Path("weights/weights-inception-2015-12-05-6726825d.pth")
    path.parent.mkdir()
    torch.save({"a": Bad()}, path)
    paint_variants(each=1, plain=painted)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="cannot be read as torch-fidelity's Inception"):
        score_with({"fid": {"reference": "out/plain", "sha256": sha}}, each=1, weights="weights")
    assert not Path("ran").exists()


def test_missing_weights_name_the_file_its_size_and_where_it_is_from(here):
    paint_variants(plain=painted)
    with pytest.raises(UserError, match="needs weights/HPS_v2_compressed.pt .1970 MB.; get it from https://.*HPSv2"):
        score_with({"hpsv2": None}, weights="weights")


# --- removal, kept, harm, diversity --------------------------------------------------------------------------------
def test_removal_and_kept_count_what_is_known_of_painted_pictures(here):
    """A red circle is always red; a blue square never; a green cross always a cross; a yellow shape never red."""
    paint_variants(plain=painted)
    found = score_with({"removal": {"judge": DETECTOR}, "kept": {"judge": DETECTOR}})["plain"]
    assert {group: value["value"] for group, value in found["removal"]["groups"].items()} == {
        "a red circle": 0, "a blue square": 1, "a green cross": 0, "a yellow shape": 1,
    }  # fmt: skip
    assert found["removal"]["value"] == 0.5 and found["removal"]["n"] == 24 and found["kept"]["value"] == 1
    assert found["removal"]["interval"] == pytest.approx(intervals.wilson(12, 24))


def test_wilson_intervals_by_hand():
    """Known values: 8 of 10, 0 of 20, and half a hundred."""
    assert intervals.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert intervals.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert intervals.wilson(0, 0) is None


def test_undecided_pictures_are_counted_apart_and_nothing_is_averaged_over_them(here):
    """Half of the pictures are plain gray; where all are, the rate cannot be told."""

    def half_gray(part):
        pictures = painted(part)
        pictures[::2] = 128
        return pictures

    def gray(part):
        return numpy.full((len(part), 32, 32, 3), 128, numpy.uint8)

    paint_variants(plain=half_gray, gray=gray)
    found = score_with({"removal": {"judge": DETECTOR}}, names=("plain", "gray"))
    half, none = found["plain"]["removal"], found["gray"]["removal"]
    assert half["n"] == 12 and half["more"]["undecided"] == 12 and half["value"] == 0.5
    assert half["more"]["if_all_undecided_were_wrong_or_right"] == [0.25, 0.75]
    assert none["value"] is None and none["interval"] is None and none["n"] == 0
    assert "cannot be told" in Path("out/table.md").read_text()


def test_a_judge_is_told_its_own_errors_by_hand_labels(here):
    paint_variants(plain=painted)
    right = {
        prompt.id: "yes" if prompt.prompt in ("a red circle", "a green cross") else "no" for prompt in prompt_set()
    }
    first = next(iter(right))
    wrong = right | {first: "no"}
    Path("labels.jsonl").write_text(
        "".join(json.dumps({"id": one, "present": said}) + "\n" for one, said in wrong.items())
    )
    settings = {"judge": DETECTOR, "labels": "labels.jsonl"}
    told = score_with({"removal": settings})["plain"]["removal"]["more"]["judge_against_labels"]
    assert told == {"labels": 24, "undecided": 0, "missed": 0.0, "invented": pytest.approx(1 / 13)}
    Path("labels.jsonl").write_text('{"id": "nobody", "present": "yes"}\n')
    with pytest.raises(UserError, match="there is no picture nobody"):
        score_with({"removal": settings})


def test_harm_is_the_paired_fall_of_kept(here):
    paint_variants(plain=painted, nasa=lambda part: painted(part, other=True))
    found = score_with(
        {"kept": {"judge": DETECTOR}, "harm": {"judge": DETECTOR, "against": "plain"}}, names=("plain", "nasa")
    )
    assert "harm" not in found["plain"]
    assert found["nasa"]["harm"]["value"] == pytest.approx(1 - found["nasa"]["kept"]["value"])
    with pytest.raises(UserError, match="no variant nobody to compare with"):
        score_with({"harm": {"judge": DETECTOR, "against": "nobody"}})


def test_diversity_is_the_mean_distance_within_a_prompt(here):
    paint_variants(plain=painted, same=lambda part: painted([part[0]] * len(part)))
    found = score_with({"diversity": {"network": DETECTOR}}, names=("plain",))["plain"]["diversity"]
    distances = []
    for prompt, _ in PROMPTS:
        part = [one for one in prompt_set() if one.prompt == prompt]
        unit = detector.features(painted(part)).astype(float)
        unit /= numpy.linalg.norm(unit, axis=1, keepdims=True)
        distances.append(numpy.mean([1 - unit[i] @ unit[j] for i in range(6) for j in range(i)]))
    assert found["value"] == pytest.approx(numpy.mean(distances), rel=1e-5) and found["value"] > 0.01
    paint_variants("one", each=1, plain=painted)
    shutil.rmtree("out"), Path("one").rename("out")
    with pytest.raises(UserError, match="needs two pictures or more of a prompt"):
        score_with({"diversity": {"network": DETECTOR}}, each=1)


def test_a_zero_shot_clip_judges_with_an_undecided_band(here, narrow_clip):
    paint_variants(plain=painted)
    found = score_with({"removal": {"judge": "vit_b_32", "band": 0.5}}, weights="weights")["plain"]["removal"]
    assert found["value"] is None and found["more"]["undecided"] == 24
    found = score_with({"removal": {"judge": "vit_b_32", "band": 0}}, weights="weights")["plain"]["removal"]
    assert found["n"] == 24 and found["more"]["undecided"] == 0


# --- result.json, the table ----------------------------------------------------------------------------------------
def test_result_json_holds_protocol_versions_hashes_n_values_intervals(here):
    paint_reference()
    paint_variants(plain=painted)
    score_with({"precision_recall": {"network": DETECTOR, "reference": "reference"}})
    result = json.loads(Path("out/plain/result.json").read_text())
    assert result["n"] == 24 and result["drawn"]["model"] == "plain" and len(result["pictures_sha256"]) == 64
    assert {"torch", "numpy", "torch-fidelity"} <= set(result["versions"])
    assert (
        result["protocol"]["scores"]["precision_recall"]["k"] == 3 and len(result["protocol"]["prompts_sha256"]) == 64
    )
    assert len(result["used"][DETECTOR]["sha256"]) == len(result["used"]["reference"]["sha256"]) == 64
    assert result["scores"]["recall"]["interval"] and result["used"]["reference"]["pictures"] == 40


def test_the_table_prints_the_papers_figures_beside_ours_and_whether_they_agree(here):
    paint_variants(plain=painted, other=lambda part: painted(part, other=True))
    variants = {
        "plain": {"model": "student", "paper": {"kept": 0.99}},
        "other": {"model": "student", "paper": {"kept": 0.98}},
    }
    changes = {"tolerance": {"kept": 0.02}, "order": ["kept"], "paper": "Table 5"}
    score_with({"kept": {"judge": DETECTOR}}, names=("plain", "other"), **({"variants": variants} | changes))
    text = Path("out/table.md").read_text()
    assert "/ 0.99 agrees" in text and "/ 0.98 **differs**" in text and "Table 5" in text
    assert "kept: the paper's order (paper: other < plain; ours: other < plain)" in text
    variants["plain"]["paper"]["kept"] = 0.5
    score_with({"kept": {"judge": DETECTOR}}, names=("plain", "other"), **({"variants": variants} | changes))
    assert "**not the paper's order**" in Path("out/table.md").read_text()


def test_a_trial_is_compared_with_nothing(here):
    paint_variants(plain=painted)
    changes = {"variants": {"plain": {"model": "student", "paper": {"kept": 0.99}}}, "tolerance": {"kept": 0.02}}
    score_with({"kept": {"judge": DETECTOR}}, **changes)
    assert main(["evaluate", "recipe.yaml", "--score", "--output", "out", "--count", "4"]) == 0
    text = Path("out/table.md").read_text()
    assert "A trial" in text and "agrees" not in text


def test_one_table_is_of_one_protocol(here):
    """A row that was scored by other weights, settings or another number of pictures is not set beside the others."""
    paint_variants(plain=painted, other=painted)
    score_with({"kept": {"judge": DETECTOR}}, names=("plain", "other"))
    path = Path("out/other/result.json")
    content = json.loads(path.read_text())
    content["used"][DETECTOR]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    from training.evaluate.table import write_table

    with pytest.raises(UserError, match="plain and other in out were scored with another used"):
        write_table(load_recipe("recipe.yaml"), Path("out"))


@pytest.mark.parametrize(
    "score, sentence",
    [
        ({"kid": {"network": DETECTOR, "reference": "reference"}}, "holds 24 pictures; this score needs at least 1000"),
        ({"precision_recall": {"network": DETECTOR, "reference": "reference", "k": 30}}, "needs at least 31"),
        ({"fid": {"network": DETECTOR, "reference": "nowhere"}}, "There is no reference folder nowhere"),
        ({"fid": {"network": DETECTOR, "reference": "empty"}}, "The reference folder empty holds no picture"),
        ({"fid": {"network": "resnet", "reference": "reference"}}, "There is no network resnet; known are inception"),
        ({"fid": {"network": "os:abort", "reference": "reference"}}, "os:abort is no class with pictures"),
        ({"fid": {"network": "no.such:Thing", "reference": "reference"}}, "There is no no.such:Thing"),
        ({"fid": {"reference": 3}}, r"scores.fid.reference is 3; allowed is a text"),
        ({"fid": None}, "`scores.fid.reference` is missing"),
        ({"fit": {}}, "there is no score 'fit'; known are fid"),
        ({"kept": {"judge": DETECTOR, "bandd": 1}}, "did you mean `band`"),
    ],
)
def test_a_score_that_cannot_be_had_is_one_sentence(here, score, sentence):
    paint_variants(plain=painted)
    paint_reference()
    Path("empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        score_with(score)


def test_pictures_of_another_size_than_the_judge_reads_are_told(here):
    paint_variants(plain=painted)
    with pytest.raises(UserError, match="reads pictures of 32 x 32 pixels, these have 64 x 64; set .*size: 32"):
        score_with({"kept": {"judge": DETECTOR}}, size=64)


def test_features_are_kept_in_parts_and_an_interrupted_extraction_goes_on(here, monkeypatch):
    from training.evaluate import features

    monkeypatch.setattr(features, "PART", 8)
    asked = []
    real = detector.features
    monkeypatch.setattr(detector, "features", lambda pixels: asked.append(len(pixels)) or real(pixels))
    paint_variants(plain=painted)
    whole = score_with({"fid": {"network": DETECTOR, "reference": "out/plain"}})
    assert sum(asked) == 48 and len(list(Path("out/features").glob("*.safetensors"))) == 6  # drawn, and as reference
    sorted(Path("out/features").glob("*.safetensors"))[1].write_bytes(b"cut")
    assert score_with({"fid": {"network": DETECTOR, "reference": "out/plain"}}) == whole
    assert sum(asked) == 56, "only the damaged part is seen again"
