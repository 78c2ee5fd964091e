"""What each test file needs, and the files that take longest.

`make test ARGS='--tiers plain,torch'` runs those two tiers, and imports no file of the others.
"""

TIERS = {
    "plain": "Python and small libraries; no torch",
    "torch": "torch and diffusers; small networks in one process",
    "training": "as torch; whole runs and evaluations, and processes of their own, which take their time",
    "comfyui": "ComfyUI: its code in the tests' process, or a server",
    "browser": "a ComfyUI server and a Chromium, which npm brings",
    "install": "new virtual environments, for which pip asks its index",
}
#: {beginning of a path in tests/: its tier}; the longest that fits counts.
TIER_OF = {
    "benchmarks/": "comfyui",
    "browser/": "browser",
    "comfyui/": "comfyui",
    "comfyui/test_provision.py": "install",
    "comfyui/test_registry.py": "install",
    "comfyui/test_templates.py": "plain",
    "comfyui/test_workflow.py": "plain",
    "demo/": "comfyui",
    "install/": "install",
    "nodes/": "comfyui",
    "portraits/": "torch",
    "shapes/": "torch",
    "shapes/test_evaluation.py": "training",
    "shapes/test_weights.py": "training",
    "test_tiers.py": "plain",
    "training/": "torch",
    "training/test_atomic.py": "plain",
    "training/test_errors.py": "plain",
    "training/test_help.py": "plain",
    "training/test_hostile_yaml.py": "plain",
    "training/test_rooms.py": "plain",
    "training/test_anchor.py": "training",
    "training/test_bad_commands.py": "training",
    "training/test_distill.py": "training",
    "training/test_evaluate_": "training",
    "training/test_few_steps.py": "training",
    "training/test_parallel.py": "training",
    "training/test_scores_apart.py": "training",
    "training/test_export_layouts.py": "comfyui",
    "training/test_sdxl.py": "comfyui",
}
#: They start first, so that two processes which share the files end together; the longest of them first.
LONGEST = [
    "demo/test_demo.py",
    "browser/test_frontend.py",
    "comfyui/test_server.py",
    "training/test_sdxl.py",
    "training/test_export_layouts.py",
    "install/test_readme.py",
    "nodes/test_joint.py",
    "nodes/test_compile.py",
    "comfyui/test_hostile_text.py",
    "comfyui/test_graphs.py",
    "comfyui/test_registry.py",
    "training/test_parallel.py",
    "benchmarks/test_cost.py",
]


def tier_of(path: str) -> str | None:
    """The tier of a file, by its path in tests/."""
    fitting = [beginning for beginning in TIER_OF if path.startswith(beginning)]
    return TIER_OF[max(fitting, key=len)] if fitting else None


def tiers_below(folder: str) -> set[str]:
    """All tiers that files of a folder may have; a folder as "training/"."""
    return {tier for beginning, tier in TIER_OF.items() if beginning.startswith(folder)} | {tier_of(folder)} - {None}
