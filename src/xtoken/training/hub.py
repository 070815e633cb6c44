"""Putting a student on the Hugging Face hub.

Laws: what can be found out before training is (`check_push`); of a folder goes up what makes the model and its card,
and nothing else that lies there; a failure leaves the folder as it is.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from xtoken.errors import XTokenError
from xtoken.training.card import CARD_FILE
from xtoken.training.models import TOKENIZER_PATTERNS

__all__ = ["check_push", "push_folder"]

_MODEL_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_*.json",
)


def check_push(repo: str) -> None:
    """Finds out whether a push can work, without pushing; under a launcher, in its first process alone.

    Args:
        repo: USER/NAME.

    Raises:
        XTokenError: it is no name of a repository; nobody is logged in, or the token is not valid or may not write
            there; the hub cannot be reached.
    """
    _check_name(repo)
    if int(os.environ.get("RANK") or 0) > 0:  # the hub limits how often it may be asked
        return
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise XTokenError(
            f"pushing to {repo} needs a token of the Hugging Face hub, and there is none: log in (hf auth login), or "
            "set HF_TOKEN"
        )
    try:
        user = HfApi().whoami()
    except Exception as error:  # it raises what its parts raise: HTTP errors, connection errors, a refusal
        raise XTokenError(
            f"the Hugging Face hub does not take the token, or cannot be reached, so pushing to {repo} would fail: "
            f"{_reason(error)}. Log in again (hf auth login), or leave push_to_hub out and push later by `xtoken push`."
        ) from error
    owner = repo.partition("/")[0]
    owners = [str(user.get("name")), *(str(org.get("name")) for org in user.get("orgs") or [])]
    if owner not in owners:
        raise XTokenError(
            f"the token belongs to {owners[0]}, who cannot write to {owner}; it can to {', '.join(owners)}"
        )
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise XTokenError(f"the token may only read, and pushing to {repo} writes; make one that may write")


def push_folder(folder: Path, repo: str, *, private: bool | None = None) -> str:
    """Uploads a model folder: weights, config, tokenizer and card.

    Args:
        folder: a run's, or any model folder.
        repo: USER/NAME; made where it is missing.
        private: whether a new repository is private; None leaves that to the hub.

    Returns:
        The repository's address.

    Raises:
        XTokenError: no model there; no name of a repository; the upload failed.
    """
    _check_name(repo)
    patterns = (*_MODEL_PATTERNS, *TOKENIZER_PATTERNS, CARD_FILE)
    names = sorted({file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    if not any(name.endswith(".safetensors") for name in names):
        raise XTokenError(f"{folder} holds no model to push: there is no .safetensors file in it")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            allow_patterns=[glob.escape(name) for name in names],
            commit_message="Upload of a student trained with xtoken",
        )
    except Exception as error:  # as above
        raise XTokenError(f"cannot push {folder} to {repo}: {_reason(error)}") from error
    return str(address)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise XTokenError(f"{repo!r} is no name of a repository: {error}") from None
    if "/" not in repo:
        raise XTokenError(f"{repo!r} is no name of a repository: expected USER/NAME")


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
