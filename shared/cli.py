"""The command line of every application: ``[preset] [--option value ...]``, errors in one line."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import tyro

from shared.config import RunConfig, option, problems
from shared.errors import BAD_INPUT, Interrupted, UserError, nearest

C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")


def run(main: Callable[[], None], prog: str) -> None:
    """Call ``main``; a UserError becomes one line on stderr and exit code 2.

    One process of several ends here, with its exit code.
    """
    code, several = 0, False
    try:
        main()
    except UserError as error:
        code = _say(prog, f"error: {error}", BAD_INPUT)
    except Interrupted as stop:
        code = _say(prog, str(stop), stop.exit_code)
    except KeyboardInterrupt:
        code = _say(prog, "interrupted", 130)
    except OSError as error:
        if error.filename is None:  # not about a file the user can do something about
            raise
        code = _say(prog, f"error: {error.filename}: {error.strerror}", BAD_INPUT)
    finally:
        if several := dist.is_initialized():
            dist.destroy_process_group()
    if several:
        # Not through the interpreter's end: there a thread of gloo that still holds a tensor aborts
        # the process now and then, and with it the run (pytorch/pytorch#179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _say(prog: str, message: str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"{prog}: {message}", file=sys.stderr)
    return code


def read_config(
    presets: Mapping[str, C], prog: str, argv: Sequence[str] | None = None
) -> tuple[str, C]:
    """Preset name and configuration from ``[preset] [--option value ...]``, checked as a whole.

    With ``--resume RUN`` the configuration is the run's own; options that would change its result
    are refused.

    Raises:
        UserError: unknown preset or option (with the nearest name), a value of the wrong type or
            outside its range; all problems of the last kind in one message.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    chosen = bool(args) and not args[0].startswith("-")
    name = args.pop(0) if chosen else "default"
    if name not in presets:
        raise UserError(f"unknown preset {name!r}{nearest(name, presets)}: {', '.join(presets)}")
    base = presets[name]
    saved = _saved_config(args, type(base))
    if saved is not None:
        if chosen and name != saved[0]:
            raise UserError(f"preset {name}: --resume continues a run of preset {saved[0]}")
        name, base = saved
    config = check(parse(type(base), args, prog, base, presets))
    if saved is not None:
        _refuse_changes(base, config)
    return name, config


def parse(
    kind: type[T],
    args: Sequence[str],
    prog: str,
    default: T | None = None,
    presets: Mapping[str, T] | None = None,
) -> T:
    """A dataclass from options, through tyro; what tyro says in a box is said in a line instead."""
    said = io.StringIO()
    about = kind.__doc__ or ""
    if presets:
        prog, about = f"{prog} [preset]", f"{about}\n\nPresets: {', '.join(presets)}."
    try:
        with redirect_stderr(said):
            config, unknown = tyro.cli(
                kind,
                prog=prog,
                description=about,
                args=args,
                default=default or kind(),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = (line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()[1:])
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
    """The configuration itself, or one UserError with every problem it has."""
    if found := problems(config):
        raise UserError("; ".join(found))
    return config


def _saved_config(args: Sequence[str], kind: type[C]) -> tuple[str, C] | None:
    for i, arg in enumerate(args):
        if arg == "--resume" and i + 1 < len(args):
            return load_config(Path(args[i + 1]), kind)
        if arg.startswith("--resume="):
            return load_config(Path(arg.partition("=")[2]), kind)
    return None


def load_config(run: Path, kind: type[C]) -> tuple[str, C]:
    """Preset name and configuration of a run folder, or of the run a checkpoint belongs to."""
    path = next(
        (p / "config.json" for p in (run, run.parent.parent) if (p / "checkpoints").is_dir()), None
    )
    if path is None:
        raise UserError(f"--resume {run}: is no run folder and no checkpoint of one")
    try:
        stored = json.loads(path.read_text())
        known = {field.name for field in fields(kind)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for key, value in stored["config"].items()
            if key in known
        }
        return stored["preset"], kind(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a run's configuration ({error})") from error


def _refuse_changes(saved: RunConfig, given: RunConfig) -> None:
    old, new = asdict(saved), asdict(given)
    changed = [
        f"{option(name)} is {old[name]!r} in the run, {new[name]!r} on the command line"
        for name in old
        if name not in saved.FREE_ON_RESUME and old[name] != new[name]
    ]
    if changed:
        raise UserError(f"--resume continues the same run: {'; '.join(changed)}")


def with_resume_cleared(config: C) -> C:
    """The configuration as it is stored: where it was resumed from is not part of the run."""
    return replace(config, resume="", out="")
