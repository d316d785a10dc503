"""Prompts and preference pairs, text or conversations: ours, from a file, or from the Hub.

A fifth of the prompts is held out. Whether one is depends on the prompt alone, so a prompt that is
held out of one data set is held out of every other, and of the pairs that a reward model learns.
"""

import hashlib
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from rlhf.config import LanguageConfig
from rlhf.prompts.openings import openings
from rlhf.prompts.rows import Row, read_rows
from shared.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT = 5  # one prompt in five
OPENING = (2, 8)  # tokens of a text that become a prompt, from and to (Rafailov et al. 2023)
PREFERENCES = Path(__file__).parents[1] / "data" / "preferences.jsonl"


@dataclass(frozen=True)
class Prompts:
    """Prompts as the model reads them, their tokens, and the data set's further columns.

    A conversation is a text here, with the chat template applied. No prompt is empty.
    """

    texts: list[str]
    tokens: list[list[int]]
    columns: dict[str, list[Any]]

    def at(self, rows: Sequence[int]) -> "Prompts":
        """These prompts, in this order."""
        return Prompts(
            [self.texts[i] for i in rows],
            [self.tokens[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
        )


def read_prompts(
    option: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    held_out: bool,
    limit: int = 0,
) -> Prompts:
    """The training prompts of a source, or the held-out ones.

    Args:
        option: the option that named it, for messages.
        source: ``movies``, our openings; a .jsonl, .json, .csv or .parquet file, or a data set of
            the Hub, with a column ``prompt``, text or conversational, or else a column ``text``,
            of which the first 2 to 8 tokens are a prompt.
        max_length: tokens of a prompt at most.
        limit: number of prompts at most, the first ones; 0: all.

    Raises:
        UserError: nothing there, no column ``prompt``, a prompt that is empty, too long or
            neither text nor a conversation, or no prompt in this part.
    """
    what = f"{option} {source}"
    if source == "movies":
        rows: list[Row] = [{"prompt": text} for text in openings()]
    else:
        rows = read_rows(what, source)
        if "prompt" not in rows[0] and "text" in rows[0]:
            rows = openings_of(what, rows, tokenizer)
    _check(what, rows, ("prompt",))
    chosen = [(i, row) for i, row in enumerate(rows, 1) if is_held_out(row["prompt"]) == held_out]
    if not chosen:
        raise UserError(_none_in_this_part(what, len(rows), held_out))
    chosen = chosen[: limit or None]
    encoded = [
        _encode(f"{what}: row {number}", row["prompt"], tokenizer, max_length)
        for number, row in chosen
    ]
    names = dict.fromkeys(name for _, row in chosen for name in row if name != "prompt")
    columns = {name: [row.get(name) for _, row in chosen] for name in names}
    return Prompts([text for text, _ in encoded], [tokens for _, tokens in encoded], columns)


def prompts_of(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, *, held_out: bool, limit: int = 0
) -> Prompts:
    """The prompts that ``--prompts`` of a program names, as :func:`read_prompts`."""
    longest = config.max_prompt
    return read_prompts(
        "--prompts", config.prompts, tokenizer, longest, held_out=held_out, limit=limit
    )


def openings_of(what: str, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The first words of the texts, each once; their number is a function of the text alone.

    The prompts of Rafailov et al. 2023, section 6, are 2 to 8 tokens of a review.

    Raises:
        UserError: a row without a text, or no text that is long enough.
    """
    _check(what, rows, ("text",))
    low, high = OPENING
    unique = dict[str, None]()
    for number, row in enumerate(rows, 1):
        if not isinstance(row["text"], str):
            raise UserError(f"{what}: row {number}: its text is a conversation")
        length = low + _hash(row["text"]) % (high - low + 1)
        encoded = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
        opening = str(tokenizer.decode(encoded[:length], skip_special_tokens=True))
        if len(encoded) > length and opening.strip():
            unique[opening] = None
    if not unique:
        raise UserError(f"{what}: none of its {len(rows)} texts has more than {low} tokens")
    return [{"prompt": opening} for opening in unique]


def read_preferences(option: str, source: str, *, held_out: bool) -> "Dataset":
    """Pairs of completions with the columns ``prompt``, ``chosen``, ``rejected``, for TRL.

    Args:
        option: the option that named it, for messages.
        source: ``movies``, the committed pairs; a file or a data set of the Hub as for
            ``read_prompts``, text or conversational. Without a column ``prompt`` TRL takes the
            common beginning of both completions.
        held_out: only pairs whose prompt is held out, or only the others.

    Raises:
        UserError: nothing there, a column missing or empty, or no pair in this part.
    """
    from datasets import Dataset  # seconds to import, as TRL
    from trl import maybe_extract_prompt

    what = f"{option} {source}"
    rows = read_rows(what, str(PREFERENCES) if source == "movies" else source)
    _check(what, rows, ("chosen", "rejected"), may_be_empty=True)
    if not all("prompt" in row for row in rows):
        rows = [maybe_extract_prompt(row) for row in rows]
    _check(what, rows, ("prompt",))
    pairs = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        for row in rows
        if is_held_out(row["prompt"]) == held_out
    ]
    if not pairs:
        raise UserError(_none_in_this_part(what, len(rows), held_out))
    return Dataset.from_list(pairs)


def is_held_out(prompt: str | list[Row]) -> bool:
    """Whether this prompt, text or conversation, belongs to the fifth that nothing learns from."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return _hash(text) % HELD_OUT == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _encode(
    where: str, prompt: str | list[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[str, list[int]]:
    """A prompt as text and tokens, as TRL's trainers encode it."""
    if isinstance(prompt, str):
        text, tokens = prompt, tokenizer(prompt, verbose=False)["input_ids"]
    else:
        from trl import apply_chat_template

        if tokenizer.chat_template is None:
            raise UserError(f"{where} is a conversation, and the tokenizer has no chat template")
        try:
            text = apply_chat_template({"prompt": prompt}, tokenizer)["prompt"]
        except Exception as error:  # templates are programs: Jinja's errors, ValueError, KeyError
            raise UserError(
                f"{where}: the chat template refuses this conversation ({first_line(error)})"
            ) from error
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not tokens:
        raise UserError(f"{where}: its prompt has no tokens")
    if len(tokens) > max_length:
        raise UserError(
            f"{where}: its prompt has {len(tokens)} tokens, more than the {max_length} allowed"
        )
    return text, tokens


def _check(
    what: str, rows: list[Row], needed: Sequence[str], *, may_be_empty: bool = False
) -> None:
    """Raise a UserError unless every row has these columns, each a text or a conversation."""
    for number, row in enumerate(rows, 1):
        if missing := [name for name in needed if name not in row]:
            raise UserError(
                f"{what}: row {number} has no column {' and no column '.join(missing)}; it has "
                f"{', '.join(row) or 'none'}, needed are {', '.join(needed)}"
            )
        for name in needed:
            value = row[name]
            if value is None or value == [] or (not may_be_empty and not str(value).strip()):
                raise UserError(f"{what}: row {number}: its {name} is empty")
            if not isinstance(value, str) and not _is_conversation(value):
                raise UserError(
                    f"{what}: row {number}: its {name} is neither text nor a conversation: "
                    f"{reprlib.repr(value)}"
                )


def _is_conversation(value: Any) -> bool:
    from trl import is_conversational  # a second to import, which texts do not need

    return isinstance(value, list) and is_conversational({"prompt": value})


def _none_in_this_part(what: str, count: int, held_out: bool) -> str:
    part = "held out" if held_out else "left to train on"
    return f"{what}: none of its {count} rows is {part}; one prompt in {HELD_OUT} is held out"
