from __future__ import annotations

import pytest
from pydantic import SecretStr

from worker.connection import connect, parse
from worker.errors import SettingsError
from worker.settings import Settings


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "master", "plain"),
    [
        ("redis://h:7000/2", "single", (("h", 7000),), "", "redis://h:7000/2"),
        ("redis://", "single", (("localhost", 6379),), "", "redis:///"),
        ("rediss://u:p@h", "single", (("h", 6379),), "", "rediss://u:p@h/"),
        ("unix:///run/redis.sock?db=1", "single", (), "", "unix:///run/redis.sock?db=1"),
        ("redis://[::1]:7000", "single", (("::1", 7000),), "", "redis://[::1]:7000/"),
        ("redis+sentinel://u:p@a,b:7001/main/3", "sentinel", (("a", 26379), ("b", 7001)), "main", "redis://u:p@a/3"),
        ("redis+cluster://:p@a:7000,b:7001", "cluster", (("a", 7000), ("b", 7001)), "", "redis://:p@a:7000/"),
        ("rediss+cluster://a?ssl_ca_certs=/ca.pem", "cluster", (("a", 6379),), "", "rediss://a/?ssl_ca_certs=/ca.pem"),
    ],
)
def test_a_url_says_what_kind_of_redis_it_is_and_where(
    url: str, kind: str, nodes: tuple[tuple[str, int], ...], master: str, plain: str
) -> None:
    address = parse(url)
    assert (address.kind, address.nodes, address.master, address.url) == (kind, nodes, master, plain)
    assert address.tls is url.startswith("rediss")


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel", "rediss+cluster"])
def test_what_is_shown_of_a_url_holds_neither_login_nor_options(kind: str) -> None:
    shown = parse(f"{kind}://anna:s3cret@host:7000/main?ssl_keyfile=/key.pem").shown
    assert shown.startswith("host:7000")
    assert not any(word in shown for word in ("anna", "s3cret", "key.pem"))


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://h", "redis://"),
        ("redis+ring://h", "redis+cluster://"),
        ("redis://h:port", "port"),
        ("redis+cluster://a:1,b:x", "port"),
        ("redis+sentinel://a:1", "master"),
        ("localhost:6379", "redis://"),
        ("redis+cluster://a:1/2", "no databases"),
    ],
)
def test_a_malformed_url_is_refused_with_what_is_wrong(url: str, word: str) -> None:
    with pytest.raises(SettingsError, match="POINTSMAN_REDIS_URL") as caught:
        parse(url)
    assert word in str(caught.value)


@pytest.mark.parametrize("password", ["a[kiwi]plum", "kiwi\uff1aplum", "[kiwi", "kiwi]"])
@pytest.mark.parametrize("kind", ["redis", "redis+sentinel"])
def test_a_password_that_should_be_percent_encoded_is_not_told(kind: str, password: str) -> None:
    with pytest.raises(SettingsError, match="percent-encoded") as caught:
        parse(f"{kind}://user:{password}@host:7000/main")
    cause = caught.value.__cause__
    assert "kiwi" not in f"{caught.value} {cause}"
    assert cause is not None
    assert cause.__suppress_context__, "urlsplit's own words would be in a traceback"


@pytest.mark.parametrize("options", ["protocol=4", "ssl_cert_reqs=optionl"])
def test_an_option_with_a_value_that_cannot_be_is_a_bad_setting(options: str) -> None:
    scheme = "rediss" if options.startswith("ssl") else "redis"
    with pytest.raises(SettingsError, match="POINTSMAN_REDIS_URL"):
        connect(Settings(redis_url=SecretStr(f"{scheme}://h:1?{options}")))
