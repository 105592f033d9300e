"""Which versions of vLLM the plug-in is made for.

vLLM keeps few promises about its inside, and the plug-in stands on some of it (`tests/vllm/test_contract.py` names
each part). So a version that was not tried is refused, instead of answering a little wrongly.
"""

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SUPPORTED = ">=0.32,<0.33"
"""Raised when `make test-vllm` has passed on the next one; the extra `vllm` in pyproject.toml says the same."""


def refusal(version: str) -> str | None:
    """Say why the plug-in does not run on a version of vLLM, and what to install; None if it does.

    Example:
        >>> refusal("0.32.0+cpu") is None
        True
        >>> refusal("0.11.2")
        'llavit serves LLaViT on vLLM >=0.32,<0.33, got vLLM 0.11.2: pip install "vllm>=0.32,<0.33"'
    """
    try:
        supported = SpecifierSet(SUPPORTED).contains(Version(version).base_version)
    except InvalidVersion:
        supported = False
    if supported:
        return None
    return f'llavit serves LLaViT on vLLM {SUPPORTED}, got vLLM {version}: pip install "vllm{SUPPORTED}"'


def require_supported(version: str) -> None:
    """Refuse a version of vLLM for which the plug-in is not made.

    Raises:
        ImportError: says what to install.
    """
    message = refusal(version)
    if message is not None:
        raise ImportError(message)
