"""Teacher and student as trunks with output weights: the same logits as transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from distillation.lm.model import (
    LanguageModel,
    compare_vocabularies,
    hidden_matrices,
    keep_layers,
    load,
    parse_layers,
    start_student,
    trainable,
)
from shared.errors import UserError
from tests import tiny

TOKENS = torch.arange(3, 33).reshape(3, 10)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tied: bool) -> None:
    whole = tiny.llama(tied=tied)
    hidden, head = LanguageModel(whole)(TOKENS)
    assert torch.allclose(head.logits(hidden), whole(TOKENS).logits, atol=1e-5)
    names = [name for name, _ in LanguageModel(whole).state_dict().items() if "weight" in name]
    assert len([n for n in names if "embed" in n or "head" in n]) == (1 if tied else 2)


@pytest.mark.parametrize("tied", [True, False])
def test_back_to_transformers(tied: bool, tmp_path: Path) -> None:
    student = keep_layers(tiny.model(layers=3, tied=tied), [0, 2])
    student.to_transformers().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    hidden, head = student(TOKENS)
    assert again.config.num_hidden_layers == 2
    assert torch.allclose(again(TOKENS).logits, head.logits(hidden), atol=1e-5)


def test_layers() -> None:
    assert parse_layers("0-2,7") == [0, 1, 2, 7]
    assert parse_layers("5") == [5]
    teacher = tiny.model(layers=3)
    everything = keep_layers(teacher, [0, 1, 2])
    assert torch.equal(everything(TOKENS)[0], teacher(TOKENS)[0])
    student = keep_layers(teacher, [0, 2])
    assert len(teacher.trunk.layers) == 3  # the teacher is as it was
    for ours, theirs in ((0, 0), (1, 2)):
        pair = (student.trunk.layers[ours], teacher.trunk.layers[theirs])
        weights = [layer.mlp.up_proj.weight for layer in pair]
        assert torch.equal(*weights)
        assert weights[0] is not weights[1]
    # By hand: embed, layer 0, layer 2, norm.
    trunk = teacher.trunk
    x = trunk.embed_tokens(TOKENS)
    rotary = trunk.rotary_emb(x, torch.arange(10)[None])
    for layer in (trunk.layers[0], trunk.layers[2]):
        x = layer(x, position_embeddings=rotary)
    assert torch.allclose(student(TOKENS)[0], trunk.norm(x), atol=1e-5)


@pytest.mark.parametrize("layers", [[3], []])
def test_layers_that_are_not_there(layers: list[int]) -> None:
    with pytest.raises(UserError, match="--layers"):
        keep_layers(tiny.model(layers=3), layers)


def test_padding_behind_changes_nothing_before_it() -> None:
    model, padded = tiny.model(), TOKENS.clone()
    padded[:, 6:] = 2
    assert torch.allclose(model(TOKENS)[0][:, :6], model(padded)[0][:, :6], atol=1e-6)


def test_complete_samples_the_models_own_distribution() -> None:
    model = tiny.model()
    torch.manual_seed(0)
    n = 20_000
    prompts = torch.tensor([[5, 6, 7]]).expand(n, 3)
    written = model.complete(prompts, torch.rand(n, 1))
    assert torch.equal(written[:, :3], prompts)
    hidden, head = model(prompts[:1])
    p = torch.softmax((head.logits(hidden[0, -1])), -1)
    found = torch.bincount(written[:, 3], minlength=len(p)) / n
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_complete_with_a_cache_is_complete_without() -> None:
    """Each sampled token must be the one the whole text so far gives."""
    model, uniforms = tiny.model(layers=3), torch.rand(4, 5, generator=torch.Generator())
    tokens = TOKENS[:1, :4].expand(4, 4)
    written = model.sample(tokens, uniforms, temperature=0.7)[0]
    for uniform in uniforms.T:
        hidden, head = model(tokens)
        cumulated = torch.softmax(head.logits(hidden[:, -1]).double() / 0.7, -1).cumsum(-1)
        tokens = torch.cat([tokens, (cumulated <= uniform[:, None]).sum(-1, keepdim=True)], 1)
    assert torch.equal(written, tokens)


def test_what_is_trained() -> None:
    model = tiny.model()
    some, everything = (
        sum(p.numel() for p in trainable(model, embeddings)) for embeddings in (False, True)
    )
    assert everything - some == tiny.VOCABULARY * 32
    assert len(hidden_matrices(model)) == 2 * 7


def test_a_padded_vocabulary_is_compared_over_the_common_part(tmp_path: Path) -> None:
    teacher, tokens = tiny.model(), torch.tensor([[3, 4, 5]])
    other = tiny.write_model(tmp_path / "other", vocabulary=tiny.VOCABULARY + 5)
    student = start_student(str(other), "0", teacher, tiny.tokenizer(), tmp_path)
    for model in (student, teacher):
        assert model.vocabulary == tiny.VOCABULARY
        hidden, head = model(tokens)
        whole = hidden @ model.weight.T
        torch.testing.assert_close(head.logits(hidden), whole[..., : tiny.VOCABULARY])
    assert student.weight.shape[0] == tiny.VOCABULARY + 5
    student.output.logits(student(tokens)[0]).sum().backward()
    assert (student.weight.grad[tiny.VOCABULARY :] == 0).all()
    written = student.complete(tokens, torch.full((1, 20), 0.999))
    assert written.max() < tiny.VOCABULARY


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    teacher, tokenizer = tiny.model(), tiny.tokenizer()
    small = tiny.write_model(tmp_path / "small", vocabulary=tiny.VOCABULARY - 1)
    tokenizer.save_pretrained(small)
    with pytest.raises(UserError, match=f"--student {small}: its tokenizer has tokens up to"):
        start_student(str(small), "0", teacher, tokenizer, tmp_path)
    fewer = tiny.model()
    fewer.predict_only(tiny.VOCABULARY - 1)
    with pytest.raises(UserError, match=f"of {tiny.VOCABULARY - 1}; a KL needs the same"):
        compare_vocabularies("--model x", (tiny.model(), tokenizer), (fewer, tokenizer))
    different = tiny.tokenizer()
    different.add_tokens(["another"])
    with pytest.raises(UserError, match="--model x: its tokenizer is not the teacher's"):
        compare_vocabularies("--model x", (teacher, different), (teacher, tokenizer))


def test_a_student_from_a_configuration(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
    ).save_pretrained(tmp_path)
    student = start_student(str(tmp_path), "0", tiny.model(), tiny.tokenizer(), tmp_path)
    assert student(TOKENS)[0].shape == (3, 10, 16)


def test_no_model_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"--teacher {tmp_path}: cannot be read") as refusal:
        load("--teacher", str(tmp_path), tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="--teacher no/model: not a folder, and the Hub") as refusal:
        load("--teacher", "no/model", tmp_path)
    assert "\n" not in str(refusal.value)
