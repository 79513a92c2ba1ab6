//! Requests that are not right: each is refused or cut off, nothing of it reaches a function, and the server goes on.

use std::time::Duration;

use function_gateway_rest::serve::ServeOptions;
use function_gateway_testkit::Op;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{LONG, Server, Setup, THREADS};

async fn server() -> Server {
    let serve = ServeOptions::default().with_header_timeout(Duration::from_millis(200)).with_runtimes(THREADS.clone());
    let mut server = Server::with(Setup { serve, ..Setup::default() }).await;
    // A connection that it kept would be closed just when the next request is sent on it.
    server.client = reqwest::Client::builder().timeout(LONG).pool_max_idle_per_host(0).build().unwrap();
    server.create("echo").await;
    server
}

/// The server still does its work, and no call has reached a function but the one that this makes.
async fn goes_on(server: &Server, calls: usize) {
    assert_eq!(server.engine.count(Op::Invoke), calls);
    let answer = server.invoke("echo", "still there").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.text().await.unwrap(), "still there");
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = server().await;
    let key = server.admin.clone();
    let call = |extra: &str, body: &str| {
        format!(
            "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{extra}\r\n\r\n{body}"
        )
        .into_bytes()
    };
    let corpus: Vec<(&str, Vec<u8>)> = vec![
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a line without a version", b"GET /v1/me\r\n\r\n".to_vec()),
        ("a version that is none", b"GET /v1/me HTTP/9.9\r\n\r\n".to_vec()),
        ("a NUL in the path", b"GET /v1/\0me HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a space in a header's name", b"GET /v1/me HTTP/1.1\r\nho st: x\r\n\r\n".to_vec()),
        ("a space before the colon", call("x-own : 1", "")),
        ("a bare CR in a header", call("x-own: a\rb", "")),
        ("two lengths", call("content-length: 5\r\ncontent-length: 6", "hello!")),
        ("a length with a sign", call("content-length: +5", "hello")),
        ("a length that is no number", call("content-length: five", "hello")),
        ("a length beyond all numbers", call("content-length: 99999999999999999999", "hello")),
        ("chunks and something else last", call("transfer-encoding: chunked, identity", "5\r\nhello\r\n0\r\n\r\n")),
        ("an encoding that is not known", call("transfer-encoding: xchunked", "5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk size that is none", call("transfer-encoding: chunked", "zz\r\nhello\r\n0\r\n\r\n")),
        (
            "a chunk size beyond all numbers",
            call("transfer-encoding: chunked", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ),
        ("a chunk that is longer than it says", call("transfer-encoding: chunked", "2\r\nhello\r\n0\r\n\r\n")),
        ("a head that is too large", call(&format!("x-own: {}", "x".repeat(100_000)), "")),
        ("too many headers", call("x-own: 1\r\n".repeat(5_000).trim_end(), "")),
        ("a path that is too long", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000)).into_bytes()),
        (
            "HTTP/2 without its settings",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec(),
        ),
    ];
    for (what, request) in corpus {
        let answer = server.raw(&request).await;
        let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || !answer.starts_with("HTTP/1.1");
        assert!(is_refused, "{what}: {answer}");
        assert!(!answer.contains("HTTP/1.1 200"), "{what}: {answer}");
    }
    goes_on(&server, 0).await;
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
    let corpus = [
        ("a length, then chunks", "1.1", format!("{length}transfer-encoding: chunked\r\n"), chunks.clone()),
        ("chunks, then a length", "1.1", format!("transfer-encoding: chunked\r\n{length}"), chunks.clone()),
        (
            "chunks that end late",
            "1.1",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n".to_owned(),
            in_chunk.clone(),
        ),
        (
            "chunks in HTTP/1.0",
            "1.0",
            "connection: keep-alive\r\ntransfer-encoding: chunked\r\n".to_owned(),
            chunks.clone(),
        ),
        (
            "chunks and a length in HTTP/1.0",
            "1.0",
            format!("connection: keep-alive\r\n{length}transfer-encoding: chunked\r\n"),
            chunks.clone(),
        ),
        ("chunks twice", "1.1", "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(), chunks),
        (
            "a line break in an extension",
            "1.1",
            "transfer-encoding: chunked\r\n".to_owned(),
            format!("5;a=\n{in_chunk}"),
        ),
        (
            "an extension that looks like chunks",
            "1.1",
            "transfer-encoding: chunked\r\n".to_owned(),
            format!("{:x};a=\"0;b\"\r\n{hidden}\r\n0;c\r\n\r\n", hidden.len()),
        ),
    ];
    for (what, version, framing, body) in corpus {
        let head =
            format!("POST /v1/functions/echo/invocations HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
        let answer = server.raw(format!("{head}{framing}\r\n{body}").as_bytes()).await;
        // A function that echoes may well be sent the text of a request, which has its version at the end of its line.
        let answers = answer.matches("HTTP/1.1 ").count() + answer.matches("HTTP/1.0 ").count();
        assert!(answers <= 1, "{what}: {answer}");
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
}

#[tokio::test]
async fn text_that_is_no_text_is_refused_in_words() {
    let server = server().await;
    for path in ["/v1/functions/%ff", "/v1/functions/%00", "/v1/functions?prefix=%ff", "/v1/executions/%F0%9F%98%80"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            server.admin
        );
        let answer = server.raw(request.as_bytes()).await;
        let is_told = answer.starts_with("HTTP/1.1 400") && answer.contains("application/problem+json");
        assert!(is_told || answer.starts_with("HTTP/1.1 200") && path.contains("prefix"), "{path}: {answer}");
    }
    let header = b"GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n";
    assert!(server.raw(header).await.starts_with("HTTP/1.1 401"));
    goes_on(&server, 0).await;
}

#[tokio::test]
async fn a_client_that_sends_its_head_too_slowly_is_cut_off() {
    let server = server().await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /v1/me HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A byte now and then does not help.
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        loop {
            if writer.write_all(b"x: 1\r\n").await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        read = tokio::time::timeout(LONG, reader.read_to_end(&mut answer)) => { let _ = read.unwrap(); }
        () = drip => {}
    }
    assert!(!String::from_utf8_lossy(&answer).contains("200"));
    goes_on(&server, 0).await;
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
    let starts = [
        "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\ncontent-length: 100\r\n\r\nhalf",
        "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        "POST /v1/functions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
        "GET /v1/functions HTTP/1.1\r\nho",
    ];
    for start in starts {
        let mut stream = server.connect().await;
        stream.write_all(start.replace("KEY", &server.admin).as_bytes()).await.unwrap();
        // Half closed: nothing more comes, and an answer could still be read.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"), "{start}");
    }
    goes_on(&server, 0).await;
}
