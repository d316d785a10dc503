"""Causal language models: where they come from, their hidden states, and exact sampling."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
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
from shared.errors import UserError, first_line

logging.disable_progress_bar()  # of loading weights
constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL's trainers report what is trained to the Hub
hub_logging.set_verbosity_error()  # an unreachable Hub is said once, by ourselves


def locate(name: str, root: Path) -> str:
    """Folder or Hub name of a model; ``smollm2`` is fetched first if it is not there."""
    return str(fetch_smollm2(root)) if name == "smollm2" else name


def load_causal(
    option: str, name: str, root: Path, *, may_be_random: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A float32 model and its tokenizer: ``smollm2``, a folder, or a name on the Hub.

    Args:
        option: the option that named it, for messages.
        may_be_random: a folder with a configuration but no weights starts at random.

    Raises:
        UserError: nothing there, no causal language model, or the Hub cannot be reached.
    """
    source = locate(name, root)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if may_be_random and _without_weights(Path(source)):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True
            )
    except Exception as error:  # the Hub, its HTTP client, transformers each raise their own
        reason = first_line(error)
        what = (
            "cannot be read"
            if Path(source).is_dir()
            else ("is no folder, and the Hub gives no model under this name")
        )
        raise UserError(f"{option} {name}: {what} ({reason})") from error
    return model, tokenizer


def _without_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob("*.safetensors"))


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
        self._no_split_modules = list(model._no_split_modules or [])  # what FSDP shards one by one
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

    def forward(self, tokens: Tensor, attention: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens [n, length] -> hidden states [n, length, width], weight [vocabulary, width].

        Without ``attention`` padding is at the end, where a causal model's earlier positions do not
        see it; with it, [n, length] bool, padding is where it is False, and positions count from
        the first token that is none.
        """
        given: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if attention is not None:
            given |= {"attention_mask": attention.long(), "position_ids": positions(attention)}
        hidden: Tensor = self.trunk(**given).last_hidden_state
        return hidden, self.weight

    def complete(self, prompts: Tensor, uniforms: Tensor) -> Tensor:
        """Prompts [n, p] and random numbers in [0, 1) [n, new] -> tokens [n, p + new]."""
        return self.sample(prompts, uniforms)[0]

    @torch.no_grad()
    def sample(
        self,
        prompts: Tensor,
        uniforms: Tensor,
        temperature: float = 1.0,
        attention: Tensor | None = None,
        ends: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Prompts [n, p] and random numbers in [0, 1) [n, new] -> completed prompts.

        A token is where the cumulated probabilities pass the random number: samples of the very
        distribution, no top-k, no top-p. Sampling goes on behind a row's end-of-text; once every
        row has one of ``ends``, what is left stays 0.

        Args:
            attention: [n, p] bool, False at the padding, which is on the left.

        Returns:
            tokens [n, p + new]; hidden states [n, new, width] before each of the new ones.
        """
        (n, p), new = prompts.shape, uniforms.shape[1]
        tokens = torch.cat([prompts, prompts.new_zeros(n, new)], 1)
        states = self.weight.new_zeros(n, new, self.weight.shape[1])
        if not n:  # a process without rows; attention takes no empty batch
            return tokens, states
        seen = (
            torch.ones_like(tokens)
            if attention is None
            else torch.cat([attention.long(), tokens.new_ones(n, new)], 1)
        )
        place = positions(seen)
        stops = tokens.new_tensor(list(ends))
        ended = tokens.new_zeros(n, dtype=torch.bool)
        cache, start = DynamicCache(config=self.config), 0
        with computing_type_once(self.trunk, tokens.device) as dtype:
            weight = self.weight.T.to(dtype or self.weight.dtype)
            training = self.trunk.training
            self.trunk.eval()  # in training mode layers that recompute would drop the cache
            for end, uniform in enumerate(uniforms.T, p):
                out = self.trunk(
                    input_ids=tokens[:, start:end],
                    past_key_values=cache,
                    use_cache=True,
                    attention_mask=seen[:, :end],
                    position_ids=place[:, start:end],
                )
                states[:, end - p] = out.last_hidden_state[:, -1]
                logits = out.last_hidden_state[:, -1].to(weight.dtype) @ weight
                cumulated = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
                target = uniform[:, None].to(cumulated) * cumulated[:, -1:]
                token = torch.searchsorted(cumulated, target, right=True)
                tokens[:, end] = token[:, 0].clamp(max=logits.shape[-1] - 1)
                start = end
                ended |= torch.isin(tokens[:, end], stops)
                if ended.all():
                    break
            self.trunk.train(training)
        return tokens, states

    def to_transformers(self) -> PreTrainedModel:
        """An ordinary model with these weights, for ``save_pretrained`` and ``generate``."""
        model = AutoModelForCausalLM.from_config(self.config)
        model.base_model.load_state_dict(self.trunk.state_dict())
        if self.head is not None:
            model.get_output_embeddings().load_state_dict(self.head.state_dict())
        return model


def positions(attention: Tensor) -> Tensor:
    """[n, length], 0 or False at padding -> each token's place among its row's tokens."""
    return (attention.long().cumsum(1) - 1).clamp(min=0)


@contextmanager
def computing_type_once(model: nn.Module, device: torch.device) -> Iterator[torch.dtype | None]:
    """Frozen weights of linear layers in autocast's type inside the ``with``; that type, or None.

    Autocast converts a frozen weight anew at every use, which is most of the time of sampling a
    token at a time. What is computed is the same.
    """
    if not torch.is_autocast_enabled(device.type):
        yield None
        return
    dtype = torch.get_autocast_dtype(device.type)
    frozen = [
        part.weight
        for part in model.modules()
        if isinstance(part, nn.Linear) and not part.weight.requires_grad
    ]
    kept = [weight.data for weight in frozen]
    try:
        for weight in frozen:
            weight.data = weight.data.to(dtype)
        yield dtype
    finally:
        for weight, data in zip(frozen, kept, strict=True):
            weight.data = data
