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
    option_student: str, layers: str, teacher: LanguageModel, root: Path
) -> LanguageModel:
    """The untrained student: of the teacher's layers, or a model of its own.

    Raises:
        UserError: another vocabulary than the teacher's.
    """
    if not option_student:
        return keep_layers(teacher, parse_layers(layers))
    student, _ = load("--student", option_student, root)
    check_vocabulary(f"--student {option_student}", student, teacher)
    return student


def check_vocabulary(what: str, student: LanguageModel, teacher: LanguageModel) -> None:
    """UserError unless both predict the same number of tokens."""
    if student.vocabulary != teacher.vocabulary:
        raise UserError(
            f"{what}: has a vocabulary of {student.vocabulary} tokens, the teacher one of "
            f"{teacher.vocabulary}; a KL needs the same"
        )


def trainable(model: LanguageModel, embeddings: bool) -> nn.ParameterList:
    """Freeze the embeddings, unless they are trained, and return the trained parameters."""
    model.requires_grad_(True)
    if not embeddings:
        model.trunk.get_input_embeddings().requires_grad_(False)
    return nn.ParameterList([p for p in model.parameters() if p.requires_grad])


def hidden_matrices(model: LanguageModel) -> list[Tensor]:
    """Weights for Muon (Jordan et al. 2024): the matrices inside the layers."""
    return [p for p in model.trunk.layers.parameters() if p.dim() == 2]
