//! What is sent, and what the answers to it mean.

use std::time::Duration;

use function_gateway_core::{CallbackSender as _, Delivery, Error, ErrorKind, Retry, Secret, Timestamp};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::{assert_is, callback, callbacks, cx};

async fn receiver(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

async fn only_request(server: &MockServer) -> Request {
    let mut requests = server.received_requests().await.unwrap();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

/// The error for an answer.
async fn error(answer: ResponseTemplate) -> Error {
    let server = receiver(answer).await;
    let error = callbacks().send(&cx(), callback(server.uri() + "/hooks?token=canary")).await.unwrap_err();
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    only_request(&server).await;
    error
}

#[tokio::test]
async fn what_is_sent() {
    let server = receiver(ResponseTemplate::new(200)).await;
    let mut callback = callback(server.uri() + "/hooks/7?token=x")
        .with_secret(Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw old"));
    callback.id = "01929f6c-3d5a-7e0b-8f2c-5b1e3a7d9c46".parse().unwrap();
    callback.at = Timestamp::from_micros(1_614_265_330_999_999);
    callbacks().send(&cx(), callback).await.unwrap();

    let request = only_request(&server).await;
    assert_eq!(
        (request.method.as_str(), request.url.path(), request.url.query()),
        ("POST", "/hooks/7", Some("token=x"))
    );
    assert_eq!(request.body, br#"{"state": "succeeded"}"#);
    let mut headers: Vec<_> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    headers.sort_unstable();
    let host = server.address().to_string();
    assert_eq!(
        headers,
        [
            ("accept", "*/*"),
            ("content-length", "22"),
            ("content-type", "application/json"),
            ("host", host.as_str()),
            ("user-agent", concat!("function-gateway/", env!("CARGO_PKG_VERSION"))),
            ("webhook-id", "01929f6c-3d5a-7e0b-8f2c-5b1e3a7d9c46"),
            (
                "webhook-signature",
                "v1,44x3Bo+WqbDX5Heh+LwCS9k6AgjJ6pNoJGL7nY7SvzY= v1,3QZNtTJhvZ+mu8sVDDX4daXC+QKx65DZViDiIW0Mh4Q="
            ),
            ("webhook-timestamp", "1614265330"),
        ]
    );
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed() {
    let server = receiver(ResponseTemplate::new(200)).await;
    callbacks().send(&cx(), callback(server.uri())).await.unwrap();
    let request = only_request(&server).await;
    assert!(request.headers.contains_key("webhook-id") && !request.headers.contains_key("webhook-signature"));
}

#[tokio::test]
async fn with_a_secret_that_is_of_no_use_nothing_is_sent() {
    let server = receiver(ResponseTemplate::new(200)).await;
    let callback = callback(server.uri()).with_secret(Secret::new("whsec_?"));
    let error = callbacks().send(&cx(), callback).await.unwrap_err();
    assert_is(&error, ErrorKind::Misconfigured, Retry::Never, Delivery::NotSent);
    assert_eq!(server.received_requests().await.unwrap().len(), 0);
}

#[tokio::test]
async fn every_status_of_success_is_one() {
    for status in [200, 201, 202, 204, 299] {
        let server = receiver(ResponseTemplate::new(status).set_body_string("thanks")).await;
        callbacks().send(&cx(), callback(server.uri())).await.unwrap();
    }
}

#[tokio::test]
async fn a_receiver_that_has_no_time_is_tried_again_when_it_says() {
    for status in [408, 429, 500, 502, 503, 504] {
        let error = error(ResponseTemplate::new(status).insert_header("retry-after", "90")).await;
        assert_is(&error, ErrorKind::Unavailable, Retry::Transient, Delivery::Unknown);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(90)));
        assert_eq!(error.context_value("status"), Some(&*status.to_string()));
    }
}

#[tokio::test]
async fn a_date_to_try_again_at_counts_from_the_attempt() {
    let server =
        receiver(ResponseTemplate::new(503).insert_header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")).await;
    let mut callback = callback(server.uri());
    callback.at = Timestamp::from_micros(784_111_777_000_000).minus(Duration::from_secs(3600));
    let after = callbacks().send(&cx(), callback).await.unwrap_err().retry_after().unwrap();
    // Less what the attempt itself took.
    assert!(after <= Duration::from_secs(3600) && after > Duration::from_secs(3500), "{after:?}");
}

#[tokio::test]
async fn a_receiver_that_refuses_is_not_tried_again() {
    for (status, expected) in [(400, "refuses"), (401, "refuses"), (404, "refuses"), (410, "gone"), (422, "refuses")] {
        let error = error(ResponseTemplate::new(status).insert_header("retry-after", "90")).await;
        assert_is(&error, ErrorKind::Misconfigured, Retry::Never, Delivery::Unknown);
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(error.retry_after(), None);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = receiver(ResponseTemplate::new(200)).await;
    for status in [301, 302, 303, 307, 308] {
        let error = error(ResponseTemplate::new(status).insert_header("location", other.uri())).await;
        assert_is(&error, ErrorKind::Misconfigured, Retry::Never, Delivery::Unknown);
        assert!(error.message().contains("redirects, which is not followed"), "{error}");
    }
    assert_eq!(other.received_requests().await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_the_receiver_says_is_for_the_operators_only() {
    let error = error(ResponseTemplate::new(500).set_body_string(" inner\r\n\u{1b}[31mworkings\u{fffd} ")).await;
    assert_eq!(error.detail(), Some("inner   [31mworkings\u{fffd}"));
    assert!(!error.to_string().contains("inner"), "{error}");
}

/// The test again, in a process of its own whose environment has a proxy that nobody answers at.
#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "answers::what_is_sent", "--quiet"]);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        again.env(variable, "http://127.0.0.1:1");
    }
    let output = again.output().await.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}
