//! Receivers behind TLS.

use std::sync::Arc;

use function_gateway_callbacks::{CallbackConfig, HttpCallbacks};
use function_gateway_core::{CallbackSender as _, Delivery, ErrorKind, Retry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{assert_is, callback, cx};

const CA: &str = include_str!("../fixtures/tls/ca.pem");
const SERVER: &str = include_str!("../fixtures/tls/server.pem");
const SERVER_KEY: &str = include_str!("../fixtures/tls/server.key");

/// A receiver that takes each callback which gets through to it.
async fn receiver() -> String {
    let certificate = CertificateDer::from_pem_slice(SERVER.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut read = Vec::new();
            while !read.ends_with(b"}") {
                assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    url
}

#[tokio::test]
async fn an_authority_of_the_hosts_own_is_trusted_and_no_other() {
    let url = receiver().await;
    let config = CallbackConfig::new().allow_networks(["127.0.0.1"]);
    let strangers = HttpCallbacks::new(config.clone()).unwrap();
    let error = strangers.send(&cx(), callback(&url)).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::NotSent);
    let trusting = HttpCallbacks::new(config.with_ca_pem(CA)).unwrap();
    trusting.send(&cx(), callback(&url)).await.unwrap();
}
