"""API keys, limits per client, and encryption."""

import concurrent.futures
import datetime
import ipaddress
import ssl

import httpx2
import pytest

from plug_jax.errors import PlugError
from plug_jax.serving import clients, server
from plug_jax.serving.api import ApiError
from plug_jax.serving.clients import KEY_VARIABLE, Shares, read_keys
from tests.serving.running import answer_of, gated_slots, head, running

KEYS = ("first-key-0123456789", "other-key-0123456789")


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded():
    with running(gated_slots(2), keys=KEYS) as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        bearer("none"),
        bearer(KEYS[0][:-1]),
        bearer(KEYS[0] + "0"),
        bearer(KEYS[0].upper()),
        {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": b"Bearer \xff\xfe" + b"0" * 20},
    ],
)
def test_without_a_key_there_is_nothing_but_the_page_and_the_health(guarded, headers):
    client = guarded.client
    for response in (
        client.post("/v1/completions", json={"prompt": "A"}, headers=headers),
        client.get("/v1/models", headers=headers),
        client.get("/v1/models/lively", headers=headers),
        client.get("/v1/nothing", headers=headers),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert KEYS[0] not in response.text
    assert client.get("/health", headers=headers).status_code == 200
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_with_one_of_the_keys_it_writes(guarded, key):
    for headers in (bearer(key), {"Authorization": f"bearer  {key}"}):
        answer = guarded.client.post(
            "/v1/completions", json={"prompt": "A", "max_tokens": 2, "seed": 1}, headers=headers
        )
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"]
    assert guarded.client.get("/v1/models", headers=bearer(key)).status_code == 200


def test_a_body_without_a_key_is_not_waited_for(guarded):
    with guarded.raw(head(Content_Length=1000), timeout=5) as raw:
        assert answer_of(raw)[0] == 401


def test_every_key_is_compared_in_constant_time(monkeypatch, guarded):
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(clients.hmac, "compare_digest", compare)
    for key in (KEYS[0], "x"):
        guarded.client.get("/v1/models", headers=bearer(key))
    assert compared == [(32, 32)] * 4


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_keys(None) == ()
    path = tmp_path / "keys"
    path.write_text(f"{KEYS[0]}\n\n  {KEYS[1]}\r\n{KEYS[0]}\n")
    assert read_keys(str(path)) == KEYS
    monkeypatch.setenv(KEY_VARIABLE, KEYS[1])
    assert read_keys(None) == KEYS[1:]
    with pytest.raises(PlugError, match="keep one of them"):
        read_keys(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no key"),
        (b"\n \n", "has no key"),
        (b"first-key-0123456789\nshort\n", "key 2 of .* must be 16 or more ASCII characters"),
        (b"two words 0123456789", "without a space"),
        ("密钥".encode() * 16, "ASCII"),
        (b"\xff" * 20, "cannot read the API keys in .*: it is not UTF-8"),
        (None, "cannot read the API keys in .*: No such file or directory"),
    ],
)
def test_keys_that_are_none_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlugError, match=message) as caught:
        read_keys(str(path))
    assert "short" not in str(caught.value)  # keys are never disclosed


def test_an_empty_variable_does_not_open_the_server(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(PlugError, match=f"{KEY_VARIABLE} has no key"):
        read_keys(None)


def test_a_client_has_its_share_and_no_more():
    slots = gated_slots(1)
    slots.shut()
    with (
        running(slots, keys=KEYS, shares=Shares(3)) as server,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):

        def post(key, n):
            body = {"prompt": "AB", "max_tokens": 4, "n": n}
            return server.client.post("/v1/completions", json=body, headers=bearer(key))

        in_hand = [pool.submit(post, KEYS[0], 2)]
        server.wait_for(writing=1, waiting=1)
        refused = post(KEYS[0], 2)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "a client may have 3 texts at a time" in refused.json()["error"]["message"]
        in_hand += [pool.submit(post, KEYS[0], 1), pool.submit(post, KEYS[1], 3)]
        server.wait_for(writing=1, waiting=5)
        never = post(KEYS[1], 4)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
        assert "4 texts; at most 3 here" in never.json()["error"]["message"]
        slots.let()
        assert [answer.result().status_code for answer in in_hand] == [200] * 3
        assert post(KEYS[0], 3).status_code == 200


def test_without_keys_a_client_is_an_address_and_shares_are_given_back():
    shares = Shares(2)
    with running(gated_slots(1), shares=shares) as server:
        for _ in range(3):
            assert server.complete(prompt="AB", n=2, max_tokens=2)
        assert server.post(prompt="A" * 60).status_code == 400
    assert not shares._held
    with shares.taken("a", 2), shares.taken("b", 1), pytest.raises(ApiError):
        shares.taken("a", 1).__enter__()
    with pytest.raises(PlugError, match="max_client_texts is 0"):
        Shares(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate for 127.0.0.1, its key, and the encrypted key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plug")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    for file, secret in [
        ("key.pem", serialization.NoEncryption()),
        ("secret.pem", serialization.BestAvailableEncryption(b"word")),
    ]:
        content = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, secret)
        (directory / file).write_bytes(content)
    return directory


def test_a_certificate_encrypts_it(certificate):
    cert, key = str(certificate / "cert.pem"), str(certificate / "key.pem")
    trusting = ssl.create_default_context(cafile=cert)
    context = server.tls_context(cert, key)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with running(gated_slots(1), tls=context) as plain:
        url = plain.url.replace("http:", "https:")
        with httpx2.Client(base_url=url, verify=trusting, timeout=30) as client:
            body = {"prompt": "AB", "max_tokens": 2, "seed": 1}
            assert client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with pytest.raises(httpx2.HTTPError):
            plain.client.get("/health")


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("nothing.pem", None, "cannot read .*nothing.pem for TLS: No such file"),
        ("cert.pem", "nothing.pem", "cannot read .*nothing.pem for TLS: No such file"),
        ("cert.pem", None, "cert.pem must hold a certificate and its private key as PEM"),
        ("key.pem", "cert.pem", "key.pem and .*cert.pem must hold"),
        ("cert.pem", "secret.pem", "secret.pem is encrypted; decrypt it first"),
    ],
)
def test_files_that_encrypt_nothing_are_refused(certificate, cert, key, message):
    with pytest.raises(PlugError, match=message):
        server.tls_context(str(certificate / cert), None if key is None else str(certificate / key))
