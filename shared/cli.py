"""The command line of every application: ``[preset] [--option value ...]``, errors in one line."""

import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import tyro

from shared.config import RunConfig, option, problems
from shared.errors import BAD_INPUT, Interrupted, UserError, nearest

WAIT_FOR_THE_FIRST = 60.0  # seconds

C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")


def run(main: Callable[[], None], prog: str) -> None:
    """Call ``main`` and exit with its code; an error for people becomes one line on stderr."""
    code, message = 0, ""
    try:
        main()
    except UserError as error:
        code, message = BAD_INPUT, f"error: {error}"
    except Interrupted as stop:
        code, message = stop.exit_code, str(stop)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except OSError as error:
        if error.filename is None:  # not about a file the user can do something about
            raise
        code, message = BAD_INPUT, f"error: {error.filename}: {error.strerror}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    first = os.environ.get("RANK", "0") == "0"
    if message and (first or (code == BAD_INPUT and _is_the_only_one())):
        print(f"{prog}: {message}", file=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Not through the interpreter's end: there a thread of gloo that still runs aborts the
        # process now and then, and with it the run (pytorch/pytorch#179291), also where the
        # process group was destroyed before.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _is_the_only_one() -> bool:
    """Whether process 0 has no error to print; without torchrun it is taken to have the same.

    torchrun ends all processes when one has failed: this one waits for process 0 to print first.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(WAIT_FOR_THE_FIRST)
    return True


def read_config(
    presets: Mapping[str, C], prog: str, argv: Sequence[str] | None = None
) -> tuple[str, C]:
    """Preset name and configuration from ``[preset] [--option value ...]``, checked as a whole.

    With ``--resume RUN`` the configuration is that of the run; options that would change its
    result are refused.

    Raises:
        UserError: unknown preset or option (with the nearest name), a value of the wrong type or
            outside its range; all problems of the last kind in one message.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    named = bool(args) and not args[0].startswith("-")
    name = args.pop(0) if named else "default"
    if name not in presets:
        raise UserError(f"unknown preset {name!r}{nearest(name, presets)}: {', '.join(presets)}")
    base = presets[name]
    saved = _saved_config(args, type(base))
    if saved is not None:
        if named and name != saved[0]:
            raise UserError(f"preset {name}: --resume continues a run of preset {saved[0]}")
        name, base = saved
    config = check(parse(type(base), args, prog, base, presets))
    if saved is not None:
        _refuse_changes(base, config)
    return name, config


def read_options(kind: type[T], program: str) -> T:
    """The checked options of a program without presets, from its command line.

    Raises:
        UserError: as ``read_config``.
    """
    return check(parse(kind, sys.argv[1:], f"python -m {program}"))


def parse(
    kind: type[T],
    args: Sequence[str],
    prog: str,
    default: T | None = None,
    presets: Mapping[str, T] | None = None,
) -> T:
    """A dataclass from options, through tyro; the error that tyro prints in a box becomes one line.

    tyro 1.0 has hooks for its errors, but calls them internal and unstable.
    """
    stderr = io.StringIO()
    description = kind.__doc__ or ""
    if presets:
        prog, description = f"{prog} [preset]", f"{description}\n\nPresets: {', '.join(presets)}."
    try:
        with redirect_stderr(stderr):
            config, unknown = tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=args,
                default=default or kind(),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = (line.strip("│╭╮╰╯─ ") for line in stderr.getvalue().splitlines()[1:])
        message = " ".join(line for line in lines if line and not line.startswith("For full help"))
        message = message.partition(" Argument helptext:")[0]
        raise UserError(re.sub(r"\s+", " ", message)) from None
    if unknown:
        names = [option(field.name) for field in fields(kind)]  # type: ignore[arg-type]
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            hint = ": a preset comes first, before the options" if presets else " (see --help)"
            raise UserError(f"unexpected argument {word!r}{hint}")
        raise UserError(f"unknown option {word}{nearest(word, names)} (see --help)")
    return config


def check(config: T) -> T:
    """The configuration itself, or one UserError with all its problems."""
    if errors := problems(config):
        raise UserError("; ".join(errors))
    return config


def _saved_config(args: Sequence[str], kind: type[C]) -> tuple[str, C] | None:
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        option, _, value = arg.partition("=")
        if option == "--resume" and (run := value or following):
            return load_config(Path(run), kind)
    return None


def load_config(run: Path, kind: type[C]) -> tuple[str, C]:
    """Preset name and configuration of a run folder, or of the run that a checkpoint belongs to.

    Raises:
        UserError: neither of the two, or its config.json cannot be read.
    """
    path = next(
        (p / "config.json" for p in (run, run.parent.parent) if (p / "checkpoints").is_dir()), None
    )
    if path is None:
        raise UserError(f"--resume {run}: neither a run folder nor one of its checkpoints")
    try:
        stored = json.loads(path.read_text())
        names = {field.name for field in fields(kind)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for key, value in stored["config"].items()
            if key in names
        }
        return stored["preset"], kind(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a run's configuration ({error})") from error


def _refuse_changes(saved: RunConfig, config: RunConfig) -> None:
    old, new = asdict(saved), asdict(config)
    changed = [
        f"{option(name)} is {old[name]!r} in the run, {new[name]!r} on the command line"
        for name in old
        if name not in saved.FREE_ON_RESUME and old[name] != new[name]
    ]
    if changed:
        raise UserError(f"--resume continues the same run: {'; '.join(changed)}")


def with_resume_cleared(config: C) -> C:
    """The configuration as a run stores it, without the folders it was started with."""
    return replace(config, resume="", out="")
