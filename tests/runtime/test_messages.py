"""What a message never shows: passwords in URIs."""

from __future__ import annotations

import pytest

from kd.runtime.messages import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("https://secret@host", "https://***@host"),
        ("postgresql://user:sec@ret/secret:@host/base", "postgresql://***@host/base"),
        ("+  uri: 'https://user:secret@host' # b@c", "+  uri: 'https://***@host' # b@c"),
        ("request to http://u:secret@h/api failed: h, port=9", "request to http://***@h/api failed: h, port=9"),
        ("postgresql+psycopg2://h/b?user=x&password=secret&a=1", "postgresql+psycopg2://h/b?user=x&password=***&a=1"),
        ("https://h/?access_token=secret", "https://h/?access_token=***"),
        ("http://host:5000/x?a=1", "http://host:5000/x?a=1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("see me@work", "see me@work"),
    ],
)
def test_what_may_be_secret_in_a_uri_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
