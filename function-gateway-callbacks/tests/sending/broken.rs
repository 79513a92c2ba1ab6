//! Receivers that don't answer as one should, or must not be called.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use function_gateway_callbacks::{CallbackConfig, HttpCallbacks};
use function_gateway_core::{CallbackSender as _, Deadline, Delivery, ErrorKind, Retry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::{assert_is, callback, callbacks, cx, local};

/// Longer than any test may take.
const NEVER: Duration = Duration::from_secs(600);
/// Short, and awaited in full.
const SOON: Duration = Duration::from_millis(50);

/// Takes one connection, and leaves it to a function.
async fn receiver<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    behave: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        behave(stream).await
    });
    (address, task)
}

/// Reads a request whole.
async fn read(stream: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n{\"state\": \"succeeded\"}") {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
    }
}

/// Waits until the other side has closed.
async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_connection_that_is_refused_is_tried_again() {
    // Nothing else listens at this address, so that nobody takes the port meanwhile.
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = callbacks().send(&cx(), callback(format!("http://{address}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::NotSent);
}

#[tokio::test]
async fn a_connection_that_breaks_may_have_delivered() {
    let (address, task) = receiver(|mut stream| async move { read(&mut stream).await }).await;
    let error = callbacks().send(&cx(), callback(format!("http://{address}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::Unknown);
    task.await.unwrap();
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_may_have_got_it() {
    let (address, task) = receiver(closed).await;
    let callbacks = HttpCallbacks::new(local().with_timeout(SOON)).unwrap();
    let error = callbacks.send(&cx(), callback(format!("http://{address}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::Unknown);
    assert!(error.message().contains("in time"), "{error}");
    task.await.unwrap();
}

#[tokio::test]
async fn the_deadline_of_the_call_holds_where_it_is_earlier() {
    let (address, task) = receiver(closed).await;
    let callbacks = HttpCallbacks::new(local().with_timeout(NEVER)).unwrap();
    let cx = cx().with_deadline(Deadline::after(SOON));
    let error = callbacks.send(&cx, callback(format!("http://{address}/"))).await.unwrap_err();
    assert!(error.message().contains("in time"), "{error}");
    task.await.unwrap();
}

/// TLS that is not answered: the connection is never there.
#[tokio::test]
async fn a_connection_that_does_not_come_about_in_time_has_delivered_nothing() {
    let (address, task) = receiver(closed).await;
    let config = local().with_timeout(NEVER).with_connect_timeout(SOON);
    let callbacks = HttpCallbacks::new(config).unwrap();
    let error = callbacks.send(&cx(), callback(format!("https://{address}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::NotSent);
    task.await.unwrap();
}

#[tokio::test]
async fn a_success_is_one_before_its_body_is_there() {
    let (address, task) = receiver(|mut stream| async move {
        read(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await.unwrap();
        closed(stream).await;
    })
    .await;
    let callbacks = HttpCallbacks::new(local().with_timeout(NEVER)).unwrap();
    callbacks.send(&cx(), callback(format!("http://{address}/"))).await.unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn a_status_counts_where_its_body_breaks_off_or_never_ends() {
    for hangs in [false, true] {
        let (address, task) = receiver(move |mut stream| async move {
            read(&mut stream).await;
            stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 10\r\n\r\nno").await.unwrap();
            if hangs {
                closed(stream).await;
            }
        })
        .await;
        let callbacks = HttpCallbacks::new(local().with_timeout(if hangs { SOON * 60 } else { NEVER })).unwrap();
        let error = callbacks.send(&cx(), callback(format!("http://{address}/"))).await.unwrap_err();
        assert_is(&error, ErrorKind::Misconfigured, Retry::Never, Delivery::Unknown);
        assert_eq!(error.detail(), Some("no"));
        task.await.unwrap();
    }
}

#[tokio::test]
async fn of_an_answer_without_end_only_the_beginning_is_read() {
    let (address, task) = receiver(|mut stream| async move {
        read(&mut stream).await;
        stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let callbacks = HttpCallbacks::new(local().with_timeout(NEVER)).unwrap();
    let error = callbacks.send(&cx(), callback(format!("http://{address}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::Unknown);
    assert_eq!(error.detail(), Some(&*"x".repeat(4096)));
    task.await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_not_called_whoever_has_checked_it() {
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    let callbacks = HttpCallbacks::new(CallbackConfig::new().allow_http()).unwrap();
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.1", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost"] {
        for scheme in ["http", "https"] {
            let error = callbacks.send(&cx(), callback(format!("{scheme}://{host}:{port}/canary"))).await.unwrap_err();
            assert_is(&error, ErrorKind::PermissionDenied, Retry::Never, Delivery::NotSent);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
    let strict = HttpCallbacks::new(local().allow_ports([443])).unwrap();
    let error = strict.send(&cx(), callback(format!("http://127.0.0.1:{port}/"))).await.unwrap_err();
    assert_is(&error, ErrorKind::PermissionDenied, Retry::Never, Delivery::NotSent);
    assert!(trap.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn the_name_of_this_machine_is_called_where_it_is_allowed() {
    let (address, task) = receiver(|mut stream| async move {
        read(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    })
    .await;
    callbacks().send(&cx(), callback(format!("http://localhost:{}/", address.port()))).await.unwrap();
    task.await.unwrap();
}

#[test]
fn settings_that_are_wrong_are_named() {
    for (config, expected) in [
        (CallbackConfig::new().allow_networks(["10.0.0.0/99"]), "allow_networks"),
        (CallbackConfig::new().allow_ports([]), "allow_ports"),
        (CallbackConfig::new().with_timeout(Duration::ZERO), "timeout_ms"),
        (CallbackConfig::new().with_connect_timeout(Duration::ZERO), "connect_timeout_ms"),
        (CallbackConfig::new().with_ca_pem("none"), "ca_pem"),
    ] {
        let error = HttpCallbacks::new(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().starts_with(expected), "{error}");
    }
    let error = serde_json::from_str::<CallbackConfig>(r#"{"allow_https": true}"#).unwrap_err();
    assert!(error.to_string().contains("unknown field"), "{error}");
}
