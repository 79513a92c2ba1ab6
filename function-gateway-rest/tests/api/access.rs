//! API keys and the audit log.

use std::time::Duration;

use function_gateway_rest::ApiKeyAuthenticator;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, Setup, json_of, key, problem, spec};

/// A server that looks each key up for each request.
async fn server() -> Server {
    let api = |builder: function_gateway_rest::RestApiBuilder| builder;
    Server::with(Setup { api: Box::new(api), ..Setup::default() }).await
}

#[tokio::test]
async fn a_key_is_made_shown_once_and_revoked() {
    let server = server().await;
    let new = json!({"principal": "bob", "scopes": ["read"], "description": "for the dashboard"});
    let made = json_of(server.post("/v1/keys", &new).send().await.unwrap(), StatusCode::CREATED).await;
    let text = made["key"].as_str().unwrap();
    assert!(text.starts_with("fgk_"), "{text}");
    assert_eq!(
        (&made["state"], &made["created_by"], &made["principal"]),
        (&json!("active"), &json!("ada"), &json!("bob"))
    );
    let me = server.as_who(text, Method::GET, "/v1/me").send().await.unwrap();
    assert_eq!(json_of(me, StatusCode::OK).await["principal"], "bob");

    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    let shown = server.get(&path).send().await.unwrap().text().await.unwrap();
    let list = server.get("/v1/keys").send().await.unwrap().text().await.unwrap();
    for text in [&shown, &list] {
        assert!(!text.contains(&made["key"].as_str().unwrap()[37..]) && !text.contains("hash"), "{text}");
    }
    let revoked = json_of(server.request(Method::DELETE, &path).send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(revoked["state"], "revoked");
    let again = json_of(server.request(Method::DELETE, &path).send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(again["revoked_at"], revoked["revoked_at"]);
    // An authenticator that remembers nothing knows at once; the server's own within its time.
    crate::common::until("the key is refused", async || {
        server.as_who(made["key"].as_str().unwrap(), Method::GET, "/v1/me").send().await.unwrap().status()
            == StatusCode::UNAUTHORIZED
    })
    .await;
}

#[tokio::test]
async fn a_key_ends_when_it_says() {
    let server = server().await;
    let past = json!({"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"});
    let refused = problem(server.post("/v1/keys", &past).send().await.unwrap(), 400, "invalid_argument").await;
    assert_eq!(refused["violations"][0]["pointer"], "/expires_at");
    let soon = function_gateway_core::Timestamp::now().plus(Duration::from_millis(300));
    let new = json!({"scopes": ["read"], "expires_at": soon});
    let made = json_of(server.post("/v1/keys", &new).send().await.unwrap(), StatusCode::CREATED).await;
    let text = made["key"].as_str().unwrap();
    crate::common::until("the key expires", async || {
        server.as_who(text, Method::GET, "/v1/me").send().await.unwrap().status() == StatusCode::UNAUTHORIZED
    })
    .await;
    let shown = server.get(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(json_of(shown, StatusCode::OK).await["state"], "expired");
}

#[tokio::test]
async fn nobody_gives_away_what_is_not_theirs() {
    let server = server().await;
    let bob = key(&server.gateway, "acme", "bob", &["write"]).await;
    let new = |scopes: Value| json!({"scopes": scopes});
    let refused = server.as_who(&bob, Method::POST, "/v1/keys").json(&new(json!(["read"]))).send().await.unwrap();
    problem(refused, 403, "permission_denied").await;
    for scopes in [json!(["metrics"]), json!(["root"]), json!([""])] {
        let refused = server.post("/v1/keys", &new(scopes.clone())).send().await.unwrap();
        let refused = problem(refused, 400, "invalid_argument").await;
        assert_eq!(refused["violations"][0]["pointer"], "/scopes/0", "{scopes}: {refused}");
    }
    let stranger = key(&server.gateway, "other", "eve", &["admin"]).await;
    let made = json_of(server.post("/v1/keys", &new(json!(["read"]))).send().await.unwrap(), StatusCode::CREATED).await;
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    for method in [Method::GET, Method::DELETE] {
        problem(server.as_who(&stranger, method, &path).send().await.unwrap(), 404, "not_found").await;
    }
}

#[tokio::test]
async fn who_changed_what_is_kept() {
    let server = server().await;
    server.create("echo").await;
    let bob = key(&server.gateway, "acme", "bob", &["read"]).await;
    server.as_who(&bob, Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    server
        .request(Method::PUT, "/v1/functions/echo")
        .json(&json!({"driver": "scripted", "run": {"custom": {"kind": "b"}}}))
        .send()
        .await
        .unwrap();
    server.request(Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    let audit = async |query: &str| {
        let list = server.get(&format!("/v1/audit?{query}")).send().await.unwrap();
        json_of(list, StatusCode::OK).await
    };
    let all = audit("function=echo").await;
    let shown: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap().to_owned();
            format!("{} {} {}", text("principal"), text("action"), event["allowed"])
        })
        .collect();
    assert_eq!(shown, ["ada delete true", "ada update true", "bob delete false", "ada create true"]);
    assert_eq!(audit("principal=bob").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(audit("action=create&principal=me").await["items"].as_array().unwrap().len(), 1);
    assert!(!audit("action=create_key").await["items"].as_array().unwrap().is_empty());
    let first = audit("function=echo&limit=3").await;
    let rest = audit(&format!("function=echo&limit=3&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);
    problem(server.get("/v1/audit?action=look").send().await.unwrap(), 400, "invalid_argument").await;
    let _ = spec();
}

#[tokio::test]
async fn a_gateway_without_a_store_for_keys_says_so() {
    let api = |builder: function_gateway_rest::RestApiBuilder| {
        let admin = function_gateway_core::Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
        builder.authenticator(function_gateway_rest::Anonymous::new(admin.with_scope("admin")))
    };
    let server = Server::with(Setup { api: Box::new(api), ..Setup::default() }).await;
    let me = server.client.get(server.url("/v1/me")).send().await.unwrap();
    assert_eq!(json_of(me, StatusCode::OK).await["scopes"], json!(["admin"]));
    let _ = ApiKeyAuthenticator::DEFAULT_TTL;
}
