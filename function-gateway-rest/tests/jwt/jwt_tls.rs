//! Keys from a URL whose server speaks TLS.

use std::sync::Arc;

use function_gateway_core::ErrorKind;
use function_gateway_rest::auth::jwt::JwtKeys;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{AlertDescription, Error, ServerConfig};

use crate::kit::*;

/// Has vouched for the server, for the address 127.0.0.1.
const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../function-gateway-callbacks/tests/fixtures/tls/ca.pem");
const OTHER_AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../drivers/openfaas/tests/fixtures/tls/ca.pem");
const SERVER: &str = include_str!("../../../function-gateway-callbacks/tests/fixtures/tls/server.pem");
const SERVER_KEY: &str = include_str!("../../../function-gateway-callbacks/tests/fixtures/tls/server.key");

/// A server with this set of keys: its port, and what becomes of each connection. `None` is a request that was answered.
async fn server(jwks: String) -> (u16, UnboundedReceiver<Option<Error>>) {
    let certificate = CertificateDer::from_pem_slice(SERVER.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (ended, connections) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => {
                    ended.send(Some(error.downcast().unwrap())).unwrap();
                    continue;
                }
            };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{jwks}", jwks.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            ended.send(None).unwrap();
        }
    });
    (port, connections)
}

/// The test again, in processes of their own, for each of which the system trusts another authority.
#[tokio::test]
async fn an_authority_that_the_system_trusts_is_trusted_and_no_other() {
    let trusted = std::env::var("SSL_CERT_FILE").unwrap_or_default();
    if trusted == AUTHORITY || trusted == OTHER_AUTHORITY {
        return keys_are_fetched(trusted == AUTHORITY).await;
    }
    for authority in [AUTHORITY, OTHER_AUTHORITY] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "jwt_tls::an_authority_that_the_system_trusts_is_trusted_and_no_other", "--quiet"]);
        let output = again.env("SSL_CERT_FILE", authority).env_remove("SSL_CERT_DIR").output().await.unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{authority}: {stdout}");
    }
}

async fn keys_are_fetched(is_trusted: bool) {
    let signer = p256();
    let (port, mut connections) = server(jwks([signer.jwk("a")])).await;
    for (host, refusal) in [
        ("127.0.0.1", (!is_trusted).then_some(AlertDescription::UnknownCA)),
        // The certificate is not for that name, whoever vouches for it.
        ("localhost", Some(if is_trusted { AlertDescription::BadCertificate } else { AlertDescription::UnknownCA })),
    ] {
        let gateway = gateway(JwtKeys::from_url(&format!("https://{host}:{port}/jwks")).unwrap());
        let answer = ask(&gateway, &signer.token("a")).await;
        match refusal {
            None => assert_accepted(&answer),
            Some(_) => assert_fails_as(&answer, ErrorKind::DependencyUnavailable),
        }
        assert_eq!(connections.recv().await.unwrap(), refusal.map(Error::AlertReceived), "{host}");
    }
    assert!(connections.try_recv().is_err());
}
