"""Addresses of servers, as a user writes them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def why_no_url(text: str) -> str | None:
    """What keeps a text from being a server's address; None where nothing does.

    Example:
      >>> why_no_url("http://host:8000"), why_no_url("host:8000"), why_no_url("http://host:80000")
      (None, 'does not begin with http:// or https://', 'has a port that is no number from 1 to 65535')
    """
    if not text.startswith(("http://", "https://")):
        return "does not begin with http:// or https://"
    try:
        parts = urlsplit(text)
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        return f"cannot be read ({error})"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "has a port that is no number from 1 to 65535"
    return None if parts.hostname and not re.search(r"[\s\\]", text) else "names no host"


def without_passwords(text: str) -> str:
    """A text for people and records: of the addresses in it, the part in front of the host is left out.

    Example:
      >>> without_passwords("[http://me:secret@host:8000/v1, http://other/@me]")
      '[http://host:8000/v1, http://other/@me]'
    """
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
