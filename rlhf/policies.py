"""Trained policies on disk: adapters or whole models with a card, and loading them again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlhf.config import LanguageConfig
from rlhf.policy import Policy, quiet_peft
from shared.cli import with_resume_cleared
from shared.errors import UserError
from shared.language_models.causal import load_causal
from shared.run.checkpoint import is_complete, verify_folder, write_folder
from shared.run.folder import write_json

PRETRAINED = Path("rlhf/pretrained/policy")


def save_model(
    path: Path,
    preset: str,
    config: LanguageConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    metrics: dict[str, Any],
    card: str,
) -> None:
    """A folder that PEFT (or transformers) and :func:`load_policy` read, with its card."""
    about = {"preset": preset, "config": asdict(with_resume_cleared(config))}

    def write(folder: Path) -> None:
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = config.model
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "training.json", about)
        write_json(folder / "metrics.json", metrics)
        (folder / "README.md").write_text(card)

    write_folder(path, write)


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
        raise UserError(f"--model {name}: has no training.json, so that its reference is unknown")
    model, tokenizer = load_causal("--model", str(path) if path.is_dir() else name, root)
    reference = about["config"]["model"] if about else name
    return Policy(model, load_causal("--model", reference, root)[0]), tokenizer, about
