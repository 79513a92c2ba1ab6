//! Requests that are not right: each is refused or cut off, nothing of it reaches a function, and the server goes on.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use function_gateway_rest::RestOptions;
use function_gateway_rest::serve::ServeOptions;
use function_gateway_testkit::{Gate, Handler, Op};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::common::{LONG, Server, Setup, THREADS, executions, header, json_of, until, waiting};

/// Every panic of this process since [`watch_for_panics`]: the file that it came from, and what it said.
fn panics() -> MutexGuard<'static, Vec<(String, String)>> {
    static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes panics from now on: of one in the task of a connection nobody else would know.
fn watch_for_panics() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let file = panic.location().map(|location| location.file().to_owned()).unwrap_or_default();
            panics().push((file, panic.to_string()));
            before(panic);
        }));
    });
}

/// Whether a file is one of these tests: they fail by panics, and some make one on purpose.
fn is_of_tests(file: &str) -> bool {
    // Both names are as the compiler was given them.
    Path::new(file).starts_with(Path::new(file!()).parent().unwrap())
}

/// That no panic came from the server, nor from what it is built of.
fn assert_no_panic() {
    let stray: Vec<_> = panics().iter().filter(|(file, _)| !is_of_tests(file)).cloned().collect();
    assert!(stray.is_empty(), "{stray:?}");
}

/// Little time for the head of a request.
fn quick() -> ServeOptions {
    ServeOptions::default().with_header_timeout(Duration::from_millis(200)).with_runtimes(THREADS.clone())
}

/// A server with the function `echo` that cuts off who is too slow.
pub(crate) async fn server() -> Server {
    server_with(Setup { serve: quick(), ..Setup::default() }).await
}

/// A server with the function `echo`, whose panics are noticed.
pub(crate) async fn server_with(setup: Setup) -> Server {
    watch_for_panics();
    let mut server = Server::with(setup).await;
    // A connection that it kept would be closed just when the next request is sent on it.
    server.client = reqwest::Client::builder().timeout(LONG).pool_max_idle_per_host(0).build().unwrap();
    server.create("echo").await;
    server
}

/// The server still does its work, nothing has panicked, and before the call of this there were `calls` of functions.
pub(crate) async fn goes_on(server: &Server, calls: usize) {
    assert_eq!(server.engine.count(Op::Invoke), calls);
    let answer = server.invoke("echo", "still there").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.text().await.unwrap(), "still there");
    assert_no_panic();
}

/// A good call, which is under way while others are not right.
pub(crate) struct Beside {
    gate: Gate,
    answer: JoinHandle<reqwest::Result<Response>>,
}

impl Beside {
    pub(crate) async fn begin(server: &Server) -> Self {
        let gate = Gate::new();
        server.engine.on_invoke(waiting(&gate));
        let answer = tokio::spawn(server.request(Method::POST, "/v1/functions/echo/invocations").send());
        gate.reached_by(1).await;
        server.engine.on_invoke(Handler::echo());
        Self { gate, answer }
    }

    /// It ends as if nothing had happened, and is recorded.
    pub(crate) async fn ends(self, server: &Server) {
        self.gate.open();
        let answer = self.answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let record = format!("/v1/executions/{}", header(&answer, "x-function-invocation-id"));
        assert_eq!(answer.text().await.unwrap(), "in time");
        assert_eq!(json_of(server.get(&record).send().await.unwrap(), StatusCode::OK).await["state"], "succeeded");
    }
}

#[tokio::test]
async fn a_panic_in_a_task_is_noticed() {
    async fn fails() {
        panic!("on purpose, for the watch");
    }
    watch_for_panics();
    assert!(tokio::spawn(fails()).await.unwrap_err().is_panic());
    let is_noticed = panics().iter().any(|(file, text)| is_of_tests(file) && text.contains("for the watch"));
    assert!(is_noticed);
    for file in ["function-gateway-rest/src/serve.rs", "/registry/src/h2-0.4.20/src/server.rs", ""] {
        assert!(!is_of_tests(file), "{file}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = server().await;
    let beside = Beside::begin(&server).await;
    let key = server.admin.clone();
    let call = |extra: &str, body: &str| {
        let head = format!("POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}");
        format!("{head}\r\n{extra}\r\n\r\n{body}").into_bytes()
    };
    let get = |line: &str| format!("{line}\r\nhost: x\r\n\r\n").into_bytes();
    let encoded = |encoding: &str| call(&format!("transfer-encoding: {encoding}"), "5\r\nhello\r\n0\r\n\r\n");
    // What turns out in its payload to be none: its call was let in.
    let payloads = [
        ("a chunk size that is none", "zz\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("a chunk size with a sign", "-5\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("a chunk size beyond all numbers", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("a chunk that is longer than it says", "2\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("a trailer that is none", "5\r\nhello\r\n0\r\na b\r\n\r\n".to_owned()),
        ("too many trailers", format!("5\r\nhello\r\n0\r\n{}\r\n", "x: 1\r\n".repeat(5_000))),
    ];
    let of_payloads = payloads.each_ref().map(|(what, body)| (*what, 400, call("transfer-encoding: chunked", body)));
    let mut endless = call(&format!("x-own: {}", "x".repeat(64 * 1024)), "");
    endless.truncate(64 * 1024);
    let corpus: Vec<(&str, u16, Vec<u8>)> = vec![
        ("no HTTP at all", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("half a preface of HTTP/2", 400, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()),
        ("a line without a version", 400, b"GET /v1/me\r\n\r\n".to_vec()),
        ("a version that is none", 400, get("GET /v1/me HTTP/9.9")),
        ("a NUL in the path", 400, get("GET /v1/\0me HTTP/1.1")),
        ("a path without a slash", 400, get("GET v1/me HTTP/1.1")),
        ("a space in a header's name", 400, call("x own: 1", "")),
        ("a space before the colon", 400, call("x-own : 1", "")),
        ("no colon", 400, call("x-own", "")),
        ("a bare CR in a header", 400, call("x-own: a\rb", "")),
        ("a NUL in a header", 400, call("x-own: a\0b", "")),
        ("a header on two lines", 400, call("x-own: a\r\n b", "")),
        ("two lengths", 400, call("content-length: 5\r\ncontent-length: 6", "hello!")),
        ("two lengths in one header", 400, call("content-length: 5, 5", "hello")),
        ("a length with a sign", 400, call("content-length: +5", "hello")),
        ("a length that is no number", 400, call("content-length: five", "hello")),
        ("a length beyond all numbers", 400, call("content-length: 99999999999999999999", "hello")),
        ("chunks and something else last", 400, encoded("chunked, identity")),
        ("an encoding that is not known", 400, encoded("xchunked")),
        ("an encoding behind a control", 400, encoded("\x0bchunked")),
        ("no host", 400, b"GET /healthz HTTP/1.1\r\n\r\n".to_vec()),
        ("no host but in its line", 400, b"GET http://x/healthz HTTP/1.1\r\n\r\n".to_vec()),
        ("two hosts", 400, get("GET /healthz HTTP/1.1\r\nhost: y")),
        ("two hosts in HTTP/1.0", 400, get("GET /healthz HTTP/1.0\r\nhost: y")),
        ("two hosts in one header", 400, b"GET /healthz HTTP/1.1\r\nhost: x, y\r\n\r\n".to_vec()),
        ("a host that is none", 400, b"GET /healthz HTTP/1.1\r\nhost: a/b@c\r\n\r\n".to_vec()),
        ("a head without an end", 431, endless),
        ("too many headers", 431, call("x-own: 1\r\n".repeat(5_000).trim_end(), "")),
        ("a path longer than a head may be", 431, get(&format!("GET /{} HTTP/1.1", "x".repeat(100_000)))),
    ];
    for (what, status, request) in corpus.into_iter().chain(of_payloads) {
        let answer = server.raw(&request).await;
        let version = if what.ends_with("HTTP/1.0") { "1.0" } else { "1.1" };
        assert!(answer.starts_with(&format!("HTTP/{version} {status} ")), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{what}: {answer}");
    }
    // A host may be none where nothing needs it.
    let answer = server.raw(b"GET /healthz HTTP/1.1\r\nhost:\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    goes_on(&server, 1).await;
    beside.ends(&server).await;
    until("what was let in is recorded", async || executions(&server, "failed").await.len() == payloads.len()).await;
}

#[tokio::test]
async fn a_head_may_be_as_large_as_is_said_and_no_larger() {
    let server = server().await;
    let larger = server_with(Setup { serve: quick().with_max_header_bytes(128 * 1024), ..Setup::default() }).await;
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{more}connection: close\r\n\r\n");
    let of_headers = |count: usize| get("/healthz", &"x: 1\r\n".repeat(count - 2));
    let of_path = |length: usize| get(&format!("/{}", "x".repeat(length - 1)), "");
    let rest = get("/healthz", "x: \r\n").len();
    let of_bytes = |size: usize| get("/healthz", &format!("x: {}\r\n", "x".repeat(size - rest)));
    for (server, request, status) in [
        (&server, of_bytes(65_536), 200),
        (&server, of_bytes(65_537), 431),
        (&server, of_headers(100), 200),
        (&server, of_headers(101), 431),
        // No URL is longer, however large a head may be.
        (&larger, of_path(65_534), 404),
        (&larger, of_path(65_535), 414),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{} bytes: {answer}", request.len());
    }
    goes_on(&server, 0).await;
    goes_on(&larger, 0).await;
}

/// Where two readers of a connection could take different parts of it for a request's body, no second request must be hidden in
/// the first (RFC 9112, section 6.1 and 7.1.1). The connections are kept, so that one that was hidden would be carried out.
#[tokio::test]
async fn no_request_is_smuggled_in_another() {
    let server = server().await;
    let key = server.admin.clone();
    let hidden = format!("DELETE /v1/functions/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    let chunks = format!("0\r\n\r\n{hidden}");
    let in_chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    let length = format!("content-length: {}\r\n", chunks.len());
    let chunked = "transfer-encoding: chunked\r\n";
    let keep = "connection: keep-alive\r\n";
    let corpus = [
        ("a length, then chunks", "1.1", 200, format!("{length}{chunked}"), chunks.clone()),
        ("chunks, then a length", "1.1", 200, format!("{chunked}{length}"), chunks.clone()),
        ("chunks that end late", "1.1", 200, format!("content-length: 5\r\n{chunked}"), in_chunk.clone()),
        ("chunks in HTTP/1.0", "1.0", 400, format!("{keep}{chunked}"), chunks.clone()),
        ("chunks and a length in HTTP/1.0", "1.0", 400, format!("{keep}{length}{chunked}"), chunks.clone()),
        ("chunks twice", "1.1", 400, format!("{chunked}transfer-encoding: identity\r\n"), chunks),
        ("a line break in an extension", "1.1", 400, chunked.to_owned(), format!("5;a=\n{in_chunk}")),
        (
            "an extension that looks like chunks",
            "1.1",
            200,
            chunked.to_owned(),
            format!("{:x};a=\"0;b\"\r\n{hidden}\r\n0;c\r\n\r\n", hidden.len()),
        ),
    ];
    let whole = corpus.iter().filter(|(_, _, status, ..)| *status == 200).count();
    for (what, version, status, framing, body) in corpus {
        let head =
            format!("POST /v1/functions/echo/invocations HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
        let answer = server.raw(format!("{head}{framing}\r\n{body}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
        // A function that echoes may well be sent the text of a request, which has its version at the end of its line.
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
        assert_eq!(server.get("/v1/functions/echo").send().await.unwrap().status(), StatusCode::OK, "{what}");
    }
    // The same connection does carry two requests that are right.
    let call = format!(
        "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         transfer-encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n{hidden}"
    );
    let answer = server.raw(call.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    assert_eq!(server.get("/v1/functions/echo").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(server.engine.count(Op::Invoke), whole + 1);
    assert_no_panic();
}

#[tokio::test]
async fn text_that_is_no_text_is_refused_in_words() {
    let server = server().await;
    for (path, status) in [
        ("/v1/functions/%ff", 400),
        ("/v1/functions/%00", 400),
        ("/v1/functions/\u{e9}", 400),
        ("/v1/functions/%2e%2e/me", 404),
        ("/v1/executions/%F0%9F%98%80", 400),
        ("/v1/executions?label=%ff", 400),
        ("/v1/functions?prefix=%ff", 400),
    ] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            server.admin
        );
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{path}: {answer}");
    }
    let header = b"GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n";
    assert!(server.raw(header).await.starts_with("HTTP/1.1 401"));
    goes_on(&server, 0).await;
}

/// What is answered to a client that goes on sending a piece now and then, until the server closes the connection.
async fn drip(server: &Server, start: &str, piece: &str) -> String {
    let mut stream = server.connect().await;
    stream.write_all(start.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        while writer.write_all(piece.as_bytes()).await.is_ok() {
            // sleep: between two pieces of a client that is slow. Without, it would run into the bounds of sizes.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = tokio::time::timeout(LONG, reader.read_to_end(&mut answer)) => { let _ = read.unwrap(); }
        () = drip => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_client_that_sends_its_head_too_slowly_is_cut_off() {
    let server = server().await;
    // A byte now and then does not help.
    for start in ["GET /v1/me HTTP/1.1\r\nhost: x\r\nx: ", "GET /", "POST /v1/functions HTTP/1.1\r\n"] {
        assert_eq!(drip(&server, start, "x").await, "", "{start}");
    }
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn a_payload_that_drips_in_is_given_up_when_the_time_of_its_call_is_over() {
    let server = server().await;
    server.create_with("slow", json!({"timeouts": {"total_ms": 100}})).await;
    for route in ["invocations", "http/", "submit", "validate"] {
        for (framing, piece) in [("content-length: 1000000", "x"), ("transfer-encoding: chunked", "1\r\nx\r\n")] {
            let start = format!(
                "POST /v1/functions/slow/{route} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{framing}\r\n\r\n",
                server.admin
            );
            let answer = drip(&server, &start, piece).await;
            let is_late = answer.starts_with("HTTP/1.1 504 ") && answer.contains("\"timeout\":\"total\"");
            assert!(is_late, "{route}, {framing}: {answer}");
        }
    }
    // The others are no executions yet.
    until("the calls are recorded", async || executions(&server, "timed_out").await.len() == 4).await;
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn what_comes_without_a_length_is_bounded_too() {
    let options = RestOptions::default().with_max_document_bytes(200);
    let server = server_with(Setup { api: Box::new(|api| api.options(options)), ..Setup::default() }).await;
    server.create_with("small", json!({"limits": {"max_request_bytes": 100}})).await;
    for (path, limit, fits) in [
        // Spaces are no document.
        ("/v1/functions", 200, 400),
        ("/v1/functions/small/invocations", 100, 200),
    ] {
        // What is too much is so before its end has come.
        for (size, end, status) in [(limit, "0\r\n\r\n", fits), (limit + 1, "", 413)] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
                 connection: close\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{}\r\n{end}",
                server.admin,
                " ".repeat(size)
            );
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{size} to {path}: {answer}");
            let names_limit = answer.contains(&format!("\"limit_bytes\":\"{limit}\""));
            assert_eq!(names_limit, status == 413, "{size} to {path}: {answer}");
        }
    }
    goes_on(&server, 1).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let server = server().await;
    // `PRI` could still become the preface of HTTP/2, and `P` a `POST` too.
    for start in ["", "P", "PRI * HTTP/2.0\r\n"] {
        assert_eq!(server.raw(start.as_bytes()).await, "", "{start:?}");
    }
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn a_connection_of_http_2_without_a_request_is_closed() {
    let server = server().await;
    let mut stream = server.connect().await;
    // The preface and empty settings, and nothing more.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        match tokio::time::timeout(LONG, stream.read(&mut piece)).await.unwrap() {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&piece[..read]),
        }
        // A ping is answered as a client would: its frame again, with the flag that says so.
        let ping = answer.windows(9).position(|head| head[..5] == [0, 0, 8, 6, 0]);
        if let Some(at) = ping.filter(|at| answer.len() >= at + 17) {
            let mut frame: Vec<u8> = answer.drain(..at + 17).skip(at).collect();
            frame[4] = 1;
            let _ = stream.write_all(&frame).await;
        }
    }
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn a_client_that_goes_in_mid_request_leaves_nothing() {
    let server = server().await;
    let call = "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\n";
    let create = "POST /v1/functions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\n";
    for (start, expected) in [
        (format!("{call}content-length: 100\r\n\r\nhalf"), "HTTP/1.1 499 "),
        (format!("{call}transfer-encoding: chunked\r\n\r\n5\r\nhel"), "HTTP/1.1 499 "),
        (format!("{create}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"), "HTTP/1.1 499 "),
        (call.to_owned(), ""),
        ("GET /v1/functions HTTP/1.1\r\nho".to_owned(), ""),
    ] {
        let mut stream = server.connect().await;
        stream.write_all(start.replace("KEY", &server.admin).as_bytes()).await.unwrap();
        // Half closed: nothing more comes, and an answer could still be read.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(expected) && answer.is_empty() == expected.is_empty(), "{start}: {answer}");
    }
    until("the calls are recorded", async || executions(&server, "cancelled").await.len() == 2).await;
    goes_on(&server, 0).await;
}
