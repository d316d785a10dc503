"""The documented commands of trpo_ppo at a small size: all algorithms, resume, two processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from tests.helpers import (
    PATIENCE,
    QUIET,
    ROOT,
    Processes,
    Result,
    assert_same_run,
    last_state,
    metrics,
    refused,
)

ALGORITHMS = ["ppo-clip", "ppo-kl", "ppo-kl-adaptive", "trpo"]
SMALL = """
    smoke --env Hopper-v5 --steps 1024 --num-envs 4 --rollout 64 --minibatch 32
    --checkpoint-every 3 --keep 9 --width 16 --evaluation-episodes 1 --delta 0.01
""".split()


@pytest.fixture(scope="module")
def programs() -> Iterator[Processes]:
    """Its programs alone: forked from a process that did not import the others."""
    started = Processes(("trpo_ppo.train", "trpo_ppo.evaluate"))
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_run_resume_and_two_processes(algo: str, tmp_path: Path, programs: Processes) -> None:
    """A run of four rollouts; the same stopped after its third; the same on two processes."""
    one, cut, both = (tmp_path / name for name in ("one", "cut", "both"))
    argv = [*SMALL, "--algo", algo]
    result = programs(*argv, "--out", one, program="trpo_ppo.train")
    assert (result.code, result.err) == (0, "")
    assert (one / "pictures/curves.png").read_bytes().startswith(b"\x89PNG")
    lines = metrics(one)
    assert [line["environment_steps"] for line in lines] == [256, 512, 768, 1024]
    assert all(line["kl"] <= 0.010001 for line in lines if algo == "trpo")

    stopped = programs(*argv, "--out", cut, program="trpo_ppo.train", fault="signal:SIGTERM:3")
    assert stopped.code == 143
    assert f"--resume {cut}" in stopped.err
    assert programs("--resume", cut, program="trpo_ppo.train").code == 0
    assert_same_run(one, cut)

    result = programs(*argv, "--out", both, program="trpo_ppo.train", ranks=2)
    assert (result.codes, result.errs) == ([0, 0], ["", ""])
    ours, theirs = last_state(one)[0], last_state(both)[0]
    for name, value in ours.items():
        if name.startswith("agent.") and value.numel():
            difference = (value.double() - theirs[name].double()).abs().max()
            assert difference <= 1e-4 * (1 + value.double().abs().max()), name
    for name in ("env_episodes", "env_elapsed", "episodes"):
        assert (ours[name] == theirs[name]).all()

    evaluated = programs("--model", both, "--episodes", 1, program="trpo_ppo.evaluate")
    assert "deterministic" in evaluated.out


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path: Path, programs: Processes) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert programs(*SMALL, "--out", whole, program="trpo_ppo.train", ranks=2).codes == [0, 0]
    # The signal reaches rank 1 alone; both stop at the same rollout.
    stopped = programs(
        *SMALL, "--out", cut, program="trpo_ppo.train", ranks=2, fault="signal:SIGTERM:2:1"
    )
    assert stopped.codes == [143, 143]
    assert programs("--resume", cut, program="trpo_ppo.train", ranks=2).codes == [0, 0]
    assert_same_run(whole, cut)


def test_two_processes_stop_their_passes_together(tmp_path: Path, programs: Processes) -> None:
    argv = [*SMALL, "--epochs", "6", "--lr", "1e-3", "--early-stop", "0.005"]
    steps = []
    for ranks in (1, 2):
        run = tmp_path / f"{ranks}"
        result = programs(*argv, "--out", run, program="trpo_ppo.train", ranks=ranks)
        assert result.codes == [0] * ranks, result.errs
        lines = metrics(run)
        steps.append([line["gradient_steps"] for line in lines])
        for line in lines:  # 8 minibatches a pass
            assert line["kl"] > 1.5 * 0.005 or line["gradient_steps"] == 6 * 8
    assert steps[0] == steps[1]
    assert min(steps[0]) < 6 * 8


def test_why_a_trust_region_step_failed_is_said(tmp_path: Path, programs: Processes) -> None:
    """Within so small a region no float32 parameter moves, so nothing improves."""
    run = tmp_path / "run"
    result = programs(
        "smoke", "--algo", "trpo", "--delta", "1e-30", "--out", run, program="trpo_ppo.train"
    )
    assert (result.code, result.err) == (0, "")
    lines = metrics(run)
    assert all(line["failed_steps"] == line["failed_line_search"] == 1 for line in lines)
    assert all(line["kl"] == line["failed_curvature"] == 0 for line in lines)
    assert result.out.count("no step of the policy, the line search found no step") == len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_solves_cartpole_within_100k_steps(
    algo: str, tmp_path: Path, programs: Processes
) -> None:
    run = tmp_path / "run"
    assert programs("--algo", algo, "--out", run, program="trpo_ppo.train").code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["training"]["environment_steps"] <= 100_352
    assert summary["evaluation"]["deterministic"] >= 475


def test_the_run_folder_and_the_film(tmp_path: Path, programs: Processes) -> None:
    run, film, out = tmp_path / "run", tmp_path / "film.gif", tmp_path / "result.json"
    result = programs("smoke", "--steps", "1024", "--out", run, program="trpo_ppo.train")
    assert (result.code, result.err) == (0, "")
    assert {p.name for p in run.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures
    """.split()
    )
    assert {p.name for p in (run / "model").iterdir()} == set(
        """
        config.json model.safetensors training.json metrics.json README.md manifest.json
    """.split()
    )

    def evaluate(*argv: object) -> Result:
        return programs("--model", run, *argv, program="trpo_ppo.evaluate")

    assert evaluate("--episodes", 2, "--video", film, "--json", out).code == 0
    assert film.read_bytes().startswith(b"GIF89a")
    frames = imageio.mimread(film)
    assert frames[0].shape[:2] == (200, 300)
    assert (frames[0] != frames[-1]).any(), "the cart stands still"
    film = tmp_path / "film.mp4"
    result = evaluate("--episodes", 1, "--video", film)
    assert (result.code, result.err) == (0, "")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        film,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    pixels = subprocess.run(command, capture_output=True, check=True).stdout
    decoded = np.frombuffer(pixels, np.uint8).reshape(-1, 200, 300, 3)
    assert f"{len(decoded)} frames in {film}" in result.out
    assert len(decoded) >= len(frames) > 2  # a GIF holds equal frames once
    lossy = np.abs(decoded[0].astype(int) - frames[0][..., :3]).mean()
    assert lossy < 0.2 * np.abs(decoded[0].astype(int) - decoded[-1]).mean()
    stored, summary = json.loads(out.read_text()), json.loads((run / "summary.json").read_text())
    assert stored["metrics"]["deterministic"] == summary["evaluation"]["deterministic"]
    other = evaluate("--env", "Hopper-v5")
    refused(other, "4 observations and 2 choices", "Hopper-v5 has 11")
    refused(evaluate("--video", "film.avi"), "--video film.avi")
    resumed = programs("--resume", run, "--clip", "0.3", program="trpo_ppo.train")
    refused(resumed, "--clip is 0.2")


def test_the_camera_goes_with_the_body(tmp_path: Path, programs: Processes) -> None:
    film = tmp_path / "film.gif"
    argv = ["--model", "trpo_ppo/pretrained/halfcheetah", "--episodes", 1, "--video", film]
    assert programs(*argv, program="trpo_ppo.evaluate").code == 0
    frames = np.stack(imageio.mimread(film))[..., :3].astype(int)
    assert len(frames) > 60  # equal ones would be held once
    red, green, blue = frames[..., 0], frames[..., 1], frames[..., 2]
    skin = (red > green + 20) & (green > blue + 20)
    assert (skin.mean((1, 2)) > 0.01).all()


BAD = {
    "environment": (["--env", "Hoper-v5"], ["--env Hoper-v5", "did you mean Hopper-v5"]),
    "kind": (["--env", "CarRacing-v3"], ["--env CarRacing-v3", "observations are images"]),
    "algorithm": (["--algo", "ppo"], ["--algo", "ppo-clip", "trpo"]),
    "all at once": (
        ["--minibatch", "100", "--gamma", "2", "--delta", "0"],
        ["--minibatch 100", "must divide", "--gamma 2.0", "--delta 0.0"],
    ),
    "start": (["--algo", "ppo-kl-adaptive", "--beta", "0"], ["--beta 0.0"]),
    "precision": (["--mixed-precision", "bf16"], ["--mixed-precision bf16"]),
    "diverging": (["smoke", "--lr", "1e30"], ["gradient norm", "smaller --lr"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path, programs: Processes) -> None:
    argv, words = BAD[case]
    run = tmp_path / "run"
    refused(programs(*argv, "--out", run, program="trpo_ppo.train"), *words)
    assert not run.exists() or case == "diverging"


def test_environments_must_divide_among_processes(tmp_path: Path, programs: Processes) -> None:
    argv = (*SMALL, "--num-envs", "5", "--rollout", "32", "--out", tmp_path / "run")
    result = programs(*argv, program="trpo_ppo.train", ranks=2)
    refused(result, "--num-envs 5: must be divisible by the 2 processes")
    assert result.errs[1] == ""
    assert not (tmp_path / "run").exists()


def test_the_documented_commands(tmp_path: Path) -> None:
    """No helper in between."""
    run = tmp_path / "run"
    for argv in (
        ["trpo_ppo.train", "smoke", "--steps", "512", "--out", run],
        ["trpo_ppo.evaluate", "--model", run, "--episodes", "1"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *map(str, argv)],
            cwd=ROOT,
            env=os.environ | QUIET,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (result.returncode, result.stderr) == (0, "")
