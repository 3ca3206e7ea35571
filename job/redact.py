"""Takes secrets out of text before anybody else reads it: logs, results, manifests, the report.

It is about the forms that credentials have on their way through a storage client, a web client and
their error messages. A secret that looks like any other word cannot be told from one.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

# Names that mean a secret wherever they are given a value, and those that do so in a query only.
_ANYWHERE = (
    r"(?:X-(?:Goog|Amz)-[\w-]{1,40}|(?:access|auth|id|refresh)_?token|client_?secret|upload_?id"
    r"|private_?key(?:_id)?|api_?key|password|passwd|secret|assertion|AWSAccessKeyId)"
)
_IN_QUERY = r"(?:key|sig|signature|sign|token|code|auth|pwd)"
_VALUE = r"[^&\s\"'<>\\]*+"

# What each finds, in this order, and keeps (its groups). Every one starts with a few fixed letters
# and reads on without going back, or within bounds: the time is linear in the length of the text.
# None takes a quote or a backslash out of JSON, so that redacted JSON still is JSON.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # PEM blocks, cut ones too; their lines may be joined by an escaped \n.
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:[^\"'<-]|-(?!----))*+"
        r"(?:-----END [A-Z0-9 ]{0,40}-----)?",
        # user:password@ in a URL, and in what http.client says of such a URL
        r"(://)[^/?#\s\"'<>\\]*(@)",
        r"(nonnumeric port: ')[^'\n]{0,300}(@)",
        # name=value, the name alone or after an escaped & or ?
        rf"((?:(?<![\w-])|(?<=%26)|(?<=%3F)){_ANYWHERE}(?:=|%3D)){_VALUE}",
        rf"((?:[?&;]|%26|%3F){_IN_QUERY}(?:=|%3D)){_VALUE}",
        # "name": "value", as JSON, as a Python dict, or as JSON in a string
        rf"(\\?[\"'](?:{_ANYWHERE}|token)\\?[\"']\s{{0,8}}:\s{{0,8}}(?-i:b)?\\?[\"'])"
        r"(?:[^\"'\\]|\\[^\"'])++",
        # Headers, with or without their scheme, and schemes without their header
        r"(authorization\\?[\"']?\s{0,8}[:=,]\s{0,8}(?-i:b)?\\?[\"']?(?:(?:Bearer|Basic|Token)\s{1,8})?)"
        r"[^\s\"'\\,}]++",
        r"(\b(?:Bearer|Basic) )[\w.~+/=-]{20,}+",
        # Google's access tokens, refresh tokens, API keys and client secrets; JSON Web Tokens
        r"(?<!\w)ya29\.[\w.~+/-]++",
        r"(?<![\w/])1//[\w-]{20,}+",
        r"(?<![\w-])AIza[\w-]{35}",
        r"(?<![\w-])GOCSPX-[\w-]++",
        r"(?<![\w-])eyJ[\w-]{5,}+\.[\w-]{4,}+(?:\.[\w-]*+)?",
    )
)


def redact(text: str) -> str:
    """Give the text with `[redacted]` in place of every secret in it; other text as it is.

    Secrets are: credentials in URLs, the values of signed URLs and of token parameters,
    authorization headers, Google's tokens, JSON Web Tokens, private keys in PEM, and the fields of
    a credentials file. Redacting twice changes nothing.
    """
    for pattern in _PATTERNS:
        text = pattern.sub(_keep, text)
    return text


def _keep(match: re.Match[str]) -> str:
    before, after = (*match.groups(), "", "")[:2]
    return f"{before}{REDACTED}{after}"
