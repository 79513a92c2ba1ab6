//! TLS: own authorities, client certificates, HTTP/2 where it is offered.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

use std::sync::{Arc, Mutex};

use function_gateway_core::{CallContext, Delivery, ErrorKind, MemorySecrets, Principal, Secret};
use function_gateway_openfaas::{HttpVersion, OpenFaas, OpenFaasConfig};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

const CA: &str = include_str!("fixtures/tls/ca.pem");
const SERVER: &str = include_str!("fixtures/tls/server.pem");
const SERVER_KEY: &str = include_str!("fixtures/tls/server.key");
const CLIENT: &str = include_str!("fixtures/tls/client-identity.pem");

/// What a connection came with: the protocol that was agreed on, and whether the client showed a certificate.
type Connections = Arc<Mutex<Vec<(String, bool)>>>;

/// A gateway behind TLS, which answers `/healthz`.
async fn server(protocols: &[&str], needs_client: bool) -> (String, Connections) {
    let certificates =
        |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let builder = if needs_client {
        let mut roots = RootCertStore::empty();
        roots.add(certificates(CA).remove(0)).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        ServerConfig::builder().with_client_cert_verifier(verifier)
    } else {
        ServerConfig::builder().with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(certificates(SERVER), key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let connections = Connections::default();
    let log = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let session = stream.get_ref().1;
            let protocol = String::from_utf8_lossy(session.alpn_protocol().unwrap_or_default()).into_owned();
            let is_h2 = protocol == "h2";
            log.lock().unwrap().push((protocol, session.peer_certificates().is_some()));
            let service = service_fn(|_: hyper::Request<Incoming>| async {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new()))
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                if is_h2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    (url, connections)
}

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

#[tokio::test]
async fn an_own_authority_is_trusted_and_http_2_is_taken_where_it_is_offered() {
    for (offered, version, expected) in [
        (&["h2", "http/1.1"][..], HttpVersion::Offered, "h2"),
        (&["http/1.1"], HttpVersion::Offered, "http/1.1"),
        (&["h2", "http/1.1"], HttpVersion::Http1, ""),
    ] {
        let (url, connections) = server(offered, false).await;
        let config = OpenFaasConfig::new(url).with_ca_pem(CA).with_http_version(version);
        OpenFaas::new(config).unwrap().health(&cx()).await.unwrap();
        let agreed = connections.lock().unwrap()[0].0.clone();
        assert!(agreed == expected || (expected.is_empty() && agreed != "h2"), "{agreed}");
    }
}

#[tokio::test]
async fn what_nobody_vouches_for_is_not_spoken_to() {
    let (url, connections) = server(&["http/1.1"], false).await;
    let error = OpenFaas::new(OpenFaasConfig::new(url)).unwrap().health(&cx()).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::NotSent), "{error:?}");
    assert!(connections.lock().unwrap().is_empty());
    let error = OpenFaas::new(OpenFaasConfig::new("https://a").with_ca_pem("no certificate")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_client_certificate_comes_from_a_secret_and_is_never_shown() {
    let (url, connections) = server(&["h2"], true).await;
    let secrets = Arc::new(MemorySecrets::new());
    let set = |value: &str| {
        secrets.set("function-gateway".parse().unwrap(), "identity".parse().unwrap(), Secret::new(value));
    };
    let config = OpenFaasConfig::new(url).with_ca_pem(CA).with_client_identity("identity".parse().unwrap());
    let driver = OpenFaas::with_secrets(config, Arc::clone(&secrets) as _).unwrap();
    let missing = driver.health(&cx()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Misconfigured);
    set("canary: no certificate");
    let unreadable = driver.health(&cx()).await.unwrap_err();
    assert_eq!(unreadable.kind(), ErrorKind::Misconfigured);
    assert!(!format!("{unreadable:?} {driver:?}").contains("canary"));
    set(CLIENT);
    driver.health(&cx()).await.unwrap();
    assert_eq!(connections.lock().unwrap()[..], [("h2".to_owned(), true)]);
}
