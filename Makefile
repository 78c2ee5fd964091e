# Everything is installed into build/ and runs from there. `make help` lists the commands.
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast bench fuzz soak presets presets-check screenshots lint demo-model evaluate environment clean

# An environment of its own for every ComfyUI and interpreter, so that switching costs nothing.
chosen := $(strip $(COMFYUI_PATH) $(PYTHON))
venv := build/venv$(if $(chosen),-$(shell printf '%s' '$(chosen)' | cksum | cut -d' ' -f1))
python := $(venv)/bin/python
new_enough = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
found_python := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$(call new_enough,$$p) && echo $$p && break; done)

# What the tests and the demo start. A checkout that is not ours gets no byte-code files either.
in_environment := env COMFYUI_PATH='$(abspath $(or $(COMFYUI_PATH),build/comfyui))' \
	$(if $(COMFYUI_PATH),PYTHONPYCACHEPREFIX='$(abspath build/bytecode)')

help: ## list the commands
	@echo "Commands:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20
	@echo "Settings:"
	@echo "  COMFYUI_PATH=DIR  use this ComfyUI checkout; nothing in it is changed (else one is installed into build/)"
	@echo "  PYTHON=FILE       use this interpreter, which has ComfyUI's requirements; nothing in it is changed"

demo: environment ## steer the demo model with negative prompts on a real ComfyUI; ends with a table and a picture
	@$(in_environment) PYTHONPATH=tests:. $(python) -m demo $(ARGS)

# -P: the pack's folder, which holds a nodes/, stays off sys.path.
test: environment ## run every test, those too that start a real ComfyUI and a real browser
test-fast: environment ## run the tests that need no ComfyUI, no process of their own and no network
test-fast: tiers := --tiers plain,torch
test test-fast:
	@$(in_environment) $(python) -P -m pytest -c tests/pytest.ini tests $(tiers) $(ARGS)

bench: environment ## costs as ratios: NASA at full size, the one-step node, a training step (20 minutes on 2 cores)
	@$(in_environment) PYTHONPATH=tests KINETO_LOG_LEVEL=99 $(python) -P -m benchmarks.nasa $(ARGS)
	@$(in_environment) $(python) -P tests/benchmarks/one_step.py
	@$(in_environment) $(python) -P tests/benchmarks/training_step.py
	@$(in_environment) PYTHONPATH=tests $(python) -P -m benchmarks.training_full_size --gpu-only

fuzz: environment ## 1,200 drawn bad inputs: each ends in one sentence or a picture (minutes; CASES=5000 SEED=1 for others)
	@$(in_environment) FUZZ_CASES=$(or $(CASES),1200) FUZZ_SEED=$(or $(SEED),0) \
		$(python) -P -m pytest -c tests/pytest.ini tests/nodes/fuzz -rP $(ARGS)

soak: environment ## 1,000 prompts beside a ComfyUI without the pack: memory and pictures (ARGS='--prompts 200' for fewer)
	@$(in_environment) PYTHONPATH=tests $(python) -P -m soak $(ARGS)

presets: environment ## the table of presets: each against its authors' formula, and how far a stock KSampler is off
	@$(in_environment) PYTHONPATH=tests $(python) -P -m presets

presets-check: environment ## compare the presets with ComfyUI's newest official templates; writes web/docs/presets-check.md
	@$(in_environment) $(python) -P -m pytest -c tests/pytest.ini -q -s tests/nodes/sampling/check_templates.py $(ARGS)

screenshots: environment ## templates, help pages, search, themes in the real frontend, and a sheet of them, in build/browser/screenshots
	@$(in_environment) PYTHONPATH=tests:. $(python) -m browser.screenshots $(ARGS)

lint: environment ## check the style of the code
	@$(venv)/bin/ruff check .

demo-model: environment ## make both demo models again from nothing (hours on 2 cores); goes on after an interruption
	@$(python) -m training.shapes make
	@$(python) -m training.portraits make

evaluate: environment ## the paper's tables on the demo world (hours: 18 runs; ARGS=--without-training for minutes); goes on
	@$(python) -m training.shapes evaluate $(ARGS)

environment: ## install what the others need (they do it themselves)
	@test -n '$(found_python)' || { echo "Python 3.11 or newer is needed; no python3 here is that new."; exit 1; }
	@$(found_python) tests/comfyui/provision.py $(venv) $(if $(PYTHON),--over '$(PYTHON)') \
		$(if $(COMFYUI_PATH),--comfyui '$(COMFYUI_PATH)')

clean: ## delete build/: the installed environments and all results
	rm -rf build
