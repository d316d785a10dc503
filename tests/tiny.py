"""A language model small enough for tests, its tokenizer, and texts it has words for."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from shared.language_models.causal import LanguageModel

WORDS = [f"{a}{b}" for a in "bcdfghjklm" for b in ("a", "e", "i", "o", "u", "an", "en", "on")]
VOCABULARY = len(WORDS) + 3  # <unk>, <end>, <pad>


def tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    names = ["<unk>", "<end>", "<pad>", *WORDS][:vocabulary]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", pad_token="<pad>"
    )


def configuration(layers: int, vocabulary: int, tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        pad_token_id=2,
        bos_token_id=None,
        eos_token_id=1,
    )


def llama(layers: int = 2, vocabulary: int = VOCABULARY, tied: bool = True) -> LlamaForCausalLM:
    """Random weights, large enough that its predictions differ from uniform ones."""
    torch.manual_seed(layers + vocabulary)
    return LlamaForCausalLM(configuration(layers, vocabulary, tied)).eval()


def model(layers: int = 2, vocabulary: int = VOCABULARY, tied: bool = True) -> LanguageModel:
    return LanguageModel(llama(layers, vocabulary, tied)).eval()


def write_model(folder: Path, layers: int = 2, vocabulary: int = VOCABULARY) -> Path:
    llama(layers, vocabulary).save_pretrained(folder)
    tokenizer(vocabulary).save_pretrained(folder)
    return folder


def write_reward_model(
    folder: Path, labels: int = 1, vocabulary: int = VOCABULARY, seed: int = 0
) -> Path:
    """A sequence classifier with random weights."""
    torch.manual_seed(seed)
    config = configuration(1, vocabulary)
    config.num_labels = labels
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(count: int, words: int = 30) -> list[str]:
    """Documents of about so many words, no two of one length."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=words + i)) for i in range(count)]


def write_texts(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for i, text in enumerate(texts(count)):
        (folder / f"{i:02}.txt").write_text(text)
    return folder
