# Two commands: `make demo` and `make test`. Both first make the environment in .venv (`make setup`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EDITS := runs/demo_edits
CLIP := runs/demo_clip

.PHONY: setup demo parts test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "setup: making $(VENV) with $$($(PYTHON) --version) (3.10 to 3.13 work)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "setup: needs Python 3.10 to 3.13; say which with 'make setup PYTHON=python3.11'"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing vision_lowrank and its tools (about 5 GB with torch; minutes on a slow network)"
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; then \
	  echo "setup: with uv"; $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  echo "setup: uv is not to be had, with pip"; $(BIN)/python -m pip install --quiet -e '.[dev]'; \
	fi
	@touch $(STAMP)
	@echo "setup: done"

demo: setup
	@echo "demo: zero-shot, then 4-shot Block-LoRA on emoji in a style the model has never seen (three seeds)"
	$(BIN)/vision-lowrank train configs/fewshot/emoji_block_lora.yaml name=demo
	@echo "demo: looking for edits in photographs that were just edited (the shipped detector knows the photographs)"
	$(BIN)/vision-lowrank make-edits builtin $(EDITS) --crops 1 --size 224 --per-photo 1 --seed 7 --fractions 0,0,1
	$(BIN)/vision-lowrank scan $(EDITS)/real $(EDITS)/edited --recursive --out runs/demo_scan --overlay
	@echo "demo: following an object through a clip that was just drawn, of objects that the tracker has never seen"
	$(BIN)/python examples/draw_clip.py $(CLIP)
	$(BIN)/vision-lowrank track $(CLIP)/clip.mp4 --boxes $(CLIP)/boxes.txt --out runs/demo_track --save-video
	@echo "demo: open runs/demo/report.html, runs/demo_scan/report.html, and track.html and track.mp4 in runs/demo_track"

parts: setup
	$(BIN)/python tools/index_parts.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --summarize-errors

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
