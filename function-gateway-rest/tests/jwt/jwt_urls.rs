//! Keys from a URL.

use std::net::TcpListener;
use std::time::Duration;

use function_gateway_core::{ErrorKind, Retry};
use function_gateway_rest::auth::jwt::JwtKeys;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::kit::*;

/// Answers with these keys from now on.
pub(crate) async fn serve<'a>(server: &MockServer, signers: impl IntoIterator<Item = (&'a Signer, &'a str)>) {
    answer(
        server,
        ResponseTemplate::new(200).set_body_string(jwks(signers.into_iter().map(|(key, kid)| key.jwk(kid)))),
    )
    .await;
}

pub(crate) async fn answer(server: &MockServer, answer: ResponseTemplate) {
    server.reset().await;
    Mock::given(method("GET")).and(path("/jwks")).respond_with(answer).mount(server).await;
}

/// How many requests came since the answer was last changed.
async fn requests(server: &MockServer) -> usize {
    server.received_requests().await.unwrap().len()
}

pub(crate) fn keys(server: &MockServer) -> JwtKeys {
    JwtKeys::from_url(&format!("{}/jwks", server.uri())).unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn keys_are_fetched_once_until_they_are_to_be_refreshed() {
    let (server, old, new) = (MockServer::start().await, p256(), p256());
    serve(&server, [(&old, "a")]).await;
    let gateway = gateway(keys(&server));
    for _ in 0..3 {
        assert_accepted(&ask(&gateway, &old.token("a")).await);
    }
    assert_eq!(requests(&server).await, 1);

    serve(&server, [(&new, "b")]).await;
    pass(4 * MINUTE).await;
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    assert_eq!(requests(&server).await, 0);
    pass(MINUTE).await;
    assert_accepted(&ask(&gateway, &new.token("b")).await);
    assert_refused(&ask(&gateway, &old.token("a")).await);
    assert_eq!(requests(&server).await, 1);
}

#[tokio::test]
async fn an_unknown_key_is_fetched_once() {
    let (server, old, new) = (MockServer::start().await, p256(), p256());
    serve(&server, [(&old, "a")]).await;
    let gateway = gateway(keys(&server).with_min_refetch(MINUTE));
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    serve(&server, [(&old, "a"), (&new, "b")]).await;

    // Too soon after the last.
    assert_refused(&ask(&gateway, &new.token("b")).await);
    assert_eq!(requests(&server).await, 0);
    pass(MINUTE).await;
    assert_accepted(&ask(&gateway, &new.token("b")).await);
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    assert_eq!(requests(&server).await, 1);

    for _ in 0..3 {
        assert_refused(&ask(&gateway, &new.token("c")).await);
    }
    assert_eq!(requests(&server).await, 1);
    pass(MINUTE).await;
    for _ in 0..3 {
        assert_refused(&ask(&gateway, &new.token("c")).await);
    }
    assert_eq!(requests(&server).await, 2);
}

#[tokio::test]
async fn keys_are_fetched_again_for_a_token_that_names_none() {
    let (server, old, new) = (MockServer::start().await, p256(), p256());
    serve(&server, [(&old, "a")]).await;
    let gateway = gateway(keys(&server));
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    serve(&server, [(&new, "a")]).await;
    pass(Duration::from_secs(10)).await;
    assert_accepted(&ask(&gateway, &new.token_of(&json!({"alg": "ES256"}), &claims())).await);
}

#[tokio::test]
async fn a_token_that_is_wrong_in_itself_causes_no_fetch() {
    let (server, signer) = (MockServer::start().await, p256());
    serve(&server, [(&signer, "a")]).await;
    let gateway = gateway(keys(&server));
    let mut late = claims();
    late["exp"] = json!(NOW - 1000);
    assert_refused(&ask(&gateway, &signer.token_of(&json!({"alg": "ES256", "kid": "b"}), &late)).await);
    assert_refused(&ask(&gateway, &signer.token_of(&json!({"alg": "none"}), &claims())).await);
    assert_eq!(requests(&server).await, 0);
    assert_accepted(&ask(&gateway, &signer.token("a")).await);
    pass(Duration::from_secs(10)).await;
    // A known key that does not verify it.
    assert_refused(&ask(&gateway, &p256().token("a")).await);
    assert_eq!(requests(&server).await, 1);
}

#[tokio::test]
async fn all_who_need_the_keys_share_a_fetch() {
    let (server, old, new) = (MockServer::start().await, p256(), p256());
    serve(&server, [(&old, "a")]).await;
    let gateway = gateway(keys(&server));
    let token = old.token("a");
    join_all((0..50).map(|_| ask(&gateway, &token))).await.iter().for_each(assert_accepted);
    assert_eq!(requests(&server).await, 1);

    serve(&server, [(&new, "b")]).await;
    pass(Duration::from_secs(10)).await;
    let token = new.token("b");
    join_all((0..50).map(|_| ask(&gateway, &token))).await.iter().for_each(assert_accepted);
    assert_eq!(requests(&server).await, 1);
}

#[tokio::test]
async fn a_fetch_goes_on_when_its_caller_is_gone() {
    let (server, signer) = (MockServer::start().await, p256());
    serve(&server, [(&signer, "a")]).await;
    let gateway = gateway(keys(&server));
    let token = signer.token("a");
    assert!(ask(&gateway, &token).now_or_never().is_none());
    assert_accepted(&ask(&gateway, &token).await);
    assert_eq!(requests(&server).await, 1);
}

#[tokio::test]
async fn old_keys_are_used_on_for_a_while_when_there_are_no_new_ones() {
    let (server, signer) = (MockServer::start().await, p256());
    serve(&server, [(&signer, "a")]).await;
    let gateway = gateway(keys(&server).with_min_refetch(MINUTE));
    let token = signer.token("a");
    assert_accepted(&ask(&gateway, &token).await);

    answer(&server, ResponseTemplate::new(500)).await;
    pass(5 * MINUTE).await;
    assert_accepted(&ask(&gateway, &token).await);
    assert_accepted(&ask(&gateway, &token).await);
    assert_eq!(requests(&server).await, 1);
    // Whether there is such a key can't be found out.
    assert_fails_as(&ask(&gateway, &signer.token("b")).await, ErrorKind::DependencyUnavailable);
    pass(54 * MINUTE).await;
    assert_accepted(&ask(&gateway, &token).await);
    pass(MINUTE).await;
    let answer = ask(&gateway, &token).await;
    assert_fails_as(&answer, ErrorKind::DependencyUnavailable);
    assert_eq!(answer.unwrap_err().retry(), Retry::Transient);

    serve(&server, [(&signer, "a")]).await;
    pass(MINUTE).await;
    assert_accepted(&ask(&gateway, &token).await);
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_failed_while_there_are_keys() {
    let (server, signer) = (MockServer::start().await, p256());
    serve(&server, [(&signer, "a")]).await;
    let gateway = gateway(keys(&server));
    let token = signer.token("a");
    assert_accepted(&ask(&gateway, &token).await);
    answer(&server, ResponseTemplate::new(500)).await;
    pass(5 * MINUTE).await;
    assert!(ask(&gateway, &token).now_or_never().is_none());
    assert_accepted(&ask(&gateway, &token).await);
    pass(MINUTE).await;
    assert_accepted(&ask(&gateway, &token).now_or_never().unwrap());
}

#[tokio::test]
async fn without_any_keys_it_is_a_fault_of_the_issuers() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = gateway(JwtKeys::from_url(&format!("http://{closed}/jwks")).unwrap());
    assert_fails_as(&ask(&gateway, &p256().token("a")).await, ErrorKind::DependencyUnavailable);
}

#[tokio::test]
async fn a_server_that_failed_is_not_asked_again_at_once() {
    let (server, signer) = (MockServer::start().await, p256());
    answer(&server, ResponseTemplate::new(500)).await;
    let gateway = gateway(keys(&server).with_min_refetch(MINUTE));
    for _ in 0..3 {
        assert_fails_as(&ask(&gateway, &signer.token("a")).await, ErrorKind::DependencyUnavailable);
    }
    assert_eq!(requests(&server).await, 1);
    pass(MINUTE).await;
    assert_fails_as(&ask(&gateway, &signer.token("a")).await, ErrorKind::DependencyUnavailable);
    assert_eq!(requests(&server).await, 2);
}

#[tokio::test]
async fn an_answer_that_is_no_set_of_keys_is_a_failure() {
    let (server, signer) = (MockServer::start().await, p256());
    let elsewhere = MockServer::start().await;
    serve(&elsewhere, [(&signer, "a")]).await;
    let good = jwks([signer.jwk("a")]);
    let long = format!("{good}{}", " ".repeat(256 * 1024));
    for bad in [
        ResponseTemplate::new(200).set_body_string("<html>"),
        ResponseTemplate::new(200).set_body_bytes([0xff]),
        ResponseTemplate::new(200).set_body_string(long),
        ResponseTemplate::new(404).set_body_string(good.clone()),
        ResponseTemplate::new(302).insert_header("location", format!("{}/jwks", elsewhere.uri())),
        ResponseTemplate::new(302).insert_header("location", "/jwks"),
    ] {
        answer(&server, bad).await;
        assert_fails_as(&ask(&gateway(keys(&server)), &signer.token("a")).await, ErrorKind::DependencyUnavailable);
    }
    assert_eq!(requests(&elsewhere).await, 0);
}

#[tokio::test]
async fn a_redirect_within_the_origin_is_followed() {
    let (server, signer) = (MockServer::start().await, p256());
    answer(&server, ResponseTemplate::new(307).insert_header("location", "/other")).await;
    let body = ResponseTemplate::new(200).set_body_string(jwks([signer.jwk("a")]));
    Mock::given(path("/other")).respond_with(body).mount(&server).await;
    assert_accepted(&ask(&gateway(keys(&server)), &signer.token("a")).await);
}

#[tokio::test]
async fn an_issuer_without_keys_has_no_tokens() {
    let (server, signer) = (MockServer::start().await, p256());
    serve(&server, [(&signer, "a")]).await;
    let gateway = gateway(keys(&server));
    assert_accepted(&ask(&gateway, &signer.token("a")).await);
    serve(&server, []).await;
    pass(5 * MINUTE).await;
    assert_refused(&ask(&gateway, &signer.token("a")).await);
}

#[tokio::test]
async fn the_times_can_be_set() {
    let (server, old, new) = (MockServer::start().await, p256(), p256());
    serve(&server, [(&old, "a")]).await;
    let second = Duration::from_secs(1);
    let keys = keys(&server).with_refresh(10 * second).with_max_stale(20 * second).with_min_refetch(second);
    let gateway = gateway(keys);
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    serve(&server, [(&old, "a"), (&new, "b")]).await;
    pass(second).await;
    assert_accepted(&ask(&gateway, &new.token("b")).await);
    answer(&server, ResponseTemplate::new(503)).await;
    pass(10 * second).await;
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    pass(10 * second).await;
    assert_fails_as(&ask(&gateway, &old.token("a")).await, ErrorKind::DependencyUnavailable);
}

#[tokio::test]
async fn a_server_that_does_not_answer_holds_nobody_up_for_long() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks", silent.local_addr().unwrap());
    let gateway = gateway(JwtKeys::from_url(&url).unwrap());
    let token = p256().token("a");
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_fails_as(&ask(&gateway, &token).await, ErrorKind::DependencyUnavailable);
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[test]
fn a_url_that_others_could_listen_to_is_refused() {
    for bad in [
        "",
        "/jwks",
        "ftp://issuer.example/jwks",
        "http://issuer.example/jwks",
        "http://localhost.example/jwks",
        "http://10.0.0.1/jwks",
        "http://[::2]/jwks",
        "file:///etc/keys",
        "https://user@issuer.example/jwks",
        "https://:secret@issuer.example/jwks",
    ] {
        assert_eq!(JwtKeys::from_url(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    for good in ["http://localhost:1/jwks", "http://127.0.0.2/jwks", "http://[::1]/jwks"] {
        assert!(JwtKeys::from_url(good).is_ok(), "{good}");
    }
}

#[test]
fn a_url_with_tls_needs_the_systems_certificates() {
    // Where there are none, it is not the URL's fault.
    let fault = JwtKeys::from_url("https://issuer.example/jwks").err().map(|error| error.kind());
    assert!(matches!(fault, None | Some(ErrorKind::Internal)), "{fault:?}");
}

#[test]
fn what_may_be_a_secret_in_a_url_is_not_shown() {
    let keys = JwtKeys::from_url("http://localhost:1/jwks?token=secret").unwrap();
    let shown = format!("{keys:?}");
    assert!(shown.contains("http://localhost:1/jwks") && !shown.contains("secret"), "{shown}");
}
