"""Publishing a trained model on the Hugging Face Hub; never at the cost of the local one."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from shared.errors import UserError, first_line


def check_repository(name: str) -> None:
    """Refuse a repository name that the Hub would refuse hours later.

    Raises:
        UserError: not of the form user/name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name}: {first_line(error)}") from error


def push(folder: Path, repository: str) -> str:
    """Upload a model folder, creating the repository if needed; returns its address.

    Raises:
        UserError: no network, no token, no permission; the folder stays as it is.
    """
    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the Hub, its HTTP client and the network each raise their own
        reason = first_line(error)
        raise UserError(
            f"--push-to-hub {repository}: not uploaded ({reason}); the model is safe in {folder}"
        ) from error
    return str(url)
