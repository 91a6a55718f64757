import os

import pytest

from kd.runtime.messages import escaped, masked, name_as_text


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:secret@host/path", "https://***@host/path"),
        ("https://secret@host", "https://***@host"),
        ("postgresql+psycopg2://user:sec@ret@host:5432/db", "postgresql+psycopg2://***@host:5432/db"),
        ("mysql://user:sec/ret:x@host/db", "mysql://***@host/db"),
        ("mysql://user:s%40e%2Fc%3Aret@host/db", "mysql://***@host/db"),
        ("http://host/?password=secret&a=1", "http://host/?password=***&a=1"),
        ("http://host/?a=1&API_Key=secret", "http://host/?a=1&API_Key=***"),
        ("http://host/?access_token=sec@ret&db=passwd", "http://host/?access_token=***&db=passwd"),
        ("postgresql:///db?user=me&passwd=secret", "postgresql:///db?user=me&passwd=***"),
        ("http://host:5000", "http://host:5000"),
        ("http://host/?a=1&b=2", "http://host/?a=1&b=2"),
        ("http://host/?password=&a=1", "http://host/?password=&a=1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_secrets_in_uris_are_masked(uri, shown):
    assert masked(uri) == shown
    assert masked(f"+  uri: '{uri}'\n+  mail: me@here\n") == f"+  uri: '{shown}'\n+  mail: me@here\n"
    assert masked(f"from {uri} to {uri}") == f"from {shown} to {shown}"


def test_names_are_text_of_one_printable_line():
    assert name_as_text("$a_1^2$ → ä") == "$a_1^2$ → ä"
    assert name_as_text(os.fsdecode(b"na\xefve\nb\x07")) == "na\\xefve\\nb\\x07"
    assert escaped("a\nb\udcff ä") == "a\\nb\\udcff ä"
