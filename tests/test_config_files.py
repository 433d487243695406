"""Certificates and keys named in a file are tried when the file is loaded."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from gateway.config import ListenerTls
from gateway.config_problem import ConfigErrors
from gateway.config_source import effective, load

ROUTES = "\nroutes: [{cluster: llm}]\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates, good and bad."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("server", "other"):
        leaf = authority.issue_cert(f"{name}.test")
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.pem").write_bytes(b"".join(c.bytes() for c in leaf.cert_chain_pems))
    key = load_pem_private_key((folder / "server.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        )
    )
    (folder / "noise.pem").write_text("no certificate\n")
    (folder / "folder.pem").mkdir()
    return folder


def listener(made: Path, tls: str) -> Path:
    file = made / "tailrace.yaml"
    file.write_text(
        f"listen: {{address: 127.0.0.1:8443, tls: {{{tls}}}}}\n"
        "clusters: {llm: {endpoints: http://127.0.0.1:8000}}" + ROUTES
    )
    return file


def cluster(made: Path, tls: str) -> Path:
    file = made / "tailrace.yaml"
    file.write_text(f"clusters: {{llm: {{endpoints: https://a, tls: {{{tls}}}}}}}" + ROUTES)
    return file


def test_good_files(made: Path) -> None:
    config = load(listener(made, "cert: server.pem, key: server.key, client_ca: ca.pem"), {})
    assert config.listen[0].tls == ListenerTls(
        cert=str(made / "server.pem"), key=str(made / "server.key"), client_ca=str(made / "ca.pem")
    )
    load(cluster(made, "ca: ca.pem, cert: server.pem, key: server.key, server_name: A.test"), {})


def test_paths_start_at_the_folder_of_the_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = listener(made, "cert: server.pem, key: server.key")
    config = load(file, {})
    monkeypatch.chdir(made.parent)
    assert load(Path(made.name) / "tailrace.yaml", {}) == config
    elsewhere = tmp_path / "effective.yaml"
    elsewhere.write_text(effective(config))
    assert load(elsewhere, {}) == config


@pytest.mark.parametrize(
    ("make", "tls", "at", "message"),
    [
        (listener, "cert: none.pem, key: server.key", "none.pem", "there is no such file"),
        (listener, "cert: server.pem, key: none.key", "none.key", "there is no such file"),
        (listener, "cert: folder.pem, key: server.key", "folder.pem", "it is not a file"),
        (listener, "cert: noise.pem, key: server.key", "noise.pem", "holds no certificate"),
        (listener, "cert: server.pem, key: noise.pem", "noise.pem", "holds no private key"),
        (listener, "cert: server.pem, key: other.key", "other.key", "does not belong to"),
        (listener, "cert: server.pem, key: locked.key", "locked.key", "is encrypted"),
        (
            listener,
            "cert: server.pem, key: server.key, client_ca: noise.pem",
            "noise.pem",
            "holds no certificate",
        ),
        (cluster, "ca: noise.pem", "noise.pem", "holds no certificate"),
        (cluster, "ca: none.pem", "none.pem", "there is no such file"),
        (cluster, "cert: server.pem, key: other.key", "other.key", "does not belong to"),
    ],
)
def test_bad_files(made: Path, make: object, tls: str, at: str, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigErrors) as raised:
        load(make(made, tls), {})
    (problem,) = raised.value.problems
    assert message in problem.message
    assert problem.source_line[problem.column - 1 :].startswith(at)


def test_both_files_of_a_pair_are_reported(made: Path) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load(listener(made, "cert: a.pem, key: b.pem"), {})
    assert len(raised.value.problems) == 2


def test_every_field_of_the_reference_loads(made: Path) -> None:
    """Also the lines that are commented out because they need files."""
    configs = Path(__file__).parent.parent / "configs"
    tls = made / "tls"
    tls.mkdir()
    for name, source in (
        ("server.pem", "server.pem"),
        ("server.key", "server.key"),
        ("clients.pem", "ca.pem"),
        ("authority.pem", "ca.pem"),
        ("client.pem", "other.pem"),
        ("client.key", "other.key"),
    ):
        (tls / name).write_bytes((made / source).read_bytes())
    (tls / "token").write_text("a-token\n")
    file = made / "reference.yaml"
    file.write_text((configs / "reference.yaml").read_text().replace("#|", ""))
    config = load(file, {})
    assert config.listen[0].tls is not None
    assert config.listen[0].tls.client_ca is not None
    assert config.clusters["secure"].tls is not None
    assert config.clusters["secure"].tls.key is not None
    assert config.admin is not None
    assert config.admin.token is not None
    assert config.admin.token.value == "a-token"
