"""Blocks and masks: what is counted, once and only where it should be."""

import pytest
import torch

from distillation.lm.data import Blocks, completed, split_documents, spread, text_blocks
from shared.errors import UserError
from tests import tiny


def test_every_token_but_the_first_is_predicted_once() -> None:
    words, documents = tiny.tokenizer(), tiny.texts(5)
    blocks = text_blocks(documents, words, length=8)
    for number, text in enumerate(documents):
        own = blocks.at(blocks.document == number)
        predicted = own.tokens[:, 1:][own.counts]
        assert predicted.tolist() == words(text)["input_ids"][1:]
        assert own.tokens[0, 0] == words(text)["input_ids"][0]


def test_padding_and_prompt_do_not_count() -> None:
    words = tiny.tokenizer()
    (text,) = tiny.texts(1, words=13)  # blocks of 8 + 1 tokens: 0-8 and 8-12
    blocks = text_blocks([text], words, length=8, prompt=3)
    # counts[t] is about token t + 1: those from position 3 on, and only real ones.
    assert blocks.counts.tolist() == [
        [False, False, True, True, True, True, True, True],
        [False, False, True, True, False, False, False, False],
    ]
    assert (blocks.tokens[1, 5:] == words.pad_token_id).all()


def test_a_document_that_is_all_prompt_is_left_out() -> None:
    with pytest.raises(UserError, match="--prompt 40"):
        text_blocks(tiny.texts(1, words=30), tiny.tokenizer(), length=50, prompt=40)


def test_held_out_documents_are_no_training_documents() -> None:
    documents = [str(i) for i in range(25)]
    train, unseen = split_documents(documents)
    assert unseen == ["9", "19"]
    assert sorted(train + unseen, key=int) == documents
    assert split_documents(["a", "b"]) == (["a"], ["b"])
    with pytest.raises(UserError, match="one document only"):
        split_documents(["a"])


def test_spread_takes_from_every_document_before_it_takes_twice() -> None:
    blocks = text_blocks(tiny.texts(4, words=40), tiny.tokenizer(), length=8)
    assert spread(blocks, 4).document.tolist() == [0, 1, 2, 3]
    assert spread(blocks, 6).document.tolist() == [0, 1, 2, 3, 0, 1]
    assert torch.equal(spread(blocks, 1).tokens, blocks.tokens[:1])
    everything = spread(blocks, 10_000).tokens
    assert {tuple(row) for row in everything.tolist()} == {tuple(r) for r in blocks.tokens.tolist()}


def test_the_end_counts_and_what_follows_it_does_not() -> None:
    end, pad = 1, 2
    tokens = torch.tensor([[1, 5, 6, 1, 7, 1], [4, 5, 6, 7, 8, 9]])
    blocks = completed(tokens, torch.tensor([0, 1]), prompt=2, eos=end, pad=pad)
    assert blocks.tokens.tolist() == [[1, 5, 6, 1, 2, 2], [4, 5, 6, 7, 8, 9]]
    assert blocks.counts.tolist() == [  # the end inside the prompt ends nothing
        [False, True, True, False, False],
        [False, True, True, True, True],
    ]


def test_nothing_counts() -> None:
    blocks = Blocks(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 3).bool(), torch.zeros(2))
    assert blocks.count("step 3") == 6
    with pytest.raises(UserError, match="step 3: no prediction of its 2 blocks counts"):
        blocks.masked(True).count("step 3")
