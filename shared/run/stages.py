"""A run of several trainings: its folder is that of the last one and holds those of the others."""

import shutil
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from shared.config import RunConfig
from shared.processes.launch import on_main
from shared.run.checkpoint import newest_complete
from shared.run.folder import keep_metrics
from shared.run.run import Run


def open_run(
    app: str, preset: str, config: RunConfig, accelerator: Accelerator, folder: Path
) -> Run:
    """A stage's run in ``folder``: a new one, or the one that is there, from its checkpoint if any.

    ``config.resume`` may name one of its checkpoints; otherwise the newest is taken.
    """
    started = (folder / "checkpoints").is_dir()
    has_checkpoint = newest_complete(folder / "checkpoints") is not None
    named = Path(config.resume)
    resume = str(named if named.parent == folder / "checkpoints" else folder)
    if not started:  # what an interrupted start left behind
        on_main(accelerator, lambda: shutil.rmtree(folder, ignore_errors=True))
    config = (
        replace(config, out="", resume=resume)
        if started
        else replace(config, out=str(folder), resume="")
    )
    run = Run(app, preset, config, accelerator)
    if not has_checkpoint:  # nothing to restore, and lines of steps that are taken anew
        on_main(accelerator, lambda: keep_metrics(folder, 0))
        run.config = replace(config, resume="")
    return run
