//! The HTTP client of drivers that pass calls on.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::Deserialize;
use tokio::net::TcpStream;
use tower_service::Service;

use super::{Broken, Chunks, Payload};
use crate::{Error, ErrorKind, Result, Secret};

/// Which version of HTTP a driver speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HttpVersion {
    /// HTTP/2 where the other side offers it over TLS, else HTTP/1.1.
    #[default]
    Offered,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 without asking, also without TLS. For a server or proxy that is known to take it.
    Http2,
}

/// How an [`HttpClient`] connects.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpClientOptions {
    /// How long opening a connection may take, looking its name up and TLS included; 5 s unless set.
    pub connect_timeout: Duration,
    /// How many idle connections are kept for each host and port; 64 unless set.
    pub max_idle_connections: usize,
    /// How long an idle connection is kept; 10 s unless set.
    pub idle_connection_timeout: Duration,
    /// Which version of HTTP is spoken.
    pub http_version: HttpVersion,
    /// Certificates, in PEM, of the authorities that alone are trusted; those of the system unless set.
    pub ca_pem: Option<String>,
    /// A client certificate and its key, in PEM, one after the other.
    pub identity_pem: Option<Secret>,
    /// A host, and a port for URLs that name none, to which every name leads, whatever it would resolve to. An address in a URL, in place
    /// of a name, is called as it is.
    pub leads_to: Option<(String, u16)>,
}

impl Default for HttpClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            max_idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(10),
            http_version: HttpVersion::Offered,
            ca_pem: None,
            identity_pem: None,
            leads_to: None,
        }
    }
}

/// How often a connection without a sign of life is asked for one, and for how long.
const ALIVE: Duration = Duration::from_secs(15);

/// An HTTP client for calls of functions, with a pool of connections. Clones share it.
///
/// It sends a request once: it follows no redirect, knows no proxy, and sends nothing again of which a byte may have been sent. It adds
/// no header but `Host` and what frames the payload.
#[derive(Clone)]
pub struct HttpClient(Client<Connector, Payload>);

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// Sets a client up. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where `ca_pem` holds no certificate; [`ErrorKind::Misconfigured`] where `identity_pem` does not
    /// hold a certificate and its key, or the system's authorities can't be read.
    pub fn new(options: &HttpClientOptions) -> Result<Self> {
        let mut http = HttpConnector::new_with_resolver(Resolver(options.leads_to.clone().map(Arc::new)));
        http.set_nodelay(true);
        http.enforce_http(false);
        // Of several addresses each gets its part of the time.
        http.set_connect_timeout(Some(options.connect_timeout));
        // Who is gone without a word is noticed, and not called by the same connection again.
        http.set_keepalive(Some(ALIVE));
        http.set_keepalive_interval(Some(ALIVE));
        http.set_keepalive_retries(Some(3));
        #[cfg(target_os = "linux")]
        http.set_tcp_user_timeout(Some(2 * ALIVE));
        let https = HttpsConnectorBuilder::new().with_tls_config(tls(options)?).https_or_http();
        let https = match options.http_version {
            HttpVersion::Offered => https.enable_all_versions().wrap_connector(http),
            HttpVersion::Http1 => https.enable_http1().wrap_connector(http),
            HttpVersion::Http2 => https.enable_http2().wrap_connector(http),
        };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.idle_connection_timeout)
            .pool_max_idle_per_host(options.max_idle_connections)
            .http2_only(options.http_version == HttpVersion::Http2)
            .http2_keep_alive_interval(ALIVE)
            .http2_keep_alive_timeout(ALIVE)
            .build(Connector { https, timeout: options.connect_timeout });
        Ok(Self(client))
    }

    /// Sends a request, and gives the answer once its head is there. The URL is an absolute one.
    ///
    /// # Errors
    /// Those of [`Broken`]. Where a payload broke off, its own error says more: see [`Payload::of`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the request; what was sent of it may have been received.
    pub async fn send(&self, mut request: Request<Payload>) -> Result<HttpAnswer> {
        let uri = request.uri();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
            return Err(Broken::NotWritten.error(io::Error::other("the URL is no absolute one of http or https")));
        }
        // The connection decides: what is asked for here would only be refused.
        *request.version_mut() = Version::HTTP_11;
        match self.0.request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok(HttpAnswer { status: head.status, headers: head.headers, body })
            }
            Err(error) => Err(Broken::of(&error).error(error)),
        }
    }
}

/// The answer to a request: its head, and its body as it comes.
#[derive(Debug)]
#[non_exhaustive]
pub struct HttpAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl HttpAnswer {
    /// How many bytes of the body are still to come, where that is told.
    #[must_use]
    pub fn declared(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }
}

impl Chunks for HttpAnswer {
    /// The next part.
    ///
    /// # Errors
    /// [`ErrorKind::FunctionBroken`] where the answer breaks off.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        // Where the length is told, the end is known with the last part: to wait for it would take one more turn of the connection.
        while !self.body.is_end_stream()
            && let Some(frame) = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await
        {
            let broke_off =
                |error| Error::new(ErrorKind::FunctionBroken, "the function's answer broke off").with_source(error);
            if let Ok(data) = frame.map_err(broke_off)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl Broken {
    fn of(error: &hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::NotConnected;
        }
        let mut source: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(cause) = source {
            match cause.downcast_ref::<hyper::Error>() {
                Some(cause) if cause.is_timeout() => return Self::TimedOut,
                // It refuses what was asked for, unless it was the payload that broke off.
                Some(cause) if cause.is_user() && !cause.is_body_write_aborted() && cause.source().is_none() => {
                    return Self::NotWritten;
                }
                _ => source = cause.source(),
            }
        }
        Self::Midway
    }
}

// What is sent

impl http_body::Body for Payload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { stream, .. } => {
                let chunk = ready!(stream.as_mut().poll_next(cx));
                Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Stream { len: Some(len), .. } => SizeHint::with_exact(*len),
            Self::Stream { len: None, .. } => SizeHint::default(),
        }
    }
}

// Connections

fn tls(options: &HttpClientOptions) -> Result<ClientConfig> {
    // The host's own choice of a provider is not this library's to make or to read.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let unusable = |error: rustls::Error| {
        Error::new(ErrorKind::Misconfigured, "TLS can't be set up for the engine").with_source(error)
    };
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(unusable)?;
    let config = match &options.ca_pem {
        Some(pem) => config.with_root_certificates(roots(pem)?),
        None => config.with_platform_verifier().map_err(unusable)?,
    };
    let Some(pem) = &options.identity_pem else { return Ok(config.with_no_client_auth()) };
    // A source would cite what it can't read.
    let unread =
        || Error::new(ErrorKind::Misconfigured, "the client certificate's secret holds no certificate and key in PEM");
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem.expose()).collect::<Result<_, _>>().map_err(|_| unread())?;
    let key = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| unread())?;
    if certificates.is_empty() {
        return Err(unread());
    }
    config.with_client_auth_cert(certificates, key).map_err(|_| unread())
}

fn roots(pem: &str) -> Result<RootCertStore> {
    let invalid = || Error::new(ErrorKind::InvalidArgument, "ca_pem: holds no certificate in PEM");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| invalid())?).map_err(|_| invalid())?;
    }
    if roots.is_empty() { Err(invalid()) } else { Ok(roots) }
}

/// Opens connections, each within a time.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector<Resolver>>,
    timeout: Duration,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type BoxError = Box<dyn StdError + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, timeout) = (self.https.call(to), self.timeout);
        Box::pin(async move {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the connection was not there in time");
            tokio::time::timeout(timeout, connecting).await.map_err(late)?
        })
    }
}

/// Looks names up as the system does, or leads all of them to one place.
#[derive(Debug, Clone)]
struct Resolver(Option<Arc<(String, u16)>>);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let leads_to = self.0.clone();
        Box::pin(async move {
            let found = match leads_to.as_deref() {
                Some((host, port)) => tokio::net::lookup_host((host.as_str(), *port)).await?.collect(),
                None => tokio::net::lookup_host((name.as_str(), 0)).await?.collect::<Vec<_>>(),
            };
            Ok(found.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::forward::collected;
    use crate::{Body, Delivery, Retry};

    /// Answers each connection with the same bytes, once a head has come, and then closes it.
    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let answer = if answer.is_empty() {
                        let len = head.len();
                        [format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n").as_bytes(), &head].concat()
                    } else {
                        answer.as_bytes().to_vec()
                    };
                    stream.write_all(&answer).await.unwrap();
                });
            }
        });
        address
    }

    fn get(url: impl fmt::Display) -> Request<Payload> {
        Request::get(url.to_string()).body(Payload::Bytes(Bytes::new())).unwrap()
    }

    fn client() -> HttpClient {
        HttpClient::new(&HttpClientOptions::default()).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_sent_with_nothing_but_its_own() {
        let address = answering("").await;
        let answer = client().send(get(format!("http://{address}/a?b"))).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        let sent = collected(answer, 1000).await.unwrap();
        assert_eq!(sent, format!("GET /a?b HTTP/1.1\r\nhost: {address}\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_stream_has_its_length_where_that_is_known() {
        let address = answering("").await;
        for (len, expected) in [(Some(2), "content-length: 2"), (None, "transfer-encoding: chunked")] {
            let mut body = Body::from_stream(futures_util::stream::iter([Ok("a".into()), Ok("b".into())]));
            if let Some(len) = len {
                body = body.with_declared_len(len);
            }
            let request = Request::post(format!("http://{address}")).body(Payload::of(body).0).unwrap();
            let sent = collected(client().send(request).await.unwrap(), 1000).await.unwrap();
            assert!(String::from_utf8_lossy(&sent).contains(expected), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn every_name_leads_where_it_is_said_and_a_port_is_kept() {
        let address = answering("").await;
        let leads_to = Some(("127.0.0.1".to_owned(), 1));
        let options = HttpClientOptions { leads_to, ..HttpClientOptions::default() };
        let client = HttpClient::new(&options).unwrap();
        let answer = client.send(get(format!("http://fn.nowhere.invalid:{}", address.port()))).await.unwrap();
        let sent = collected(answer, 1000).await.unwrap();
        assert!(sent.ends_with(format!("host: fn.nowhere.invalid:{}\r\n\r\n", address.port()).as_bytes()), "{sent:?}");
    }

    #[tokio::test]
    async fn what_gets_no_answer_is_told_apart() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let garbage = answering("SSH-2.0-x\r\n\r\n").await;
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for (url, message, delivery, retry) in [
            (format!("http://{free}"), "the engine can't be connected to", Delivery::NotSent, Retry::Transient),
            (format!("http://{garbage}"), "broke before it had answered", Delivery::Unknown, Retry::Transient),
            ("/relative".to_owned(), "can't be written", Delivery::NotSent, Retry::Never),
            ("ftp://a/b".to_owned(), "can't be written", Delivery::NotSent, Retry::Never),
        ] {
            let error = client().send(get(&url)).await.unwrap_err();
            assert!(error.message().contains(message), "{url}: {error:?}");
            assert_eq!((error.delivery(), error.retry()), (delivery, retry), "{url}");
        }
        // A server of TLS that says nothing.
        let options = HttpClientOptions { connect_timeout: Duration::from_millis(20), ..HttpClientOptions::default() };
        let silent = get(format!("https://{}", silent.local_addr().unwrap()));
        let error = HttpClient::new(&options).unwrap().send(silent).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::NotSent), "{error:?}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_the_functions() {
        let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        let mut answer = client().send(get(format!("http://{address}"))).await.unwrap();
        assert_eq!(answer.declared(), Some(9));
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "half");
        let error = answer.chunk().await.unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::FunctionBroken, "the function's answer broke off"));
    }

    #[tokio::test]
    async fn the_error_of_a_payload_that_breaks_off_is_kept() {
        let address = answering("").await;
        let payload = Body::from_stream(futures_util::stream::iter([
            Ok(Bytes::from_static(b"x")),
            Err(Error::new(ErrorKind::RequestTimeout, "slow")),
        ]));
        let (payload, broke) = Payload::of(payload);
        let request = Request::post(format!("http://{address}")).body(payload).unwrap();
        client().send(request).await.unwrap_err();
        assert_eq!(broke.unwrap().take().unwrap().kind(), ErrorKind::RequestTimeout);
    }

    #[test]
    fn what_is_no_certificate_is_refused_and_not_cited() {
        let with = |ca_pem: Option<&str>, identity: Option<&str>| {
            let mut options = HttpClientOptions::default();
            (options.ca_pem, options.identity_pem) = (ca_pem.map(str::to_owned), identity.map(Secret::new));
            HttpClient::new(&options).unwrap_err()
        };
        for text in ["", "canary", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n"] {
            let error = with(Some(text), None);
            assert_eq!(
                (error.kind(), error.message()),
                (ErrorKind::InvalidArgument, "ca_pem: holds no certificate in PEM")
            );
            let error = with(None, Some(text));
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
