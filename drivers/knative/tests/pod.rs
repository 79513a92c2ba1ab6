//! A host that is a pod of the cluster: with the files that Kubernetes mounts, the name and address of its API server, and TLS.
//!
//! The host is a process of its own with file systems and a network of its own, as a pod has, so that these files are nobody
//! else's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code fails by panicking")]

#[cfg(test)]
mod fake;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, Options};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, ErrorKind, FunctionExecutor as _, FunctionManager as _, FunctionName, FunctionRef, Gateway,
    InvokeRequest, Precondition, Principal,
};
use function_gateway_knative::{Knative, KnativeAccess};
use http::header::AUTHORIZATION;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const CA: &str = include_str!("fixtures/tls/ca.pem");
/// Is for `kubernetes.default.svc` and `127.0.0.1`.
const SERVER: &str = include_str!("fixtures/tls/server.pem");
const SERVER_KEY: &str = include_str!("fixtures/tls/server.key");
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const API_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 443);

/// Makes what a pod has, and runs the host there.
const SCRIPT: &str = "
set -e
ip link set lo up
mount -t tmpfs tmpfs /var/run
mkdir -p \"$1\"
echo 127.0.0.1 kubernetes.default.svc > /var/run/hosts
mount --bind /var/run/hosts /etc/hosts
exec \"$2\" host --exact --ignored --nocapture --test-threads=1
";

#[test]
#[ignore = "needs the right to make namespaces"]
fn in_pod_the_service_account_is_what_the_host_shows() {
    let mut pod = Command::new("unshare");
    pod.args(["--mount", "--net", "--map-root-user", "sh", "-c", SCRIPT, "sh", ACCOUNT]);
    pod.arg(std::env::current_exe().unwrap()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    pod.envs([("POD", "yes"), ("HOME", "/nonexistent")]);
    pod.envs([("KUBERNETES_SERVICE_HOST", "127.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")]);
    let output = pod.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("all was seen"), "{said}");
}

#[tokio::test]
#[ignore = "is the host that the other test starts"]
async fn host() {
    if std::env::var_os("POD").is_none() {
        return;
    }
    let fake = Fake::start(Options { token: Some("first".to_owned()), ..Options::default() }).await;
    serve(&fake).await;
    for access in [KnativeAccess::InCluster, KnativeAccess::Inferred] {
        without_an_account_it_is_said(&fake, &access).await;
        mount("first", CA);
        a_function_lives(&fake, access.clone()).await;
        a_token_that_was_renewed_is_read_again(&fake, access.clone()).await;
        another_authority_is_not_trusted(&fake, access).await;
    }
    println!("all was seen");
}

/// TLS in front of the fake.
async fn serve(fake: &Fake) {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(SERVER.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(API_SERVER).await.unwrap();
    let behind = fake.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                // A client that does not trust it hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
}

/// What Kubernetes mounts, and renews the token of.
fn mount(token: &str, ca: &str) {
    for (file, content) in [("token", token), ("ca.crt", ca), ("namespace", fake::NAMESPACE)] {
        fs::write(Path::new(ACCOUNT).join(file), content).unwrap();
    }
}

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

fn driver(fake: &Fake, access: KnativeAccess) -> Knative {
    Knative::new(fake.config_with(access)).unwrap()
}

async fn without_an_account_it_is_said(fake: &Fake, access: &KnativeAccess) {
    for file in fs::read_dir(ACCOUNT).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = driver(fake, access.clone()).health(&cx()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error:?}");
    assert!(error.message().contains("service account"), "{error:?}");
}

async fn a_function_lives(fake: &Fake, access: KnativeAccess) {
    fake.take_seen();
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new("test".parse().unwrap())))
        .driver("faas".parse().unwrap(), Arc::new(driver(fake, access)))
        .build()
        .await
        .unwrap();
    let name: FunctionName = "fun".parse().unwrap();
    gateway.create(&cx(), &name, fake::spec("lab.local/fn:1", "echo")).await.unwrap();
    let answer = gateway.invoke(&cx(), &FunctionRef::from(name.clone()), InvokeRequest::new("hello")).await.unwrap();
    assert_eq!(&answer.body.collect(1 << 20).await.unwrap()[..], b"hello");
    gateway.delete(&cx(), &name, Precondition::none()).await.unwrap();
    gateway.shutdown(fake::PATIENCE).await.unwrap();
    let seen = fake.take_seen();
    let mut to_api = seen.iter().filter(|seen| seen.at == fake::At::Api).peekable();
    assert!(to_api.peek().is_some());
    assert!(to_api.all(|seen| seen.headers.get(AUTHORIZATION).is_some_and(|value| value == "Bearer first")));
}

async fn a_token_that_was_renewed_is_read_again(fake: &Fake, access: KnativeAccess) {
    let driver = driver(fake, access);
    driver.health(&cx()).await.unwrap();
    mount("second", CA);
    fake.change(|options| options.token = Some("second".to_owned()));
    // Files that were read just now are left alone.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    driver.health(&cx()).await.unwrap();
    fake.change(|options| options.token = Some("first".to_owned()));
    mount("first", CA);
}

async fn another_authority_is_not_trusted(fake: &Fake, access: KnativeAccess) {
    let other = include_str!("../../openfaas/tests/fixtures/tls/ca.pem");
    mount("first", other);
    let error = driver(fake, access).health(&cx()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains("certificate"), "{error:?}");
}
