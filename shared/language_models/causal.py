"""Loading causal language models, their hidden states, and exact sampling."""

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
from shared.language_models.head import OutputHead, logit_scale, soft_cap, trunk_of

logging.disable_progress_bar()  # of loading weights
constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL's trainers report what is trained to the Hub
hub_logging.set_verbosity_error()  # load_causal reports an unreachable Hub


def locate(name: str, root: Path) -> str:
    """Folder or Hub name of a model; ``smollm2`` is fetched first if it is missing."""
    return str(fetch_smollm2(root)) if name == "smollm2" else name


def load_causal(
    option: str, name: str, root: Path, *, may_be_random: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A float32 model and its tokenizer: ``smollm2``, a folder, or a name on the Hub.

    Args:
        option: the option that names the model, for messages.
        may_be_random: a folder with a configuration but no weights gives random weights.

    Raises:
        UserError: no such model, not a causal language model, a tokenizer with more tokens than the
            model, or the Hub cannot be reached.
    """
    source = locate(name, root)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        folder = Path(source)
        if may_be_random and folder.is_dir() and not any(folder.glob("*.safetensors")):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True
            )
    except Exception as error:  # the Hub, its HTTP client, transformers each raise their own
        what = "not a folder, and the Hub has no model of this name"
        if Path(source).is_dir():
            what = "cannot be read"
        raise UserError(f"{option} {name}: {what} ({first_line(error)})") from error
    try:
        count = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError) as error:
        raise UserError(f"{option} {name}: has no table of embeddings") from error
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= count:
        raise UserError(
            f"{option} {name}: its tokenizer has tokens up to number {last}, the model embeddings "
            f"for {count}; resize them (resize_token_embeddings)"
        )
    return model, tokenizer


class LanguageModel(nn.Module):
    """A transformers model that leaves its logits to the caller, who has hidden states and a head.

    It holds every tensor once, also where the output weights are the embeddings. Hidden states are
    multiplied by the model's own factor of the logits.

    Raises:
        UserError: the model's own logits are something else.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.scale, self.soft_cap = logit_scale(model), soft_cap(model)
        self.common: int | None = None
        head = model.get_output_embeddings()
        self.config: PreTrainedConfig = model.config
        self._no_split_modules = list(model._no_split_modules or [])  # what FSDP shards one by one
        self.trunk: Any = trunk_of(model)
        tied = head.weight is self.trunk.get_input_embeddings().weight and head.bias is None
        self.head: nn.Linear | None = None if tied else head

    @property
    def weight(self) -> Tensor:
        """The output weights [vocabulary, width]."""
        layer: Any = self.head or self.trunk.get_input_embeddings()
        return layer.weight

    @property
    def output(self) -> OutputHead:
        """What makes logits of hidden states."""
        bias = None if self.head is None else self.head.bias
        head = OutputHead(self.weight, bias, self.soft_cap)
        return head if self.common is None else head.first(self.common)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model can predict."""
        return self.common or self.weight.shape[0]

    def predict_only(self, common: int) -> None:
        """Leave out what pads the vocabulary beyond the first ``common`` tokens."""
        self.common = common

    def forward(self, tokens: Tensor, attention: Tensor | None = None) -> tuple[Tensor, OutputHead]:
        """tokens [n, length] -> hidden states [n, length, width], and the head.

        Without ``attention``, padding must be at the end, where earlier positions of a causal model
        do not see it. ``attention`` [n, length] is False at padding anywhere; positions then count
        from a row's first token.
        """
        arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if attention is not None:
            arguments |= {"attention_mask": attention.long(), "position_ids": positions(attention)}
        return self._scaled(self.trunk(**arguments).last_hidden_state), self.output

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.scale == 1 else hidden * self.scale

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

        A token is where the cumulated probabilities pass the random number: samples of the model's
        own distribution, without top-k or top-p. A row goes on after its end of text; when every
        row has had one of ``ends``, the remaining tokens stay 0.

        Args:
            attention: [n, p] bool, False at padding, which is on the left.
            ends: tokens that end a text.

        Returns:
            tokens [n, p + new]; hidden states [n, new, width] before each of the new ones.
        """
        (n, p), new = prompts.shape, uniforms.shape[1]
        tokens = torch.cat([prompts, prompts.new_zeros(n, new)], 1)
        states = self.weight.new_zeros(n, new, self.weight.shape[1])
        if not n:  # a process without rows; attention does not take an empty batch
            return tokens, states
        seen = torch.ones_like(tokens)
        if attention is not None:
            seen[:, :p] = attention
        place = positions(seen)
        stops = tokens.new_tensor(list(ends))
        ended = tokens.new_zeros(n, dtype=torch.bool)
        cache, start = DynamicCache(config=self.config), 0
        with computing_type_once(self.trunk, tokens.device) as dtype:
            head = self.output.to(dtype or self.weight.dtype)
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
                hidden = self._scaled(out.last_hidden_state[:, -1])
                states[:, end - p] = hidden
                logits = head.logits(hidden.to(head.weight.dtype))
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
        """An ordinary transformers model with these weights, to save or to ``generate`` with."""
        model = AutoModelForCausalLM.from_config(self.config)
        trunk_of(model).load_state_dict(self.trunk.state_dict())
        if self.head is not None:
            model.get_output_embeddings().load_state_dict(self.head.state_dict())
        return model


def positions(attention: Tensor) -> Tensor:
    """[n, length], 0 or False at padding -> position of each token in its row, without padding."""
    return (attention.long().cumsum(1) - 1).clamp(min=0)


@contextmanager
def computing_type_once(model: nn.Module, device: torch.device) -> Iterator[torch.dtype | None]:
    """Keep frozen weights of linear layers in autocast's type; yields that type, or None.

    Autocast converts a frozen weight at every use, which takes most of the time of sampling token
    by token. The results are the same.
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
