"""Reward models: sequence classifiers with their own tokenizers, whole or as adapters."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from rlhf.policy import quiet_peft
from shared.errors import UserError, first_line
from shared.language_models.causal import locate


class RewardModel:
    """A sequence classifier with its own tokenizer, called like a reward function.

    With one label its logit is the reward; with two it is the log-odds of the second, as for the
    sentiment classifier of the DPO paper (Rafailov et al. 2023).
    """

    def __init__(
        self, what: str, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32
    ) -> None:
        """Messages begin with ``what``, an option and its value.

        Raises:
            UserError: more than two labels, a tokenizer without a padding token or with more
                tokens than the model has embeddings.
        """
        self.what = what
        self.__name__ = what.split(" ")[-1]  # in the names of TRL's metrics
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        labels, rows = model.config.num_labels, model.get_input_embeddings().num_embeddings
        if labels not in (1, 2):
            raise UserError(f"{what}: gives {labels} scores, a reward model gives one or two")
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"{what}: its tokenizer has no padding token; add one to its tokenizer_config.json"
            )
        if len(tokenizer) > rows:
            raise UserError(
                f"{what}: its tokenizer has {len(tokenizer)} tokens, the model embeds {rows}: "
                f"they do not belong together"
            )
        model.config.pad_token_id = tokenizer.pad_token_id  # a score is read before the padding
        longest = getattr(model.config, "max_position_embeddings", None)
        self.longest = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
        self.model.eval().requires_grad_(False)

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """The reward of each prompt with its completion.

        Raises:
            UserError: a text longer than the model reads.
        """
        texts = (p + c for p, c in zip(prompts, completions, strict=True))
        rows = [self._tokens(text) for text in texts]
        if (most := max(map(len, rows), default=0)) > self.longest:
            raise UserError(f"{self.what}: reads at most {self.longest} tokens, a text has {most}")
        batches = (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))
        return [score for batch in batches for score in self._scores(batch)]

    def _tokens(self, text: str) -> list[int]:
        """The tokens with an end-of-text behind them, as TRL's RewardTrainer trains on."""
        tokens: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> list[float]:
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        device = self.model.device
        tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        logits = self.model(input_ids=tokens, attention_mask=mask.long()).logits.double()
        scores = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
        return list(map(float, scores))


def load_reward_model(what: str, source: str, root: Path) -> RewardModel:
    """A reward model from a folder, with a whole model or an adapter, or from the Hub.

    Args:
        what: the option that named it and its value, for messages.
        source: folder or name on the Hub; also the base of an adapter may be ``smollm2``.
        root: folder of the data sets, where ``smollm2`` is.

    Raises:
        UserError: nothing there, not a trained sequence classifier, a tokenizer that does not fit
            it, or the Hub cannot be reached.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a missing head is reported below, in one line
    try:
        if (Path(source) / "adapter_config.json").is_file():
            model, tokenizer = _adapted(what, source, root)
        else:
            model, tokenizer = _classifier(what, source)
    except UserError:
        raise
    except Exception as error:  # the Hub, its HTTP client, transformers, PEFT raise their own
        problem = (
            "cannot be read as a reward model"
            if Path(source).is_dir()
            else "is not a folder, and the Hub has no such model"
        )
        raise UserError(f"{what}: {problem} ({first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    return RewardModel(what, model, tokenizer)


def _classifier(what: str, source: str) -> tuple[Any, PreTrainedTokenizerBase]:
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):  # such as the head, if it is a language model
        raise UserError(
            f"{what}: is not a sequence classifier, it has no {missing[0]}; "
            f"python -m rlhf.reward trains one"
        )
    return model, AutoTokenizer.from_pretrained(source)


def _adapted(what: str, folder: str, root: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A language model with an adapter and a trained head, the adapter merged into the weights."""
    adapter = PeftConfig.from_pretrained(folder)
    if adapter.task_type != "SEQ_CLS":
        raise UserError(
            f"{what}: is an adapter for {adapter.task_type}, not for a sequence classifier; "
            f"python -m rlhf.reward trains one"
        )
    base = locate(str(adapter.base_model_name_or_path), root)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    with quiet_peft():
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    with_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
    return merged, AutoTokenizer.from_pretrained(folder if with_tokenizer else base)
