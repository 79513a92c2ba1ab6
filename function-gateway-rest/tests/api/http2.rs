//! Connections of HTTP/2: many requests on each, of which every one has its own end.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use function_gateway_rest::RestOptions;
use function_gateway_rest::serve::ServeOptions;
use function_gateway_testkit::{Gate, Handler, Op};
use futures_util::future::join_all;
use futures_util::stream::{iter, pending};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, StatusCode};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::common::{LONG, Server, Setup, executions, until, waiting};

/// One connection.
struct Connection {
    sender: http2::SendRequest<Body>,
    /// Takes requests until the server takes no more.
    taking: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    /// The server's settings are known to the client.
    async fn to(server: &Server) -> Self {
        let stream = TokioIo::new(server.connect().await);
        let (sender, taking) = http2::Builder::new(TokioExecutor::new()).handshake::<_, Body>(stream).await.unwrap();
        let connection = Self { sender, taking: tokio::spawn(taking) };
        // They come before the first answer.
        connection.goes_on(server).await;
        connection
    }

    /// The request is on its way once this returns, whether or not the answer is waited for.
    fn send(&self, request: Request<Body>) -> impl Future<Output = hyper::Result<http::Response<Body>>> + use<> {
        let answer = self.sender.clone().send_request(request);
        async move { Ok(answer.await?.map(Body::new)) }
    }

    /// The same connection still carries requests.
    async fn goes_on(&self, server: &Server) {
        let answer = self.send(request(server, Method::GET, "/v1/me", Body::empty())).await.unwrap();
        assert_eq!((answer.version(), answer.status()), (http::Version::HTTP_2, StatusCode::OK));
        assert!(!self.taking.is_finished());
    }
}

fn request(server: &Server, method: Method, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(server.url(path));
    let request = request.header("authorization", format!("Bearer {}", server.admin));
    request.header("content-type", "application/json").body(body).unwrap()
}

/// A call of the function `fn`.
fn call(server: &Server, body: impl Into<Body>) -> Request<Body> {
    request(server, Method::POST, "/v1/functions/fn/invocations", body.into())
}

/// A server with the function `fn`.
async fn server(setup: Setup) -> Server {
    let server = Server::with(setup).await;
    server.create_with("fn", json!({"streaming": true})).await;
    server
}

async fn text(answer: http::Response<Body>) -> String {
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An upload that begins, and then stands still.
fn standing(start: &'static str) -> Body {
    Body::from_stream(iter([Ok::<_, std::io::Error>(Bytes::from(start))]).chain(pending()))
}

/// One call was cancelled, and is recorded so.
async fn one_was_cancelled(server: &Server) -> Value {
    until("it is recorded", async || !executions(server, "cancelled").await.is_empty()).await;
    let mut cancelled = executions(server, "cancelled").await;
    assert_eq!((cancelled.len(), server.engine.dropped()), (1, 1), "{cancelled:?}");
    cancelled.remove(0)
}

#[tokio::test]
async fn a_stream_that_is_reset_in_the_answer_is_cancelled_and_another_goes_on() {
    let server = server(Setup::default()).await;
    let connection = Connection::to(&server).await;
    let begin = async |gate: &Gate| {
        server.engine.on_invoke(Handler::stream(["one", "two"], gate));
        gate.release(1);
        let answer = connection.send(call(&server, "")).await.unwrap();
        let id = answer.headers()["x-function-invocation-id"].to_str().unwrap().to_owned();
        let mut chunks = answer.into_body().into_data_stream();
        assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
        (chunks, id)
    };
    let gate = Gate::new();
    let (given_up, id) = begin(&Gate::new()).await;
    let (other, _) = begin(&gate).await;
    drop(given_up);
    until("the function is cancelled", async || server.engine.in_flight() == 1).await;
    let record = one_was_cancelled(&server).await;
    assert_eq!((&record["id"], &record["failure"]["class"]), (&json!(id), &json!("cancelled")));
    gate.open();
    let rest: Vec<_> = other.map(|chunk| chunk.unwrap()).collect().await;
    assert_eq!(rest.concat(), b"two");
    connection.goes_on(&server).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_before_the_answer_is_cancelled_and_another_goes_on() {
    // With the second, the payload is still on its way.
    for payload in [|| Body::from("whole"), || standing("half")] {
        let server = server(Setup::default()).await;
        let gate = Gate::new();
        server.engine.on_invoke(waiting(&gate));
        let connection = Connection::to(&server).await;
        let given_up = tokio::spawn(connection.send(call(&server, payload())));
        let other = tokio::spawn(connection.send(call(&server, "")));
        gate.reached_by(2).await;
        given_up.abort();
        until("the function is cancelled", async || server.engine.in_flight() == 1).await;
        one_was_cancelled(&server).await;
        gate.open();
        assert_eq!(text(other.await.unwrap().unwrap()).await, "in time");
        connection.goes_on(&server).await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_stream_that_is_reset() {
    let server = server(Setup::default()).await;
    let connection = Connection::to(&server).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::break_off(["one", "two"], &gate));
    gate.release(1);
    let answer = connection.send(call(&server, "")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut chunks = answer.into_body().into_data_stream();
    assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
    gate.open();
    // What was sent just before may be lost.
    let rest: Result<Vec<_>, _> = chunks.try_collect().await;
    assert!(rest.is_err(), "it looked whole: {rest:?}");
    connection.goes_on(&server).await;
}

#[tokio::test]
async fn more_streams_than_there_may_be_wait_for_their_turn() {
    let serve = ServeOptions::default().with_max_streams(2);
    let server = server(Setup { serve, ..Setup::default() }).await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let connection = Connection::to(&server).await;
    let calls = join_all((0..7).map(|_| connection.send(call(&server, ""))));
    // All are made before the first is let go.
    let (answers, ()) = tokio::join!(calls, async {
        gate.reached_by(2).await;
        gate.open();
    });
    for answer in answers {
        assert_eq!(text(answer.unwrap()).await, "in time");
    }
    assert_eq!((server.engine.count(Op::Invoke), server.engine.peak_in_flight()), (7, 2));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let serve = ServeOptions::default().with_max_header_bytes(8 * 1024);
    let server = server(Setup { serve, ..Setup::default() }).await;
    let connection = Connection::to(&server).await;
    let with = |value: usize, headers: usize| {
        let mut request = call(&server, "");
        for _ in 0..headers {
            request.headers_mut().append("x-own", "x".repeat(value).parse().unwrap());
        }
        request
    };
    assert_eq!(connection.send(with(7 * 1024, 1)).await.unwrap().status(), StatusCode::OK);
    for (value, headers) in [(9 * 1024, 1), (20 * 1024, 1), (1, 500)] {
        let refused = connection.send(with(value, headers)).await.unwrap();
        assert_eq!(refused.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{headers} of {value}");
        connection.goes_on(&server).await;
    }
    // This is no mistake any more: it may cost the connection.
    let answer = connection.send(with(200 * 1024, 1)).await;
    assert!(answer.is_err(), "{answer:?}");
    Connection::to(&server).await;
    assert_eq!(server.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn what_is_under_way_ends_before_its_connection_and_the_server_do() {
    // What the server waits for is the connection's end.
    let serve = ServeOptions::default().with_grace(10 * LONG);
    let server = server(Setup { serve, ..Setup::default() }).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::stream(["one", "two"], &gate));
    let connection = Connection::to(&server).await;
    gate.release(1);
    let begun = connection.send(call(&server, "")).await.unwrap();
    let slow = tokio::spawn(connection.send(call(&server, "")));
    gate.reached_by(2).await;
    server.stop();
    // The client is told (GOAWAY, without an error) while its requests are under way, and then sends no further ones.
    until("it is told", async || {
        connection.send(request(&server, Method::GET, "/healthz", Body::empty())).await.is_err()
    })
    .await;
    connection.taking.await.unwrap().unwrap();
    assert_eq!(server.engine.in_flight(), 2);
    gate.open();
    assert_eq!(text(begun).await, "onetwo");
    assert_eq!(text(slow.await.unwrap().unwrap()).await, "onetwo");
    server.stopped().await;
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let options = RestOptions::default().with_upload_idle_timeout(Duration::from_millis(50));
    let server = server(Setup { api: Box::new(|api| api.options(options)), ..Setup::default() }).await;
    server.create("whole").await;
    let connection = Connection::to(&server).await;
    for path in ["/v1/functions", "/v1/functions/whole/invocations"] {
        let answer = connection.send(request(&server, Method::POST, path, standing("{"))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT, "{path}");
        assert!(text(answer).await.contains("request_timeout"), "{path}");
        connection.goes_on(&server).await;
    }
    // This answer has begun by then: the echo of what came.
    let answer = connection.send(call(&server, standing("{"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(axum::body::to_bytes(answer.into_body(), usize::MAX).await.is_err());
    until("the function has ended", async || server.engine.in_flight() == 0).await;
    connection.goes_on(&server).await;
}
