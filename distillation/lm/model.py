"""Teacher and student: a causal language model as a trunk and output weights."""

import copy
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shared.errors import UserError
from shared.language_models.causal import LanguageModel, load_causal


def load(option: str, name: str, root: Path) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """A float32 model and its tokenizer: ``smollm2``, a folder, or a name on the Hub.

    A student's folder may have a configuration and no weights: it starts at random.

    Raises:
        UserError: no such model, not a causal language model, or the Hub cannot be reached.
    """
    model, tokenizer = load_causal(option, name, root, may_be_random=option == "--student")
    return LanguageModel(model), tokenizer


def parse_layers(text: str) -> list[int]:
    """``0-2,7`` -> [0, 1, 2, 7]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def keep_layers(teacher: LanguageModel, layers: list[int]) -> LanguageModel:
    """A copy of the teacher with only these of its layers, in this order.

    Raises:
        UserError: a layer that the teacher does not have, or an empty list.
    """
    count = len(teacher.trunk.layers)
    if not layers or max(layers) >= count:
        raise UserError(f"--layers {layers}: the teacher has the layers 0-{count - 1}")
    student = copy.deepcopy(teacher)
    student.trunk.layers = nn.ModuleList(student.trunk.layers[i] for i in layers)
    for number, layer in enumerate(student.trunk.layers):
        layer.self_attn.layer_idx = number  # where its keys and values are cached
    student.config.num_hidden_layers = len(layers)
    if getattr(student.config, "layer_types", None):
        student.config.layer_types = [student.config.layer_types[i] for i in layers]
    return student


def start_student(
    option_student: str,
    layers: str,
    teacher: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
) -> LanguageModel:
    """The untrained student: of the teacher's layers, or a model of its own.

    Raises:
        UserError: another vocabulary than the teacher's.
    """
    if not option_student:
        return keep_layers(teacher, parse_layers(layers))
    student, own = load("--student", option_student, root)
    compare_vocabularies(f"--student {option_student}", (student, own), (teacher, tokenizer))
    return student


def compare_vocabularies(
    what: str,
    student: tuple[LanguageModel, PreTrainedTokenizerBase],
    teacher: tuple[LanguageModel, PreTrainedTokenizerBase],
) -> None:
    """Let both predict the same tokens: where one pads its vocabulary, without the padding.

    Raises:
        UserError: the tokenizers differ, or have tokens that one of the models does not predict.
    """
    (model, tokenizer), (other, of_teacher) = student, teacher
    tokens = tokenizer.get_vocab()
    if tokens != of_teacher.get_vocab():
        raise UserError(f"{what}: its tokenizer is not the teacher's; a KL needs the same tokens")
    common = min(model.vocabulary, other.vocabulary)
    if max(tokens.values()) >= common:
        raise UserError(
            f"{what}: has a vocabulary of {model.vocabulary} tokens, the teacher one of "
            f"{other.vocabulary}; a KL needs the same"
        )
    if model.vocabulary != other.vocabulary:
        model.predict_only(common)
        other.predict_only(common)


def common_part(model: LanguageModel) -> str:
    """What a run says about vocabularies that differ in their padding."""
    return f"the first {model.vocabulary:,} tokens, which both models predict; more is padding"


def trainable(model: LanguageModel, embeddings: bool) -> nn.ParameterList:
    """Freeze the embeddings, unless they are trained, and return the trained parameters."""
    model.requires_grad_(True)
    if not embeddings:
        model.trunk.get_input_embeddings().requires_grad_(False)
    return nn.ParameterList([p for p in model.parameters() if p.requires_grad])


def hidden_matrices(model: LanguageModel) -> list[Tensor]:
    """Weights for Muon (Jordan et al. 2024): the matrices inside the layers."""
    return [p for p in model.trunk.layers.parameters() if p.dim() == 2]
