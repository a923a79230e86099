# make demo: set up, then run the whole job on the bundled model and data (a few minutes on two cores)
# make test: set up, then lint and test

PYTHON ?= python3
BIN := .venv/bin
OUT := clip12to6_demo

.PHONY: demo test lint clean

demo: .venv/run
	$(BIN)/python svcca_analysis.py --batch_size 32 --iter_num 300 --thre 0.99 --mode U
	$(BIN)/python dc_analysis.py --batch_size 4 --iter_num 10
	cd search_strategy && ../$(BIN)/python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc --coarse_search_only true
	cd search_strategy && ../$(BIN)/python search_prune_then_verify_mix.py --num_layers 12 --num_clip_layers 6 --search_mode beam --select_measure dc
	rm -rf exp/$(OUT) exp/$(OUT).states
	$(BIN)/python clip_finetune_train.py --output_dir $(OUT) --resume_epoch 0 --num_layers 12 --num_clip_layers 6 --max_epoch 1 --max_pairs 12000
	$(BIN)/python evaluate_clip.py --model exp/iconclip exp/$(OUT)
	$(BIN)/python -m examples.icon_search "a blue cake under a large orange heart" --pruned exp/$(OUT)

test: .venv/dev lint
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
