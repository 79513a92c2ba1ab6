//! Requests to a worker that speaks HTTP/1.1, or HTTP/2 without TLS.

use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::forward::{sent_stream, wire_headers};
use function_gateway_core::{Body, ByteStream, CallContext, DriverRequest, Error, ErrorKind, Result, for_one_hop};
use http::header;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{self, Handle};
use tokio::time::Instant;
use tokio_util::context::TokioContext;

/// How long a connection is kept without a request. Shorter than servers wait before they close one (5 s is usual), so that
/// a request does not meet a connection that is just being closed, and short enough not to hold up a server that attends
/// to one connection at a time.
const KEEP: Duration = Duration::from_secs(1);

/// Whom a request is for, where no name of the network is known.
const HOST: HeaderValue = HeaderValue::from_static("localhost");

/// Where a worker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// On a port of the loopback interface.
    Port(u16),
    /// On a Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// The connections to one worker.
#[derive(Debug)]
pub(crate) struct Client {
    address: Address,
    version: Version,
    runtime: Handle,
    /// How many calls it takes at a time, and so at most connections: it may attend to no more.
    each: usize,
    /// Each connection for one request at a time has a clone.
    open: Arc<()>,
    idle: Mutex<Idle>,
    /// The one connection, where it takes many requests at a time.
    shared: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
}

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<(Instant, Connection)>,
    /// Whether somebody looks after those that are kept for too long.
    attended: bool,
}

/// A connection for one request at a time.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<RequestBody>,
    /// Where it is driven. A call on another runtime would wait for threads of both.
    runtime: runtime::Id,
    _open: Arc<()>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not sent, and can be sent again.
    NotSent(Box<Request<RequestBody>>, io::Error),
    /// The connection broke off after it was sent, at least in part.
    Broken(hyper::Error),
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    body: Incoming,
    /// What the connection is kept by once the body has ended.
    connection: Option<Connection>,
    client: Arc<Client>,
}

impl Client {
    pub(crate) fn new(address: Address, version: Version, runtime: Handle, each: usize) -> Self {
        let (open, idle, shared) = (Arc::default(), Mutex::default(), tokio::sync::Mutex::default());
        Self { address, version, runtime, each, open, idle, shared }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and waits for the head of its answer. A connection that was kept and turns out to be closed before
    /// anything was sent is replaced.
    pub(crate) async fn send(self: &Arc<Self>, mut request: Box<Request<RequestBody>>) -> Result<Answer, Failure> {
        if self.version == Version::HTTP_2 {
            return Box::pin(self.send_shared(request)).await;
        }
        loop {
            let (mut connection, kept) = match self.kept() {
                Some(connection) => (connection, true),
                // Boxed, since it is seldom, and all wait with room for it.
                None => match Box::pin(self.connect()).await {
                    Ok(connection) => (connection, false),
                    Err(error) => return Err(Failure::NotSent(request, error)),
                },
            };
            if connection.sender.ready().await.is_err() && kept {
                continue;
            }
            match connection.sender.try_send_request(*request).await {
                Ok(response) => return Ok(self.answer(response, Some(connection))),
                Err(mut failed) => match (failed.take_message(), kept) {
                    (Some(unsent), true) => request = Box::new(unsent),
                    (Some(unsent), false) => {
                        return Err(Failure::NotSent(Box::new(unsent), io::Error::other(failed.into_error())));
                    }
                    (None, _) => return Err(Failure::Broken(failed.into_error())),
                },
            }
        }
    }

    async fn send_shared(self: &Arc<Self>, mut request: Box<Request<RequestBody>>) -> Result<Answer, Failure> {
        loop {
            let (mut sender, kept) = {
                let mut shared = self.shared.lock().await;
                match shared.as_ref().filter(|sender| !sender.is_closed()) {
                    Some(sender) => (sender.clone(), true),
                    // Whoever asks first: it serves the others as well, and outlives that one's runtime.
                    None => match TokioContext::new(self.connect_shared(), self.runtime.clone()).await {
                        Ok(sender) => (shared.insert(sender).clone(), false),
                        Err(error) => return Err(Failure::NotSent(request, error)),
                    },
                }
            };
            match sender.try_send_request(*request).await {
                Ok(response) => return Ok(self.answer(response, None)),
                Err(mut failed) => match (failed.take_message(), kept) {
                    (Some(unsent), true) => request = Box::new(unsent),
                    (Some(unsent), false) => {
                        return Err(Failure::NotSent(Box::new(unsent), io::Error::other(failed.into_error())));
                    }
                    (None, _) => return Err(Failure::Broken(failed.into_error())),
                },
            }
        }
    }

    fn answer(self: &Arc<Self>, response: Response<Incoming>, connection: Option<Connection>) -> Answer {
        let (mut head, body) = response.into_parts();
        for_one_hop(&mut head.headers);
        Answer { head, body, connection, client: Arc::clone(self) }
    }

    /// Asks a path, and gives the status.
    pub(crate) async fn probe(self: &Arc<Self>, path: &str) -> io::Result<StatusCode> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let empty = RequestBody::from(Body::empty());
        let request = build(self.version, Method::GET, path, query, HeaderMap::new(), empty);
        let request = request.map_err(io::Error::other)?;
        match self.send(Box::new(request)).await {
            Ok(answer) => Ok(answer.head.status),
            Err(Failure::NotSent(_, error)) => Err(error),
            Err(Failure::Broken(error)) => Err(io::Error::other(error)),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Opens a connection and closes it again; says which process listens, where the system tells.
    pub(crate) async fn knock(&self) -> io::Result<Option<i32>> {
        match &self.address {
            Address::Port(port) => tcp(*port).await.map(|_| None),
            Address::Socket(path) => Ok(UnixStream::connect(path).await?.peer_cred()?.pid()),
        }
    }

    /// The runtime of the caller.
    fn here(&self) -> Handle {
        Handle::try_current().unwrap_or_else(|_| self.runtime.clone())
    }

    /// The connection that was used last, if it is fresh enough: of this runtime, or of any where the worker takes no further one.
    fn kept(&self) -> Option<Connection> {
        let here = self.here().id();
        let mut idle = self.idle();
        loop {
            let last = idle.connections.iter().rposition(|(_, kept)| kept.runtime == here);
            let last = last.or_else(|| match Arc::strong_count(&self.open) > self.each {
                true => idle.connections.len().checked_sub(1),
                false => None,
            })?;
            let (since, connection) = idle.connections.remove(last);
            if since.elapsed() < KEEP && !connection.sender.is_closed() {
                return Some(connection);
            }
        }
    }

    fn keep(self: &Arc<Self>, connection: Connection) {
        let mut idle = self.idle();
        idle.connections.push((Instant::now(), connection));
        if !mem::replace(&mut idle.attended, true) {
            let client = Arc::downgrade(self);
            self.runtime.spawn(async move {
                loop {
                    tokio::time::sleep(KEEP).await;
                    let Some(client) = client.upgrade() else { return };
                    let mut idle = client.idle();
                    idle.connections.retain(|(since, _)| since.elapsed() < KEEP);
                    if idle.connections.is_empty() {
                        idle.attended = false;
                        return;
                    }
                }
            });
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        match &self.address {
            Address::Port(port) => self.handshake(tcp(*port).await?).await,
            Address::Socket(path) => self.handshake(UnixStream::connect(path).await?).await,
        }
    }

    async fn handshake(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Connection> {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        let here = self.here();
        // What goes wrong with a connection is told to its requests.
        here.spawn(async move { drop(connection.await) });
        Ok(Connection { sender, runtime: here.id(), _open: Arc::clone(&self.open) })
    }

    async fn connect_shared(&self) -> io::Result<http2::SendRequest<RequestBody>> {
        match &self.address {
            Address::Port(port) => self.handshake_shared(tcp(*port).await?).await,
            Address::Socket(path) => self.handshake_shared(UnixStream::connect(path).await?).await,
        }
    }

    async fn handshake_shared(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> io::Result<http2::SendRequest<RequestBody>> {
        let builder = http2::Builder::new(On(self.runtime.clone()));
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        self.runtime.spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// A call as a request to a worker.
pub(crate) fn request(version: Version, cx: &CallContext, call: DriverRequest) -> Result<Request<RequestBody>> {
    let DriverRequest { method, path, query, headers, body, .. } = call;
    build(version, method, &path, query.as_deref(), wire_headers(cx, headers), RequestBody::from(body))
}

fn build(
    version: Version,
    method: Method,
    path: &str,
    query: Option<&str>,
    mut headers: HeaderMap,
    body: RequestBody,
) -> Result<Request<RequestBody>> {
    let uri = uri(version, path, query).map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, "path and query can't be written in a request to the function")
            .with_source(error)
    })?;
    if version != Version::HTTP_2 {
        headers.insert(header::HOST, HOST);
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn uri(version: Version, path: &str, query: Option<&str>) -> Result<Uri, http::Error> {
    let path = if path.is_empty() { "/" } else { path };
    let target: http::uri::PathAndQuery = match query {
        Some(query) => format!("{path}?{query}").parse()?,
        None => path.parse()?,
    };
    if version != Version::HTTP_2 {
        return Ok(Uri::from(target));
    }
    Uri::builder().scheme("http").authority(HOST.as_bytes()).path_and_query(target).build()
}

/// Servers that listen on `localhost` may do so on either of its addresses.
async fn tcp(port: u16) -> io::Result<TcpStream> {
    let stream = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            let six = TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await;
            six.map_err(|_| refused)?
        }
        connected => connected?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Debug, Clone)]
struct On(Handle);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for On {
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

impl Answer {
    /// The next part of the body; `None` at its end, where the connection becomes free for another request.
    ///
    /// Cancel-safe.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        // Where the length is told, the end is known with the last part: to wait for it would take one more turn of the connection.
        while !self.body.is_end_stream()
            && let Some(frame) = self.body.frame().await.transpose()?
        {
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        if let Some(connection) = self.connection.take()
            && !connection.sender.is_closed()
        {
            self.client.keep(connection);
        }
        Ok(None)
    }
}

/// The payload of a request.
pub(crate) enum RequestBody {
    Bytes(Bytes),
    Stream { stream: ByteStream, len: Option<u64>, broke: Arc<Mutex<Option<Error>>> },
}

impl RequestBody {
    /// Where the payload's own error is found, should it break off.
    pub(crate) fn failure(&self) -> Option<Arc<Mutex<Option<Error>>>> {
        match self {
            Self::Bytes(_) => None,
            Self::Stream { broke, .. } => Some(Arc::clone(broke)),
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "RequestBody({} bytes)", bytes.len()),
            Self::Stream { .. } => f.write_str("RequestBody(stream)"),
        }
    }
}

impl From<Body> for RequestBody {
    fn from(body: Body) -> Self {
        match body.as_bytes() {
            Some(bytes) => Self::Bytes(bytes.clone()),
            None => {
                let (stream, len) = sent_stream(body);
                Self::Stream { len, stream, broke: Arc::default() }
            }
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(mem::take(bytes))))),
            Self::Stream { stream, broke, .. } => {
                let chunk = ready!(stream.as_mut().poll_next(cx));
                if let Some(Err(error)) = &chunk {
                    *broke.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                }
                Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { len: Some(len), .. } => SizeHint::with_exact(*len),
            Self::Stream { len: None, .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn path_and_query_pass_as_they_came() {
        for (path, query, expected) in [
            ("", None, "/"),
            ("", Some("a=%20&b"), "/?a=%20&b"),
            ("/a%2Fb/../c", None, "/a%2Fb/../c"),
            ("/x", Some(""), "/x?"),
        ] {
            assert_eq!(uri(Version::HTTP_11, path, query).unwrap().to_string(), expected);
        }
        assert_eq!(uri(Version::HTTP_2, "/a", Some("b")).unwrap().to_string(), "http://localhost/a?b");
        assert!(uri(Version::HTTP_11, "/a b", None).is_err());
    }

    /// Answers requests with the number of their connection.
    async fn counting() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for number in 1.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while let Ok(byte) = stream.read_u8().await {
                        head.push(byte);
                        if head.ends_with(b"\r\n\r\n") {
                            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        port
    }

    async fn connection_of_a_request(client: &Arc<Client>) -> Bytes {
        let request = build(Version::HTTP_11, Method::GET, "/", None, HeaderMap::new(), Body::empty().into()).unwrap();
        let mut answer = client.send(Box::new(request)).await.unwrap();
        let number = answer.chunk().await.unwrap().unwrap();
        assert_eq!(answer.chunk().await.unwrap(), None);
        number
    }

    /// The connections of a request on this runtime, of two on another, and of one on this again, where a worker takes so many calls.
    async fn connections_of(each: usize) -> ([Bytes; 2], [Bytes; 2]) {
        let port = Address::Port(counting().await);
        let client = Arc::new(Client::new(port, Version::HTTP_11, Handle::current(), each));
        let elsewhere = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = connection_of_a_request(&client).await;
        let there = Arc::clone(&client);
        let theirs = tokio::task::spawn_blocking(move || {
            let requests = async { [connection_of_a_request(&there).await, connection_of_a_request(&there).await] };
            let theirs = elsewhere.block_on(requests);
            elsewhere.shutdown_background();
            theirs
        });
        let theirs = theirs.await.unwrap();
        ([first, connection_of_a_request(&client).await], theirs)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_is_kept_for_the_runtime_that_it_is_driven_on() {
        let (ours, theirs) = connections_of(2).await;
        assert!(!ours.iter().any(|number| theirs.contains(number)), "{ours:?} {theirs:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_worker_of_one_call_at_a_time_has_one_connection() {
        // That of another runtime is used; a second one might wait for as long as the first is kept.
        let one = [Bytes::from_static(b"1"), Bytes::from_static(b"1")];
        for _ in 0..10 {
            // A machine may pause for longer than a connection is kept, but not each time.
            if connections_of(1).await == (one.clone(), one.clone()) {
                return;
            }
        }
        panic!("there is a connection for each runtime");
    }
}
