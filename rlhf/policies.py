"""Policies to train, stored policies with a model card, and loading them again."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import Config, LanguageConfig
from rlhf.policy import Policy, quiet_peft, with_adapter
from shared.errors import UserError
from shared.language_models.causal import load_causal, locate
from shared.processes.launch import on_main
from shared.run.checkpoint import is_complete, verify_folder
from shared.run.report import training_settings, write_model

PRETRAINED = Path("rlhf/pretrained/policy")


def load_model(
    config: LanguageConfig, accelerator: Accelerator
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of ``--model`` and its tokenizer; one process fetches it first if need be.

    Raises:
        UserError: nothing there, no causal language model, or the Hub cannot be reached.
    """
    root = Path(config.data)
    on_main(accelerator, lambda: locate(config.model, root))
    return load_causal("--model", config.model, root)


def make_policy(config: Config, model: PreTrainedModel) -> Policy:
    """The policy to train: ``model`` with an adapter, or all of it beside a frozen copy.

    Raises:
        UserError: no linear layer of the model has one of the names for the adapter.
    """
    if config.lora:
        policy = Policy(with_adapter(model, config.lora, config.lora_targets), None, config.critic)
    else:
        policy = Policy(model, copy.deepcopy(model), config.critic)
    if config.activation_checkpointing:
        policy.save_memory()
    return policy


def save_model(
    path: Path,
    preset: str,
    config: LanguageConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, Any],
    card: str,
) -> None:
    """Write a folder that PEFT (or transformers) and :func:`load_policy` read, with its card."""

    def save(folder: Path) -> None:
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = config.model
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_model(path, save, card, training=training_settings(preset, config), metrics=metrics)


def load_policy(name: str, root: Path) -> tuple[Policy, PreTrainedTokenizerBase, dict[str, Any]]:
    """Policy beside its reference, its tokenizer, and how it was trained.

    Args:
        name: ``pretrained``, a run folder, a model folder, or a model of the Hub. A whole model's
            reference is the model it was trained from, as its training.json says.

    Raises:
        UserError: nothing there, damaged, or it does not say what it was trained from.
    """
    path = PRETRAINED if name == "pretrained" else Path(name)
    if (path / "model").is_dir():
        path = path / "model"
    if is_complete(path):
        verify_folder(path)
    training = path / "training.json"
    about = json.loads(training.read_text()) if training.is_file() else {}
    if (path / "adapter_config.json").is_file():
        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        model, tokenizer = load_causal("--model", base, root)
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, path, is_trainable=False)
        return Policy(adapted), tokenizer, about
    if path.is_dir() and not about:
        raise UserError(f"--model {name}: has no training.json, so its reference is unknown")
    model, tokenizer = load_causal("--model", str(path) if path.is_dir() else name, root)
    reference = about["config"]["model"] if about else name
    return Policy(model, load_causal("--model", reference, root)[0]), tokenizer, about
