"""The keyed hash that stands for a person's or conversation's id wherever the id itself must not be kept."""

from __future__ import annotations

import hmac


def keyed_hash(key: str, purpose: str, text: str) -> str:
    """Returns 32 hexadecimal digits of HMAC-SHA-256 over purpose and text."""
    message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
    return hmac.digest(key.encode(), message, "sha256").hex()[:32]
