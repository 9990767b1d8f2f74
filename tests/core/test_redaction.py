"""What is secret goes, and what is of use stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.core.errors import StoreError
from pipeline.core.redaction import MASK, redacted, remember, secrets_in, secrets_of_address


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    remember(())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:S3CRET@h:5432/d", "postgresql://u:*@h:5432/d"),
        ("postgresql+psycopg://u:S3CRET@[::1]:5432/d", "postgresql+psycopg://u:*@[::1]:5432/d"),
        ("postgresql://u:p@S3CRET/w:rd@h:5432/d", "postgresql://u:*@h:5432/d"),
        ("postgresql://u:p?S3CRET@h/d", "postgresql://u:*@h/d"),
        ("postgresql://u:p#S3CRET@h/d", "postgresql://u:*@h/d"),
        ("postgresql://u:12/S3CRET@h/d", "postgresql://u:*@h/d"),
        ("postgresql://u:S3CRET%40%2F@h/d", "postgresql://u:*@h/d"),
        ("cannot open postgresql://u:my S3CRET@h/d now", "cannot open postgresql://u:*@h/d now"),
        ("postgresql://u:S3CRET…", "postgresql://u:*"),
        ("sqlite://u:S3CRET@h", "sqlite://u:*@h"),
        ("https://u:S3CRET@h:8080/x", "https://u:*@h:8080/x"),
        ("https://u:S3CRET/x@h/y", "https://u:*@h/y"),
        ("https://S3CRET@h/x", "https://*@h/x"),
        ("postgresql://h/d?user=u&password=S3CRET&x=1", "postgresql://h/d?user=u&password=*&x=1"),
        ("postgresql://h/d?sslpassword=S3#CRET&x=1", "postgresql://h/d?sslpassword=*&x=1"),
        ("postgresql://h/d?pass%77ord=S3CRET", "postgresql://h/d?pass%77ord=*"),
        ("http://h/x?api_key=S3CRET&token=S3CRET&key=S3CRET", "http://h/x?api_key=*&token=*&key=*"),
        ("http://h/x?a=1#access_token=S3CRET", "http://h/x?a=1#access_token=*"),
        ("http://u:S3CRET@h/x?key=S3CRET", "http://u:*@h/x?key=*"),
        ("['http://a:S3CRET@h/x', 'http://b:S3CRET@i/y?k=5']", "['http://a:*@h/x', 'http://b:*@i/y?k=5']"),
        ("http://a:S3CRET@h/x,http://b:S3CRET@i/y", "http://a:*@h/x,http://b:*@i/y"),
        ("http://h/x?to=http://u:S3CRET@i/y&z=1", "http://h/x?to=http://u:*@i/y&z=1"),
        ("/srv/http:/u:S3CRET@h/x", "/srv/http:/u:*@h/x"),
        ("host=h user=u password=S3CRET dbname=d", "host=h user=u password=* dbname=d"),
        (r"host=h password = 'S3 \'CRET' dbname=d", "host=h password = * dbname=d"),
        ("PGPASSWORD=S3CRET psql", "PGPASSWORD=* psql"),
        ("{'password': 'S3CRET', 'host': 'h'}", "{'password': *, 'host': 'h'}"),
        ("Illegal header value b'Bearer S3CRET\\n'", "Illegal header value b'Bearer *'"),
        ("authorization: bearer S3CRET, twice", "authorization: bearer *, twice"),
        ("x-api-key: S3CRET", "x-api-key: *"),
        ("{'X-Api-Key': 'S3CRET'}", "{'X-Api-Key': *}"),
        ("u:S3CRET@h:8000", "u:*@h:8000"),
        ("//u:S3CRET@nas/x", "//u:*@nas/x"),
        ("hf:u:S3CRET@o/r/f.gguf", "hf:u:*@o/r/f.gguf"),
        ("http:u:S3CRET@h", "http:u:*@h"),
        ("smb://u:S3CRET@nas/share", "smb://u:*@nas/share"),
        ("https://h/m.gguf?pw=S3CRET&code=S3CRET&jwt=S3CRET", "https://h/m.gguf?pw=*&code=*&jwt=*"),
        ("https://h/?bearer=S3CRET&access=S3CRET&sas=S3CRET", "https://h/?bearer=*&access=*&sas=*"),
    ],
)
def test_a_secret_goes_and_the_rest_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown.replace("*", MASK)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u@h/d",
        "sqlite:////srv/a:b@c/x.db",
        "http://127.0.0.1:8642/x?mail=a@b&q=1",
        "the daemon at http://127.0.0.1:8642, or (http://[::1]:8642): write to me@example.com",
        "http://h:80/x@y",
        "/srv/a:b@c/x.pdf and notes/10:30@office.docx",
        "hf:ggml-org/bge-m3@main/bge.gguf",
        "the bearer of this letter, who bears no token",
        "api_key: should be text, not 5",
        "chunk.tokens = 512, max_tokens=3",
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_what_has_no_form_of_its_own_is_known_once_told() -> None:
    remember(["open sesame", "abc"])
    assert redacted("refused: open sesame (open%20sesame), abc") == f"refused: {MASK} ({MASK}), abc"
    remember(["another"])
    assert redacted("open sesame") == "open sesame"


def test_the_pieces_of_a_password_that_a_parser_took_apart() -> None:
    remember(secrets_in("postgresql://u:first@second/third@host/d?sslpassword=four%40th"))
    for said in ("no host 'second'", "Invalid port: 'first'", "third", "four@th", "four%40th"):
        assert MASK in redacted(said)
    assert redacted("host u d") == "host u d"


def test_an_address_that_is_a_secret_itself() -> None:
    remember(secrets_of_address("https://hooks.example.com/services/T0001/B0002"))
    assert redacted("POST /services/T0001/B0002 to hooks.example.com") == f"POST /{MASK} to hooks.example.com"


def test_our_own_errors_have_none() -> None:
    error = StoreError("postgresql://u:S3CRET@h/d cannot be used")
    assert str(error) == f"{error}" == f"postgresql://u:{MASK}@h/d cannot be used"
