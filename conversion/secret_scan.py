"""Finds keys, tokens and passwords in what is going to be published: detect-secrets' detectors, and a few of ours.

Nothing is sent anywhere: detect-secrets can ask a service whether a key is valid, and is never asked to here.
"""

import re
from collections.abc import Generator, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

# Names under which keys and passwords are kept, wherever they lie in a folder.
SECRET_NAMES = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", "*.token", "token", "token.txt", "id_rsa*", "id_ed25519*", "id_ecdsa*",
    ".netrc", ".npmrc", ".pypirc", ".git-credentials", "*credential*", "*secret*", "*password*",
)  # fmt: skip
# Detectors of detect-secrets that are not used, because of what else they find in files of models.
_UNUSED = {
    # Any random text: a tokenizer's tokens, digests.
    "Base64HighEntropyString", "HexHighEntropyString",
    # Numbers of versions, long words in capitals, and the examples of a README: api_key="EMPTY".
    "IPPublicDetector", "ArtifactoryDetector", "KeywordDetector",
    # Values of variables with certain names: slow, and `NAMED_KEYS` finds these under more names.
    "CloudantDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "SoftlayerDetector",
}  # fmt: skip
# Kinds of token that detect-secrets 1.5 does not know, or knows in some of their forms only.
_MORE_TOKENS = {
    "Hugging Face Token": r"hf_[A-Za-z0-9]{30,}",
    "GitHub Token": r"github_pat_[A-Za-z0-9_]{22,}",
    "NPM Token": r"npm_[A-Za-z0-9]{30,}",
    "Slack Token": r"(?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}",
    "Google Key": r"AIza[A-Za-z0-9_-]{35}",
    "OpenAI Token": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}",
    "Private Key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----",
}
# A value of 20 or more characters for what is called a key, a token or a password.
NAMED_KEYS = re.compile(
    r"(?:(?:api|access|account|auth|client|private|secret)[_-]?(?:key|token)|(?:auth|hub|bearer)[_-]?token|passw(?:or)?d"
    r"|secret)\w{0,20}[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9/+_~-]{20,}=*)",
    re.IGNORECASE,
)
# Text is searched in pieces, so that the time grows with its length only. A secret is shorter than what two share.
_PIECE, _SHARED = 2**16, 2**12


def secrets_in(content: Path | bytes) -> list[str]:
    """Name the kinds of secret that a file seems to hold; empty if none.

    Every byte is read, whatever the file is called. Of safetensors, it is the header: names and metadata.

    Args:
        content: a file, or what is going to be one.

    Raises:
        ImportError: if detect-secrets is not installed.
    """
    is_weights = isinstance(content, Path) and content.suffix == ".safetensors"
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        limit = int.from_bytes(file.read(8), "little") if is_weights else None
        found = {kind for text in _pieces(file, limit) for kind in _kinds_in(text)}
    return sorted(found)


def _pieces(file: BinaryIO, limit: int | None) -> Iterator[str]:
    """Yield a file, or its next `limit` bytes, in pieces that overlap."""
    before, left = "", limit
    while block := file.read(_PIECE if left is None else min(_PIECE, left)):
        left = None if left is None else left - len(block)
        text = before + block.decode("latin-1")  # any bytes are text in it, and all of ASCII is itself
        yield text
        before = text[-_SHARED:]


def _kinds_in(text: str) -> Iterator[str]:
    for detector in _detectors():
        if any(True for _ in detector.analyze_string(text)):
            yield detector.secret_type


@cache
def _detectors() -> list[Any]:
    """All detectors, in detect-secrets' form."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ImportError as error:
        raise ImportError(
            "What is published is searched for secrets first, which needs detect-secrets; `pip install detect-secrets`."
        ) from error

    class NamedKeyDetector(RegexBasedDetector):
        """Long values of variables that are called key, token or password; words and numbers are none."""

        secret_type = "Key or Password"
        denylist = (NAMED_KEYS,)

        def analyze_string(self, string: str) -> Generator[str, None, None]:
            for value in super().analyze_string(string):
                if re.search("[0-9]", value) and re.search("[A-Za-z]", value):
                    yield value

    ours = [
        type("Detector", (RegexBasedDetector,), {"secret_type": kind, "denylist": (re.compile(pattern),)})
        for kind, pattern in _MORE_TOKENS.items()
    ]
    theirs: dict[str, Any] = get_mapping_from_secret_type_to_class()
    used = [kind for kind in theirs.values() if kind.__name__ not in _UNUSED]
    return [kind() for kind in [*used, *ours, NamedKeyDetector]]
