import pytest
import torch
import torch.nn.functional as F

from distillation.model import BatchNorm, Classifier, Dropout


@pytest.mark.parametrize("layers", ["800-800", "30-30", "8-8", "16", "conv-16-32-32"])
def test_shapes(layers):
    model = Classifier(layers)
    for n in (0, 1, 3):
        model.eval()
        assert model(torch.rand(n, 784)).shape == (n, 10)


def test_the_students_size_is_the_papers():
    assert sum(p.numel() for p in Classifier("800-800").parameters()) == (
        784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10
    )


def test_the_mlp_by_hand():
    model, x = Classifier("5-4"), torch.rand(3, 784)
    a, b, c = model.linear
    h = (x @ a.weight.T + a.bias).clamp(min=0)
    h = (h @ b.weight.T + b.bias).clamp(min=0)
    assert torch.allclose(model(x), h @ c.weight.T + c.bias, atol=1e-6)


@pytest.mark.parametrize(
    "layers", ["", "800-", "800x800", "conv", "conv-16", "0-5", "conv-1-2-3-4"]
)
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="layers"):
        Classifier(layers)


def test_dropout_keeps_the_mean_and_drops_its_share():
    h, rng = torch.ones(1000, 300), torch.Generator().manual_seed(0)
    out = Dropout(0.3)(h, rng, 1000)
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(Dropout(0.3)(h, None, 0), h)
    assert torch.equal(Dropout(0.0)(h, rng, 1000), h)


def test_dropout_is_a_function_of_the_generator():
    model, x = Classifier("50-50", dropout=0.5, input_dropout=0.2), torch.rand(4, 784)
    a, b, c = (model(x, torch.Generator().manual_seed(seed), 4) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_batch_norm_is_torchs():
    x = torch.randn(6, 3, 4, 4)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    for mode in (True, True, False):
        ours.train(mode)
        theirs.train(mode)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("layers", ["12-7", "conv-2-3-4"])
def test_from_pretrained(layers, tmp_path):
    model = Classifier(layers, dropout=0.1, classes=6).eval()
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
    x = torch.rand(2, 784)
    assert torch.equal(again(x), model(x))
    assert F.softmax(again(x), -1).shape == (2, 6)
