"""The training loops that ``make bench-vae`` times, ours and two peers': images per CPU-second."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from shared.data.mnist import load_mnist
from shared.experiments.bench import Clock, Finished, on_every_step
from shared.run.run import Run
from vae.config import Config
from vae.train import train

DIGITS = 60_000
BATCH, LATENT, WIDTH, LR = 128, 20, 400, 1e-3  # pytorch/examples, vae/main.py
WARMUP, PROFILED = 20, 60  # steps before the clock starts, and under the profiler after it stops
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
SAME = Config(
    network="mlp",
    latent=LATENT,
    width=WIDTH,
    depth=1,
    activation="relu",
    batch_size=BATCH,
    optimizer="adam",
    lr=LR,
    warmup=0,
)


def images_of(clock: Clock, batch: int) -> int:
    """Images of the steps that the clock timed; the last batch of an epoch is smaller."""
    per_epoch = -(-DIGITS // batch)
    steps = range(WARMUP, WARMUP + clock.steps)
    return sum(min(batch, DIGITS - step % per_epoch * batch) for step in steps)


def speed(clock: Clock, batch: int) -> dict[str, float]:
    return {"images_per_cpu_second": images_of(clock, batch) / clock.seconds}


class Products(TorchDispatchMode):
    """Records the matrix products of the code under it, to run them again without the rest."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func._schema.name in PRODUCTS:
            self.calls.append(lambda: func(*args, **named))
        return func(*args, **named)

    @torch.no_grad()
    def seconds(self, repetitions: int) -> float:
        """CPU time of all recorded products, once each, averaged over repetitions."""
        start = time.process_time()
        for _ in range(repetitions):
            for call in self.calls:
                call()
        return (time.process_time() - start) / repetitions


def ours(config: Config, images: int, data: str) -> dict[str, float]:
    """The loop of ``vae.train`` itself.

    After the clock has stopped, one step's products are recorded and some steps profiled.
    """
    clock, products = Clock(-(-images // config.batch_size), WARMUP), Products()
    profiler = profile(activities=[ProfilerActivity.CPU])

    def stepped(_: Run) -> None:
        match clock.tick():
            case 0:
                products.__enter__()  # type: ignore[no-untyped-call]
            case 1:
                products.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                profiler.start()
            case past if past > PROFILED:
                profiler.stop()
                raise Finished

    with tempfile.TemporaryDirectory() as folder, on_every_step(stepped):
        endless = replace(config, epochs=10**6, evaluate_every=10**6, checkpoint_every=10**6)
        train("bench", replace(endless, out=f"{folder}/run", data=data))
    events = [(event.key, event.self_cpu_time_total) for event in profiler.key_averages()]
    in_products = sum(time for name, time in events if name in PRODUCTS)
    alone = products.seconds(repetitions=100) * clock.steps
    return speed(clock, config.batch_size) | {
        "products_images_per_cpu_second": images_of(clock, config.batch_size) / alone,
        "products_share": alone / clock.seconds,
        "products_share_profiled": in_products / sum(time for _, time in events),
    }


class ExampleVAE(nn.Module):
    """784-400-20-400-784 with ReLU and a sigmoid at the end, as the PyTorch example describes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.shown = nn.Linear(784, WIDTH), nn.Linear(WIDTH, 784)
        self.mu, self.logvar = nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)
        self.up = nn.Linear(LATENT, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.hidden(x.view(-1, 784)))
        mu, logvar = self.mu(h), self.logvar(h)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return torch.sigmoid(self.shown(F.relu(self.up(z)))), mu, logvar


def example(images: int, data: str) -> dict[str, float]:
    """pytorch/examples ``vae/main.py`` on a CPU: DataLoader without workers, ToTensor, Adam.

    Written from its description; it logs nothing and evaluates nothing here.
    """
    digits = datasets.MNIST(data, train=True, transform=transforms.ToTensor())
    loader = DataLoader(digits, batch_size=BATCH, shuffle=True)
    model = ExampleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    clock, total = Clock(-(-images // BATCH), WARMUP), 0.0
    while True:
        for x, _ in loader:
            optimizer.zero_grad()
            shown, mu, logvar = model(x)
            cross_entropy = F.binary_cross_entropy(shown, x.view(-1, 784), reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = cross_entropy + kl
            loss.backward()
            total += loss.item()
            optimizer.step()
            if clock.tick() == 0:
                return speed(clock, BATCH)


def pythae(images: int, data: str) -> dict[str, float]:
    """pythae's BaseTrainer as it comes, on the data set that its pipeline makes of an array."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(784, WIDTH)
            self.mu, self.logvar = nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)

        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.hidden(x))
            return ModelOutput(embedding=self.mu(h), log_covariance=self.logvar(h))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.up, self.shown = nn.Linear(LATENT, WIDTH), nn.Linear(WIDTH, 784)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.shown(F.relu(self.up(z)))))

    clock = Clock(-(-images // BATCH), WARMUP)

    class Timed(BaseTrainer):  # type: ignore[misc]
        def _optimizers_step(self, model_output: Any = None) -> None:
            super()._optimizers_step(model_output)
            if clock.tick() == 0:
                raise Finished

    digits = load_mnist(Path(data)).train_images.float() / 255
    shape = VAEConfig(input_dim=(784,), latent_dim=LATENT, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder, suppress(Finished):
        Timed(
            VAE(shape, encoder=Encoder(), decoder=Decoder()),
            BaseDataset(digits, torch.ones(len(digits))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                learning_rate=LR,
                num_epochs=10**6,
                no_cuda=True,
            ),
        ).train()
    return speed(clock, BATCH)
