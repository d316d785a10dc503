"""What every configuration shares: common fields, allowed ranges, all problems at once."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

_FINITE = 1.7e308


@dataclass(frozen=True)
class Between:
    """Allowed range of a number, written in a field's annotation; NaN is never inside."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # the lower end itself is excluded

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"{'>' if self.above else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = f"<= {self.high:g}" if self.high < _FINITE else ""
        high = high or ("finite" if self.high == _FINITE else "")
        return " and ".join(filter(None, (low, high)))


NonNegative = Annotated[float, Between(0, _FINITE)]
Positive = Annotated[float, Between(0, _FINITE, above=True)]
Count = Annotated[int, Between(1)]
CountOrZero = Annotated[int, Between(0)]


@dataclass(frozen=True)
class RunConfig:
    """Options that every application's training command takes."""

    out: str = ""
    """Run folder to create. Empty: runs/<application>-<preset>, with a number when it is taken."""
    resume: str = ""
    """Run folder, or one checkpoint in it, to continue exactly where it stopped."""
    seed: CountOrZero = 0
    """Seed of everything random; a run is a function of its configuration and this."""
    data: str = "data"
    """Folder of the data sets; fetched into it when missing."""
    checkpoint_every: Count = 1
    """Epochs between checkpoints; one is also written on SIGTERM, Ctrl-C and at the end."""
    keep: Count = 2
    """Number of newest checkpoints kept."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass, through Accelerate; parameters and losses stay float32."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl; the named packages must be installed."""
    push_to_hub: str = ""
    """Hub repository (user/name) that receives the trained model at the end. Empty: none."""

    # What a resumed run may change without changing its result.
    FREE_ON_RESUME = frozenset(
        {"resume", "data", "checkpoint_every", "keep", "trackers", "push_to_hub"}
    )

    def conflicts(self) -> list[str]:
        """Problems that involve more than one field, each a line; applications override this."""
        return []


def option(name: str) -> str:
    """Field name -> the option as typed."""
    return "--" + name.replace("_", "-")


def problems(config: Any) -> list[str]:
    """Every value outside its range and every conflict: option, value and what is allowed."""
    hints: dict[str, Any] = get_type_hints(type(config), include_extras=True)
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        for bound in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(bound, Between) and value not in bound:
                found.append(f"{option(field.name)} {value}: must be {bound}")
    return found + (config.conflicts() if isinstance(config, RunConfig) else [])
