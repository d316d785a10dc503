"""From documents to blocks of tokens with a mask of the predictions that count."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillation.lm.config import Config
from shared.data.text import load_documents
from shared.errors import UserError
from shared.training.batches import stream

HELD_OUT = 10  # every tenth document


class Blocks(NamedTuple):
    """tokens [n, length + 1] int64; counts [n, length] bool: which predictions of the next token
    count; document [n] int64: where each block is from."""

    tokens: Tensor
    counts: Tensor
    document: Tensor

    def at(self, rows: Tensor | slice) -> "Blocks":
        return Blocks(self.tokens[rows], self.counts[rows], self.document[rows])

    def to(self, device: torch.device | str) -> "Blocks":
        return Blocks(*(part.to(device) for part in self))

    def count(self, where: str) -> int:
        """The number of predictions that count; UserError if it is 0."""
        if not (count := int(self.counts.sum())):
            raise UserError(f"{where}: no prediction of its {len(self.tokens)} blocks counts")
        return count

    def masked(self, idle: bool) -> "Blocks":
        """The same blocks; if ``idle``, none of their predictions counts."""
        return self._replace(counts=self.counts & (not idle))


def read_blocks(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[Blocks, Blocks]:
    """Training blocks and held-out ones."""
    documents, unseen_documents = split_documents(load_documents(config.text, Path(config.data)))
    blocks = text_blocks(documents, tokenizer, config.length, config.prompt)
    unseen = text_blocks(unseen_documents, tokenizer, config.length)
    blocks = spread(blocks, config.train_blocks or len(blocks.tokens))
    if config.completions == "teacher":  # which writes only the texts that the run gets to
        taken = stream(len(blocks.tokens), config.seed, 0, config.epochs * config.epoch_blocks)
        blocks = blocks.at(taken.unique())
    return blocks, spread(unseen, config.evaluation_blocks)


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and held-out documents: every tenth is held out, of fewer than ten the last."""
    if len(documents) == 1:
        raise UserError("--text: one document only; a part of the text must be held out")
    unseen = set(range(HELD_OUT - 1, len(documents), HELD_OUT)) or {len(documents) - 1}
    return (
        [text for i, text in enumerate(documents) if i not in unseen],
        [text for i, text in enumerate(documents) if i in unseen],
    )


def text_blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, prompt: int = 0
) -> Blocks:
    """Documents cut into blocks of ``length`` predictions, the next block starting with the last
    token of the one before; no block spans two documents.

    The end of a document is padded; padding and the first ``prompt`` tokens do not count.
    """
    pad = padding(tokenizer)
    rows, documents_of = [], []
    for number, text in enumerate(documents):
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(tokens) - 1, length):
            part = tokens[start : start + length + 1]
            if len(part) > prompt + 1:
                rows.append(part)
                documents_of.append(number)
    if not rows:
        raise UserError(f"--text: no document is longer than --prompt {prompt} tokens")
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.tensor([row + [pad] * (length + 1 - len(row)) for row in rows])
    position = torch.arange(1, length + 1)  # of the predicted token
    counts = (position >= max(prompt, 1)) & (position < lengths[:, None])
    return Blocks(padded, counts, torch.tensor(documents_of))


def spread(blocks: Blocks, count: int) -> Blocks:
    """The first blocks of every document, then the second ones, ...: ``count`` of them."""
    before = torch.zeros(len(blocks.document), dtype=torch.int64)
    for i in range(1, len(before)):
        if blocks.document[i] == blocks.document[i - 1]:
            before[i] = before[i - 1] + 1
    return blocks.at(torch.argsort(before, stable=True)[:count])


def completed(tokens: Tensor, document: Tensor, prompt: int, eos: int, pad: int) -> Blocks:
    """Blocks of sampled tokens [n, length + 1]: what follows the first end-of-text is padding.

    The end-of-text itself counts, as the prediction that the text ends.
    """
    after_prompt = torch.arange(tokens.shape[1], device=tokens.device) >= prompt
    ends = (tokens == eos) & after_prompt
    ended_before = ends.cumsum(1) - ends.long() > 0
    counts = (after_prompt & ~ended_before)[:, 1:]
    return Blocks(tokens.masked_fill(ended_before, pad), counts, document)


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token: masks come from lengths, never from tokens."""
    return int(tokenizer.pad_token_id or 0)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text; -1, which no token equals, if there is none."""
    return -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
