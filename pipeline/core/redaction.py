"""Takes secrets out of text that is shown: passwords in addresses, keys and tokens among parameters.

`redacted` finds them by their form, in any text. What has no form of its own, such as an API key, it knows once
`remember` was told. Host and path stay, so that the text is still of use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote_plus, urlsplit

MASK = "********"

SHORTEST = 4
"""Characters of a secret that is looked for as it is: a shorter one would be found everywhere."""

_SCHEME = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}:/{1,2}"  # one slash where it was taken for a path
_START = re.compile(_SCHEME)
_URL = re.compile(rf"(?:(?!{_SCHEME})[^\s\"'`<>\x00-\x1f\x7f])*")
_PORT = re.compile(r":\d{1,5}(?=[/?]|[^\w@#%]*$)")
_BEYOND = re.compile(r"[^@\n]{0,200}@")
_PARAMETER = re.compile(r"([?&;#])([^=&;#?]{1,80})=([^&]*)")
_SECRET_NAME = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|signature|authorization|key$|(?:^|[-_.])(?:pass|pw|sig|auth|code|jwt|bearer|access|sas)$",
    re.IGNORECASE,
)
_KEYWORD = re.compile(
    r"""(?<![A-Za-z0-9])([A-Za-z_]{0,40}(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key)["']?)"""
    r"""(\s*=\s*|\s*:\s*(?=["']))('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s"'&,;)\]}]+)""",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"""(\b(?:Bearer\s+|(?:proxy-)?authorization\W{1,4}Basic\s+|(?i:x-api-key|api-key|x-auth-token)['"]?:\s*['"]?))"""
    r"""[^\s"',;}\])]+|(?i:(\bbearer\s+|\bauthorization\W{1,4}basic\s+))(?=\S{0,200}\d)[^\s"',;]{6,}"""
)
_NAMED = re.compile(
    r"""(?:(?<![A-Za-z0-9._%+@/-])|(?<=(?<![^\s"'(,=])//))"""  # not within a path
    r"""([A-Za-z0-9._%+-]{1,64}:)[^\s:@/"'`<>]{1,200}@(?=[A-Za-z0-9\[])"""
)
"""A name and a password before a host, without the scheme that somebody forgot."""

_known: re.Pattern[str] | None = None


def redacted(text: str) -> str:
    """The text with a mask in place of each secret."""
    if _known is not None:
        text = _known.sub(MASK, text)
    text = "".join(_urls_masked(text)) if ":/" in text else text
    text = _NAMED.sub(rf"\g<1>{MASK}@", text) if "@" in text else text
    text = _KEYWORD.sub(rf"\g<1>\g<2>{MASK}", text)
    return _HEADER.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def remember(secrets: Iterable[str]) -> None:
    """Look for these as well from now on, instead of those of an earlier call, also percent-encoded."""
    global _known
    forms = {form for secret in secrets for form in (secret, quote(secret), quote(secret, safe=""))}
    words = sorted((re.escape(form) for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
    _known = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None


def secrets_in(url: str) -> Iterator[str]:
    """What is secret in an address, as it is written and as it is meant.

    Of a password with characters that should have been encoded, the pieces too: a parser that takes it apart quotes
    them in its error.
    """
    start = _START.match(url)
    if start is None:
        return
    scheme, rest = start[0], url[start.end() :]
    first, last, _ = _password(scheme, rest, "")
    found = [rest[first:last]] if last > first else []
    found += [value for _, name, value in _PARAMETER.findall(rest[last:]) if _is_secret(name)]
    for secret in found:
        yield from (secret, unquote_plus(secret), *re.split(r"[@:/?#]", secret))


def secrets_of_address(url: str) -> Iterator[str]:
    """The same of an address that is a secret itself: all of it, and what follows the host."""
    parts = urlsplit(url)
    yield from (url, *secrets_in(url), parts.path.strip("/"), parts.query, *parts.path.split("/"))


def _urls_masked(text: str) -> Iterator[str]:
    done = 0
    for start in _START.finditer(text):
        if start.start() < done:
            continue
        rest = _URL.match(text, start.end())
        assert rest is not None
        first, last, beyond = _password(start[0], rest[0], text[rest.end() :])
        yield text[done : start.end()]
        if last > first or beyond:
            yield rest[0][:first] + MASK
        done = rest.end() + beyond
        yield "" if beyond else _PARAMETER.sub(_parameter_masked, rest[0][last:])
    yield text[done:]


def _password(scheme: str, url: str, after: str) -> tuple[int, int, int]:
    """Where the password of a URL begins and ends, and how much of the text after the URL belongs to it too.

    url: what follows the scheme. Passwords hold `/`, `?`, `#`, `@` and spaces that nobody encoded.
    """
    colon, authority = url.find(":"), re.split(r"[/?#]", url, maxsplit=1)[0]
    for_web = scheme.lower().rstrip("/") in ("http:", "https:", "ws:", "wss:")
    if for_web and "@" in authority:
        # A name alone is often a token there.
        at = authority.rfind("@")
        return (colon + 1 if 0 <= colon < at else 0), at, 0
    if not 0 <= colon < len(authority) or "[" in url[:colon] or "@" in url[:colon]:
        return 0, 0, 0
    is_port = _PORT.match(url, colon) is not None
    at = url.partition("?")[0].rfind("@")
    if at < 0 and not is_port:
        at = url.rfind("@")
    if at > colon and not (for_web and is_port):
        return colon + 1, at, 0
    if is_port or colon + 1 == len(authority):
        return 0, 0, 0
    beyond = _BEYOND.match(after)
    if beyond is not None:
        return colon + 1, len(url), beyond.end() - 1
    return colon + 1, len(authority), 0


def _parameter_masked(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}={MASK}" if _is_secret(match[2]) else match[0]


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(unquote_plus(name)) is not None
