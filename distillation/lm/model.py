"""Teacher and student: a causal language model as a trunk and output weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from shared.data.smollm2 import fetch_smollm2
from shared.errors import UserError

logging.disable_progress_bar()  # of loading weights
hub_logging.set_verbosity_error()  # an unreachable Hub is said once, by ourselves


class LanguageModel(nn.Module):
    """A transformers model whose logits are left to the caller: logits = hidden @ weight.T.

    Holds no tensor twice, also where the output weights are the embeddings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        bias: Tensor | None = getattr(head, "bias", None)
        if not isinstance(head, nn.Linear) or bias is not None:
            raise UserError(f"{model.config.model_type}: output weights of an unknown kind")
        self.config: PreTrainedConfig = model.config
        self.trunk: Any = model.base_model
        tied = head.weight is self.trunk.get_input_embeddings().weight
        self.head: nn.Linear | None = None if tied else head

    @property
    def weight(self) -> Tensor:
        """The output weights [vocabulary, width]."""
        layer = self.head or self.trunk.get_input_embeddings()
        weight: Tensor = layer.weight
        return weight

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n, length] -> hidden states [n, length, width], weight [vocabulary, width].

        No attention mask: padding is at the end, where a causal model's earlier positions do not
        see it.
        """
        hidden: Tensor = self.trunk(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden, self.weight

    @torch.no_grad()
    def complete(self, prompts: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Prompts [n, p] and random numbers in [0, 1) [n, new] -> tokens [n, p + new].

        A token is where the cumulated probabilities pass the random number: samples of the very
        distribution, no top-k, no top-p. Sampling goes on behind an end-of-text.
        """
        if not len(prompts):  # a process without rows; attention takes no empty batch
            return prompts.new_empty(0, prompts.shape[1] + uniforms.shape[1])
        cache, tokens, step = DynamicCache(config=self.config), prompts, prompts
        for uniform in uniforms.T:
            out = self.trunk(input_ids=step, past_key_values=cache, use_cache=True)
            logits = out.last_hidden_state[:, -1] @ self.weight.T.to(out.last_hidden_state.dtype)
            cumulated = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
            target = uniform[:, None].to(cumulated) * cumulated[:, -1:]
            step = torch.searchsorted(cumulated, target, right=True).clamp(max=logits.shape[-1] - 1)
            tokens = torch.cat([tokens, step], 1)
        return tokens

    def to_transformers(self) -> PreTrainedModel:
        """An ordinary model with these weights, for ``save_pretrained`` and ``generate``."""
        model = AutoModelForCausalLM.from_config(self.config)
        model.base_model.load_state_dict(self.trunk.state_dict())
        if self.head is not None:
            model.get_output_embeddings().load_state_dict(self.head.state_dict())
        return model


def locate(name: str, root: Path) -> str:
    """Folder or Hub name of a model; ``smollm2`` is fetched first if it is not there."""
    return str(fetch_smollm2(root)) if name == "smollm2" else name


def load(option: str, name: str, root: Path) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """A float32 model and its tokenizer: ``smollm2``, a folder, or a name on the Hub.

    Raises:
        UserError: nothing there, no causal language model, or the Hub cannot be reached.
    """
    source = locate(name, root)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if option == "--student" and _without_weights(Path(source)):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True
            )
    except Exception as error:  # the Hub, its HTTP client, transformers each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "cannot be read" if Path(source).is_dir() else (
            "is no folder, and the Hub gives no model under this name"
        )  # fmt: skip
        raise UserError(f"{option} {name}: {what} ({reason})") from error
    return LanguageModel(model), tokenizer


def _without_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob("*.safetensors"))


def parse_layers(text: str) -> list[int]:
    """``0-2,7`` -> [0, 1, 2, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def keep_layers(teacher: LanguageModel, layers: list[int]) -> LanguageModel:
    """A copy of the teacher with only these of its layers, in this order.

    Raises:
        UserError: a layer that the teacher does not have, or none.
    """
    there = len(teacher.trunk.layers)
    if not layers or max(layers) >= there:
        raise UserError(f"--layers {layers}: the teacher has the layers 0-{there - 1}")
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
    """Freeze what is not trained and return the rest."""
    model.requires_grad_(True)
    if not embeddings:
        model.trunk.get_input_embeddings().requires_grad_(False)
    return nn.ParameterList([p for p in model.parameters() if p.requires_grad])


def hidden_matrices(model: LanguageModel) -> list[Tensor]:
    """What Muon takes (Jordan et al. 2024): the matrices inside the layers."""
    return [p for p in model.trunk.layers.parameters() if p.dim() == 2]
