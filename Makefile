# Everything runs from here. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
PRESET ?= default
NPROC ?= 1
LAUNCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo ddp || echo cpu)
SEED ?=
RESUME ?=
ARGS ?=

BIN := .venv/bin
READY := .venv/ready
MNIST := data/MNIST/raw/t10k-labels-idx1-ubyte
SMOLLM2 := data/smollm2-135m-instruct/manifest.json
BROWN := data/brown.json

# LAUNCH is cpu, ddp, fsdp, zero2 or zero3.
ifeq ($(NPROC)$(NNODES),1)
  RUN := $(BIN)/python -m
else
  RUN := $(BIN)/python -m shared.processes.launcher $(NPROC) $(LAUNCH)
endif

# A resumed run brings its preset and seed with it.
TRAIN_ARGS = $(if $(RESUME),--resume $(RESUME),$(PRESET) $(if $(SEED),--seed $(SEED))) $(ARGS)

.PHONY: help setup data train-vae eval-vae sample-vae reproduce-vae bench-vae distill eval-distill \
  reproduce-distillation distill-lm eval-distill-lm reproduce-distill-lm bench-distill \
  train-rlhf train-sft train-reward train-dpo train-rloo eval-rlhf \
  reproduce-rlhf bench-rlhf \
  train-ppo train-trpo eval-ppo reproduce-ppo compare-ppo bench-rl \
  demo-kl bench-kl smoke faults new-app tables test lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24
	@echo
	@echo "variables       PRESET=smoke|default|paper  SEED=0  ARGS='--beta 4'  RESUME=runs/vae-default"
	@echo "                NPROC=2  LAUNCH=cpu|ddp|fsdp|zero2|zero3  NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST"

setup: $(READY)  ## .venv with the pinned requirements; every other target does it by itself

$(READY): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make setup: $(PYTHON) is older than 3.11; name another one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

data: $(MNIST) $(SMOLLM2) $(BROWN)  ## MNIST, SmolLM2 and the Brown corpus in data/, verified

$(MNIST): | $(READY)
	$(BIN)/python -m shared.data.mnist data

$(SMOLLM2): | $(READY)
	$(BIN)/python -m shared.data.smollm2 data

$(BROWN): | $(READY)
	$(BIN)/python -m shared.data.brown data

train-vae: $(MNIST)  ## train a beta-VAE on MNIST; the result is in runs/vae-default
	$(RUN) vae.train $(TRAIN_ARGS)

eval-vae: $(MNIST)  ## measure a model on the test digits; ARGS='--model runs/vae-default'
	$(BIN)/python -m vae.evaluate $(if $(SEED),--seed $(SEED)) $(ARGS)

sample-vae: $(MNIST)  ## draw reconstructions, samples, interpolation, traversals
	$(BIN)/python -m vae.sample $(if $(SEED),--seed $(SEED)) $(ARGS)

reproduce-vae: $(MNIST)  ## all runs behind the tables and figures of vae/README.md
	$(BIN)/python -m vae.experiments.reproduce $(ARGS)

bench-vae: $(MNIST)  ## speed against the PyTorch example and pythae
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-bench.txt -c constraints.txt
	$(BIN)/python -m vae.experiments.bench $(ARGS)

distill: $(MNIST)  ## a teacher, a student alone, the same distilled; runs/distillation-default
	$(RUN) distillation.train $(TRAIN_ARGS)

eval-distill: $(MNIST)  ## measure a run's networks or the committed ones
	$(BIN)/python -m distillation.evaluate $(ARGS)

reproduce-distillation: $(MNIST)  ## all runs behind the tables of distillation/README.md
	$(BIN)/python -m distillation.experiments.reproduce $(ARGS)

distill-lm: $(SMOLLM2) $(BROWN)  ## distil SmolLM2 into half of its layers; runs/distill-lm-default
	$(RUN) distillation.lm.train $(TRAIN_ARGS)

eval-distill-lm: $(SMOLLM2) $(BROWN)  ## distance from the teacher, cost, continuations
	$(BIN)/python -m distillation.lm.evaluate $(if $(SEED),--seed $(SEED)) $(ARGS)

reproduce-distill-lm: $(SMOLLM2) $(BROWN)  ## all runs behind distillation/lm/README.md
	$(BIN)/python -m distillation.lm.experiments.reproduce $(ARGS)

bench-distill: $(READY)  ## the loss from hidden states against the naive way and TRL
	$(BIN)/python -m distillation.lm.experiments.bench $(ARGS)

# The reward model is trained once a preset; PPO against it is a run of its own each time.
REWARD := runs/rlhf-reward-$(PRESET)
$(REWARD)/model/manifest.json: | $(SMOLLM2)
	$(RUN) rlhf.reward $(if $(wildcard $(REWARD)),--resume $(REWARD),$(PRESET) --out $(REWARD))

train-rlhf: $(SMOLLM2) $(if $(RESUME),,$(REWARD)/model/manifest.json)  ## a reward model from preferences, then PPO against it; runs/rlhf-ppo-default
	$(RUN) rlhf.ppo $(TRAIN_ARGS) $(if $(RESUME),,--reward $(REWARD)/model)

train-sft train-reward train-dpo train-rloo: train-%: $(SMOLLM2)
	$(RUN) rlhf.$* $(TRAIN_ARGS)

train-sft:  ## supervised fine-tuning (TRL); runs/rlhf-sft-default
train-reward:  ## a reward model from preference pairs (TRL)
train-dpo:  ## DPO on preference pairs (TRL), its KL measured
train-rloo:  ## RLOO against the committed reward model (TRL)

eval-rlhf: $(SMOLLM2)  ## rewards, KL and completions of the committed policy or a run's
	$(BIN)/python -m rlhf.evaluate $(if $(SEED),--seed $(SEED)) $(ARGS)

TRL_PPO := .venv-trl-1.12/ready

$(TRL_PPO): requirements-bench-trl.txt | $(READY)
	rm -rf .venv-trl-1.12
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target .venv-trl-1.12 -r requirements-bench-trl.txt
	@touch $@

reproduce-rlhf: $(SMOLLM2) $(TRL_PPO)  ## frontier, over-optimisation, best-of-n, estimators
	$(BIN)/python -m rlhf.experiments.reproduce $(ARGS)

bench-rlhf: $(SMOLLM2) $(TRL_PPO)  ## speed of PPO against TRL's last PPO trainer, and its RLOO
	$(BIN)/python -m rlhf.experiments.bench $(ARGS)

train-ppo: $(READY)  ## PPO on CartPole; ARGS='--env Hopper-v5 --algo ppo-kl-adaptive'
	OMP_NUM_THREADS=1 $(RUN) trpo_ppo.train $(TRAIN_ARGS)

train-trpo: $(READY)  ## TRPO on CartPole
	OMP_NUM_THREADS=1 $(RUN) trpo_ppo.train $(TRAIN_ARGS) $(if $(RESUME),,--algo trpo)

eval-ppo: $(READY)  ## return of a run's or a committed policy, and a film of it
	$(BIN)/python -m trpo_ppo.evaluate $(if $(SEED),--seed $(SEED)) $(ARGS)

reproduce-ppo: $(READY)  ## the PPO paper's Table 1, with TRPO beside it
	$(BIN)/python -m trpo_ppo.experiments.reproduce $(ARGS)

bench-rl: $(READY)  ## speed against Stable-Baselines3 and sb3-contrib
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-bench.txt -c constraints.txt
	$(BIN)/python -m trpo_ppo.experiments.bench $(ARGS)

compare-ppo: $(READY)  ## scores against Stable-Baselines3 and sb3-contrib at equal steps
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-bench.txt -c constraints.txt
	$(BIN)/python -m trpo_ppo.experiments.compare $(ARGS)

demo-kl: $(READY)  ## what the direction of a KL does: tables and a picture in runs/demo-kl
	$(BIN)/python -m shared.experiments.kl.demo $(ARGS)

bench-kl: $(READY)  ## time, memory and precision of KLs, up to language-model logits
	$(BIN)/python -m shared.experiments.kl.bench_functions --json shared/kl/results/functions.json
	$(BIN)/python -m shared.experiments.kl.bench --results shared/kl/results $(ARGS)

smoke: $(MNIST) $(SMOLLM2) $(BROWN)  ## every application at its smallest, to see that all work
	@set -e; for program in vae.train distillation.train distillation.lm.train trpo_ppo.train \
	  rlhf.ppo rlhf.dpo; do echo "== $$program smoke"; \
	  $(BIN)/python -m $$program smoke --out runs/smoke/$$(date +%s)-$$program; done

faults: $(MNIST)  ## kill, fill, damage and poison runs of every application; the table of outcomes
	$(BIN)/python -m tests.reliability.campaign $(ARGS)

new-app: $(READY)  ## begin an application of your own: make new-app NAME=word
	@$(BIN)/python -m shared.template.new_app $(NAME)

tables: $(READY)  ## write the tables of the READMEs from the committed results
	$(BIN)/python -m shared.experiments.tables

test: lint $(MNIST) $(SMOLLM2) $(BROWN)  ## lint and all tests, in two processes
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)  ## ruff, mypy, import contracts, tables up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m shared.experiments.tables --check

clean:  ## remove caches; keeps .venv, data and runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
