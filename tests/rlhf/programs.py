"""What tests of the programs that train with TRL share."""

import json
from pathlib import Path
from typing import Any

from rlhf import dpo, reward, rloo, sft

PROGRAMS = {"sft": sft, "reward": reward, "dpo": dpo, "rloo": rloo}
# 16 examples in batches of 4: 4 steps an epoch; rates at which 8 steps move a tiny model.
SMALL = ["smoke", "--lora-targets", "q_proj", "v_proj", "--lr", "0.02", "--limit", "16"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content
