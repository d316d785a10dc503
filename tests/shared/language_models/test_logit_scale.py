"""Models of many families: their own logits, or a refusal in one line."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distillation.lm.objective import LazyLogits, chunked, divergence
from shared.errors import UserError
from shared.language_models.causal import LanguageModel

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama": ("llama", {}, 1.0),
    "mistral": ("mistral", {}, 1.0),
    "qwen2": ("qwen2", {}, 1.0),
    "qwen3": ("qwen3", {"head_dim": 8}, 1.0),
    "gemma": ("gemma", {"head_dim": 8}, 1.0),
    "granite": ("granite", {"logits_scaling": 8.0}, 1 / 8),
    "cohere": ("cohere", {"logit_scale": 0.3}, 0.3),
    "cohere2": ("cohere2", {"logit_scale": 0.0625}, 0.0625),
    "phi3": ("phi3", {}, 1.0),
    "olmo2": ("olmo2", {}, 1.0),
    "stablelm": ("stablelm", {}, 1.0),
    "starcoder2": ("starcoder2", {}, 1.0),
    "gpt_neox": ("gpt_neox", {}, 1.0),
    "gpt2": ("gpt2", GPT, 1.0),
    "gemma2": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}, 1.0),
    "gemma3_text": ("gemma3_text", {"head_dim": 8, "final_logit_softcapping": 3.0}, 1.0),
    "phi": ("phi", {}, 1.0),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}, 1.0),
    "falcon_h1": (
        "falcon_h1",
        {
            "head_dim": 8,
            "lm_head_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "mamba_d_ssm": 16,
            "mamba_n_heads": 2,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
        0.4,
    ),
    "llama4_text": ("llama4_text", {"head_dim": 8, "intermediate_size_mlp": 32}, 1.0),
    "mamba": ("mamba", {}, 1.0),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 2}, 1.0),
    "opt": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}, 1.0),
}


def made(kind: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes)).eval()


@pytest.mark.parametrize(("kind", "changes", "scale"), FAMILIES.values(), ids=FAMILIES)
def test_logits_and_gradients_are_the_models_own(
    kind: str, changes: dict[str, Any], scale: float
) -> None:
    model = made(kind, changes)
    tokens = torch.randint(1, 64, (2, 7))
    lm = LanguageModel(model)
    assert lm.scale == pytest.approx(scale, rel=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)  # transformers starts it at zero
        lm = LanguageModel(model)
    own = model(tokens).logits
    hidden, head = lm(tokens)
    torch.testing.assert_close(head.logits(hidden), own, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(own)
    for found, expected in zip(
        gradients((head.logits(hidden) * direction).sum(), parameters),
        gradients((own * direction).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def gradients(value: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@pytest.mark.parametrize("objective", ["forward", "reverse", "js", "skew"])
@pytest.mark.parametrize("kind", ["granite", "gemma2", "phi", "falcon_h1"])
def test_fused_losses_are_those_of_the_models_own_logits(kind: str, objective: Any) -> None:
    """KL of the student's own logits, value and gradient to every parameter."""
    teacher, student = made("llama", {}).requires_grad_(False), made(*FAMILIES[kind][:2])
    if student.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(student.get_output_embeddings().bias)
    tokens = torch.randint(1, 64, (2, 7))
    with torch.no_grad():
        of_teacher, target = LazyLogits(*LanguageModel(teacher)(tokens)), teacher(tokens).logits
    flat = [LazyLogits(x.hidden.flatten(0, 1), x.head) for x in (of_teacher,)]
    of_student = LazyLogits(*LanguageModel(student)(tokens))
    found = chunked(
        objective, flat[0], LazyLogits(of_student.hidden.flatten(0, 1), of_student.head), 1.5, 0.2
    )
    logits = student(tokens).logits.flatten(0, 1)
    expected = divergence(objective, target.flatten(0, 1), logits, 1.5, 0.2).sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    parameters = [p for p in student.parameters() if p.requires_grad]
    for one, other in zip(
        gradients(found, parameters), gradients(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["granite", "cohere", "gemma2", "phi"])
def test_samples_are_of_the_models_own_distribution(kind: str) -> None:
    """At random numbers of 1/2 a token is the median of the model's own distribution."""
    model = made(*FAMILIES[kind][:2])
    tokens, states = LanguageModel(model).sample(torch.tensor([[5, 7]]), torch.full((1, 4), 0.5))
    probabilities = model(tokens).logits[0, 1:-1].softmax(-1)
    medians = (probabilities.cumsum(-1) < 0.5).sum(-1)
    assert tokens[0, 2:].tolist() == medians.tolist()
    head = LanguageModel(model).output
    torch.testing.assert_close(head.logits(states[0]).softmax(-1), probabilities)


@pytest.mark.parametrize("kind", ["electra", "bert", "roberta"])
def test_what_its_output_weights_do_not_explain_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}: its (logits are not|output weights do not)") as e:
        LanguageModel(made(kind, {"is_decoder": True}))
    assert "\n" not in str(e.value)


def test_a_model_that_differs_in_an_unknown_way_is_refused() -> None:
    model = made("llama", {})
    forward = model.forward

    def squared(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits + 0.01 * out.logits.square()
        return out

    model.forward = squared
    with pytest.raises(UserError, match=r"llama: its logits are not a multiple .* another model's"):
        LanguageModel(model)
