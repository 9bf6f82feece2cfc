# Two commands: `make bench BASELINE=kd` and `make test`. Each makes .venv and installs what is missing, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINT_INSTALLED := $(VENV)/.lint-installed

BASELINE ?= kd
DATASET ?= digits
ENHANCER ?= tmkd

# A variable that is set becomes an option of `tmkd bench`; `tmkd bench --help` says what each one takes.
option = $(if $($(1)),--$(2) '$($(1))')
BENCH_OPTIONS = --baseline '$(BASELINE)' --dataset '$(DATASET)' --enhancer '$(ENHANCER)' \
	$(call option,DATA_DIR,data-dir) $(call option,TEACHER,teacher) $(call option,TEACHER_VIEWS,teacher-views) \
	$(call option,RECIPE,teacher-recipe) $(call option,TEACHER_CHECKPOINT,teacher-checkpoint) $(call option,STUDENT,student) \
	$(call option,SEEDS,seeds) $(call option,TEXT,text) $(call option,PRESET,preset) $(call option,OUT,out) \
	$(if $(filter-out 0,$(CONTROLS)),--controls) $(ARGS)

TABLE ?= 2
SCALE ?= smoke
TABLE_OPTIONS = --scale '$(SCALE)' $(call option,PAIRS,pairs) $(call option,DATASETS,datasets) \
	$(call option,BASELINES,baselines) $(call option,SEEDS,seeds) $(call option,TEXT,text) \
	$(call option,DATA_DIR,data-dir) $(call option,DEVICE,device) $(call option,THREADS,threads) \
	$(call option,OUT,out) $(call option,FORMAT,format) $(if $(filter-out 0,$(CONTROLS)),--controls) \
	$(if $(filter-out 0,$(DRY_RUN)),--dry-run) $(ARGS)

.PHONY: help bench table report teacher-report robustness perf regress teachers teacher verify-teachers text-cache test fuzz lint format install clean

help:
	@echo 'make bench BASELINE=kd    compare the baseline with the baseline + TMKD (ENHANCER=tmkd,richkd ...: README.md)'
	@echo 'make table TABLE=2         a table of the paper (SCALE=smoke, small or paper)'
	@echo 'make report               one HTML page of the newest comparison, or of RUN=folder'
	@echo 'make teacher-report RUN=folder   calibration of the teachers and students of a comparison'
	@echo 'make robustness RUN=folder       the same arms on corrupted images'
	@echo 'make perf                 how fast it is, as ratios with their limits'
	@echo 'make regress              accuracy as a test, against a recorded reference'
	@echo 'make teachers             list the teachers; make teacher TEACHER=... trains one'
	@echo 'make test                 run the tests'
	@echo 'make fuzz                 thousands of damaged files (`make test` tries some of them)'
	@echo 'make lint                 ruff and mypy'
	@echo 'make format               let ruff format the code'

bench: $(INSTALLED)
	@$(BIN)/tmkd bench $(BENCH_OPTIONS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

table: $(INSTALLED)
	@$(BIN)/tmkd table '$(TABLE)' $(TABLE_OPTIONS)

report: $(INSTALLED)
	@$(BIN)/tmkd report $(if $(RUN),'$(RUN)') $(call option,OUT,out) $(ARGS)

teacher-report: $(INSTALLED)
	@$(BIN)/tmkd teacher-report '$(RUN)' $(call option,OUT,out) $(ARGS)

robustness: $(INSTALLED)
	@$(BIN)/tmkd robustness '$(RUN)' $(call option,OUT,out) $(ARGS)

perf: $(INSTALLED)
	@$(BIN)/tmkd perf $(call option,DEVICE,device) $(call option,THREADS,threads) $(call option,OUT,out) $(ARGS)

regress: $(INSTALLED)
	@$(BIN)/tmkd regress $(call option,REFERENCE,reference) $(call option,MARGIN,margin) $(call option,SEEDS,seeds) \
		$(call option,RESULTS,results) $(call option,JUNIT,junit) $(if $(filter-out 0,$(STRICT)),--strict) $(ARGS)

teachers: $(INSTALLED)
	@$(BIN)/tmkd teachers list

teacher: $(INSTALLED)
	@$(BIN)/tmkd teachers train --network '$(TEACHER)' --dataset '$(DATASET)' $(call option,RECIPE,recipe) \
		$(call option,TEACHER_VIEWS,views) $(ARGS)

verify-teachers: $(INSTALLED)
	@$(BIN)/tmkd teachers verify

text-cache: $(INSTALLED)
	@$(BIN)/tmkd text-cache --dataset '$(DATASET)' --output '$(OUT)' $(call option,TEXT,model) $(ARGS)

fuzz: $(INSTALLED)
	TMKD_FUZZ=200 $(BIN)/python -m pytest -s tests/fuzz $(PYTEST_ARGS)

lint: $(LINT_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# A type checker sees `baselines` and `adapters` under their installed names only in a tree that is laid out like that.
	@rm -rf build/typed && mkdir -p build/typed/tmkd_plugin
	@ln -s $(CURDIR)/tmkd_plugin/* $(CURDIR)/baselines $(CURDIR)/adapters build/typed/tmkd_plugin/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p tmkd_plugin

format: $(LINT_INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV) (once; with the CUDA build of torch this is about 6 GB and takes minutes) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,frameworks,ray]'
	@touch $@

$(LINT_INSTALLED): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
