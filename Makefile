# `make` alone lists what there is to type.

STACK ?= onedl
ifeq ($(STACK),onedl)
VENV := .venv
else ifeq ($(STACK),openmmlab)
VENV := .venv-openmmlab
else
$(error STACK=$(STACK): there is onedl (the default) and openmmlab)
endif
PYTHON := $(VENV)/bin/python

# Touched when the environment is complete: an interrupted build leaves none,
# and a changed pin makes it stale. Either way the next command goes on.
STAMP := $(VENV)/.complete

# The classifiers' environment, on a torch of its own: see its requirements.
IMAGENET := .venv-imagenet
IMAGENET_PIP := $(IMAGENET)/bin/python -m pip --disable-pip-version-check install

# Another torch, under ops and layers alone.
TORCH ?= 2.7.1
TORCH_VENV := .venv-torch-$(TORCH)

DEMO_DATA := data/shapes
DEMO_NAME := retinanet_r18_fpn_frn_shapes
DEMO_CONFIG := configs/demo/$(DEMO_NAME).py
DEMO_DIR := work_dirs/$(DEMO_NAME)

.PHONY: help env demo test test-slow test-imagenet test-torch lint wheel clean distclean

help:  ## this list (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)
	@echo 'STACK=openmmlab, after any of them: on the OpenMMLab packages'
	@echo "ARGS='-k tlu -x', after the tests: handed to pytest"

env: $(STAMP)  ## the environment, which the others build if it is missing

$(STAMP): .dev_scripts/install_stack.sh setup.py requirements/$(STACK).txt \
		requirements/build.txt requirements/tests.txt \
		requirements/export.txt
	.dev_scripts/install_stack.sh $(STACK) $(VENV)
	@touch $@

demo: $(STAMP)  ## train, test and see a small detector with FRN: minutes
	$(PYTHON) -m frn_mmdet make_shapes $(DEMO_DATA)
	$(PYTHON) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	$(PYTHON) tools/test.py $(DEMO_CONFIG) $$(cat $(DEMO_DIR)/last_checkpoint) \
		--work-dir $(DEMO_DIR)/test
	$(PYTHON) -m frn_mmdet draw_detections $(DEMO_CONFIG) \
		$$(cat $(DEMO_DIR)/last_checkpoint) --score-thr 0.5 \
		--out $(DEMO_DIR)/detections.png
	$(PYTHON) -m frn_mmdet plot_training $(DEMO_DIR) --out $(DEMO_DIR)/training.png
	@echo
	@echo 'Next: the same detector with another norm, by one key:'
	@echo '  $(PYTHON) tools/train.py $(DEMO_CONFIG) \'
	@echo '      --cfg-options model.norm_cfg=BN'
	@echo 'or your own config and COCO: see README.md.'

test: $(STAMP)  ## the tests
	$(PYTHON) -m pytest -m 'not slow' -n auto --dist worksteal $(ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	$(PYTHON) -m pytest -m slow $(ARGS)

test-imagenet: $(IMAGENET)/.complete  ## of classifiers, and of the GPU's host
	$(IMAGENET)/bin/python -m pytest tests/imagenet tests/fake_cuda $(ARGS)

$(IMAGENET)/.complete: setup.py requirements/imagenet.txt \
		requirements/imagenet-no-deps.txt requirements/build.txt \
		requirements/tests.txt
	test -x $(IMAGENET)/bin/python || \
		$${BASE_PYTHON:-python3} -m venv $(IMAGENET)
	$(IMAGENET_PIP) -r requirements/imagenet.txt -r requirements/build.txt \
		-r requirements/tests.txt
	$(IMAGENET_PIP) --no-deps --no-build-isolation \
		-r requirements/imagenet-no-deps.txt --editable .
	@touch $@

test-torch:  ## of ops and layers, on another torch: TORCH=2.7.1
	test -x $(TORCH_VENV)/bin/python || \
		$${BASE_PYTHON:-python3} -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip --disable-pip-version-check install \
		torch==$(TORCH) -r requirements/layers.txt \
		-r requirements/build.txt -r requirements/tests.txt
	$(TORCH_VENV)/bin/python -m pip --disable-pip-version-check install \
		--no-deps --no-build-isolation mmcv-lite==2.1.0 --editable .
	$(TORCH_VENV)/bin/python -m pytest tests/ops tests/layers \
		-m 'not slow' $(ARGS)

lint: $(STAMP)  ## style
	$(PYTHON) -m ruff check .

wheel: $(STAMP)  ## dist/frn_mmdet-VERSION-py3-none-any.whl
	rm -rf build  # else what was deleted since then is built again
	$(PYTHON) -m pip wheel --no-deps --no-build-isolation -w dist .

clean:  ## removes what the demo and the tools wrote
	rm -rf $(DEMO_DATA) $(DEMO_DIR) build dist *.egg-info \
		.pytest_cache .ruff_cache .hypothesis

distclean: clean  ## removes the environments as well
	rm -rf .venv .venv-openmmlab .venv-torch-* $(IMAGENET)
