import pytest
import torch
from torch import nn

from vae.model import CLASSES, PIXELS, VAE, VIB, DepthToSpace, SpaceToDepth, build, hidden_matrices

NETWORKS = ["residual", "mlp", "conv"]
SMALL = {"latent": 5, "width": 12, "depth": 2, "channels": 2}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def both(network):
    torch.manual_seed(0)
    return VAE(network=network, **SMALL), VIB(network=network, **SMALL)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("k", "batch"), [(1, 1), (3, 4), (2, 0)])
def test_shapes(network, k, batch):
    x = torch.rand(batch, PIXELS, generator=rng())
    for model, outputs in zip(both(network), (PIXELS, CLASSES), strict=True):
        out = model(x, torch.randn(k, batch, 5, generator=rng(1)))
        assert out.mu.shape == out.logvar.shape == (batch, 5)
        assert out.z.shape == (k, batch, 5)
        assert out.logits.shape == (k, batch, outputs)


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_and_rows_do_not_mix(network):
    x, eps = torch.rand(4, PIXELS, generator=rng()), torch.randn(3, 4, 5, generator=rng(1))
    for model in both(network):
        together = model(x, eps)
        alone = model(x[2:3], eps[1:2, 2:3])
        torch.testing.assert_close(together.z[1, 2], alone.z[0, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.logits[1, 2], alone.logits[0, 0], rtol=1e-4, atol=1e-5)


def test_noise_has_the_standard_deviation_of_the_posterior():
    for model in both("mlp"):
        x = torch.rand(2, PIXELS, generator=rng())
        out = model(x, torch.stack([torch.zeros(2, 5), torch.ones(2, 5)]))
        assert torch.equal(out.z[0], out.mu)
        torch.testing.assert_close((out.z[1] - out.mu).square(), out.logvar.exp())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_model_comes_back_bit_by_bit(network, tmp_path):
    for model in both(network):
        model.start_at(torch.rand(PIXELS, generator=rng(2)))
        model.save_pretrained(tmp_path / type(model).__name__)
        again = type(model).from_pretrained(tmp_path / type(model).__name__)
        assert again.state_dict().keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        x, eps = torch.rand(2, PIXELS, generator=rng()), torch.randn(1, 2, 5, generator=rng(1))
        assert torch.equal(model(x, eps).logits, again(x, eps).logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_untrained_decoder_starts_at_the_mean_digit(network):
    torch.manual_seed(0)
    model = VAE(network=network, latent=10, width=50, depth=2, channels=4)
    mean = torch.linspace(0, 1, PIXELS)
    z = torch.randn(200, 1, 10, generator=rng())
    before = (model.decode(z).sigmoid().mean((0, 1)) - mean).abs()
    model.start_at(mean)
    after = (model.decode(z).sigmoid().mean((0, 1)) - mean).abs()
    assert after.mean() < 0.06 < 0.2 < before.mean()
    zero = model.decode(torch.zeros(1, 1, 10))[0, 0]
    torch.testing.assert_close(
        zero.sigmoid(), mean, rtol=0, atol=0.1 if network == "conv" else 2e-3
    )


def test_pixels_that_never_change_keep_finite_log_odds():
    model, _ = both("mlp")
    model.start_at(torch.tensor([0.0, 1.0]).repeat(PIXELS // 2))
    assert model.pixel_bias.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_encoder_sees_centred_pixels(network):
    mean = torch.rand(PIXELS, generator=rng())
    shift = torch.full((PIXELS,), 0.25)
    for model in both(network):
        x = torch.rand(3, PIXELS, generator=rng(1))
        model.start_at(mean)
        mu, logvar = model.encode(x)
        model.start_at(mean + shift)
        moved = model.encode(x + shift)
        torch.testing.assert_close((mu, logvar), moved, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mu, model.encode(x)[0], atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_learns(network):
    for model in both(network):
        out = model(torch.rand(8, PIXELS, generator=rng()), torch.randn(2, 8, 5, generator=rng(1)))
        (out.logits.square().sum() + out.logvar.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_build_makes_a_classifier_for_vib_alone():
    assert isinstance(build("vib", **SMALL), VIB)
    for objective in ("elbo", "iwae", "dreg", "capacity", "tc"):
        assert isinstance(build(objective, **SMALL), VAE)


@pytest.mark.parametrize("network", NETWORKS)
def test_muon_takes_the_square_matrices_of_perceptrons_and_nothing_of_convolutions(network):
    for model in both(network):
        linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        square = [w for w in linear if w.shape == (12, 12) and network != "conv"]
        assert list(map(id, hidden_matrices(model))) == list(map(id, square))
        assert square or network == "conv"


def test_space_to_depth_is_torchs_and_depth_to_space_its_inverse():
    x = torch.rand(3, 2, 6, 4, generator=rng())
    assert torch.equal(SpaceToDepth()(x), torch.nn.PixelUnshuffle(2)(x))
    assert torch.equal(DepthToSpace()(SpaceToDepth()(x)), x)
