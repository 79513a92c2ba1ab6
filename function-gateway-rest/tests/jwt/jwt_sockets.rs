//! Tokens as clients show them: over a socket.

use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{Gateway, GatewayId, ScopeAuthorizer};
use function_gateway_rest::RestApi;
use function_gateway_rest::auth::jwt::{JwtAuthenticator, JwtKeys};
use function_gateway_rest::serve::{ServeOptions, serve};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wiremock::{MockServer, ResponseTemplate};

use crate::jwt_urls;
use crate::kit::*;

/// An API that is served, for who shows a token that these keys verify.
struct Api {
    url: String,
    client: Client,
}

impl Api {
    async fn with(keys: JwtKeys) -> Self {
        let store = Arc::new(MemoryStore::new(GatewayId::generate()));
        let gateway = Gateway::builder().store(store).authorizer(Arc::new(ScopeAuthorizer)).build().await.unwrap();
        let authenticator = JwtAuthenticator::new(options(keys));
        let router = RestApi::builder(gateway).authenticator(authenticator).build().unwrap().router();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, router, ServeOptions::default(), std::future::pending()));
        Self { url, client: Client::new() }
    }

    /// The status, `Retry-After` where there is one, and the document.
    async fn answer(&self, path: &str, token: String) -> (StatusCode, Option<String>, Value) {
        let answer = self.client.get(format!("{}{path}", self.url)).bearer_auth(token).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers());
        let retry_after = headers.get("retry-after").map(|seconds| seconds.to_str().unwrap().to_owned());
        (status, retry_after, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    async fn get(&self, path: &str, token: String) -> (StatusCode, Value) {
        let (status, _, document) = self.answer(path, token).await;
        (status, document)
    }
}

#[tokio::test]
async fn a_token_opens_what_its_scopes_say() {
    let (p256, ed25519, other) = (p256(), ed25519(), p256());
    let keys = JwtKeys::from_jwks(&jwks([RSA.jwk("r"), p256.jwk("p"), ed25519.jwk("e")])).unwrap();
    let api = Api::with(keys).await;
    let mut reads = claims();
    reads["scope"] = json!("read");
    for (signer, kid) in [(&*RSA, "r"), (&p256, "p"), (&ed25519, "e")] {
        let head = json!({"alg": signer.algorithm(), "kid": kid});
        let (status, me) = api.get("/v1/me", signer.token_of(&head, &reads)).await;
        assert_eq!(status, StatusCode::OK, "{me}");
        assert_eq!(me, json!({"tenant": "acme", "principal": "alice", "scopes": ["read"]}));
        let (status, list) = api.get("/v1/functions", signer.token_of(&head, &reads)).await;
        assert_eq!((status, &list["items"]), (StatusCode::OK, &json!([])));
        let (status, refused) = api.get("/v1/keys", signer.token_of(&head, &reads)).await;
        assert_eq!((status, &refused["code"]), (StatusCode::FORBIDDEN, &json!("permission_denied")));
    }
    let mut expired = reads.clone();
    expired["exp"] = json!(NOW - 300);
    let head = json!({"alg": "ES256", "kid": "p"});
    for bad in [p256.token_of(&head, &expired), other.token_of(&head, &reads), unsigned(&head, &reads)] {
        let (status, refused) = api.get("/v1/me", bad).await;
        assert_eq!((status, &refused["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")));
    }
}

/// Whether there is such a key can't be found out now. Nobody is told where keys come from.
fn assert_out_of_reach((status, retry_after, refused): (StatusCode, Option<String>, Value)) {
    assert_eq!((status, &refused["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("dependency_unavailable")));
    assert_eq!(retry_after.as_deref(), Some("1"));
    assert!(!refused.to_string().contains("127.0.0.1"), "{refused}");
}

#[tokio::test]
async fn keys_of_a_url_open_the_api_as_soon_as_the_issuer_has_them() {
    let (issuer, old, new) = (MockServer::start().await, p256(), p256());
    jwt_urls::answer(&issuer, ResponseTemplate::new(500)).await;
    let api = Api::with(jwt_urls::keys(&issuer).with_min_refetch(Duration::ZERO)).await;
    let me = async |signer: &Signer, kid: &str| api.answer("/v1/me", signer.token(kid)).await;
    assert_out_of_reach(me(&old, "a").await);

    jwt_urls::serve(&issuer, [(&old, "a")]).await;
    let (status, _, opened) = me(&old, "a").await;
    assert_eq!((status, &opened["principal"]), (StatusCode::OK, &json!("alice")));
    let (status, _, refused) = me(&new, "b").await;
    assert_eq!((status, &refused["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")));

    jwt_urls::serve(&issuer, [(&new, "b")]).await;
    assert_eq!(me(&new, "b").await.0, StatusCode::OK);
    assert_eq!(me(&old, "a").await.0, StatusCode::UNAUTHORIZED);

    // Those that there are go on.
    jwt_urls::answer(&issuer, ResponseTemplate::new(500)).await;
    assert_eq!(me(&new, "b").await.0, StatusCode::OK);
    assert_out_of_reach(me(&old, "a").await);
}

#[tokio::test]
async fn an_issuer_out_of_reach_is_told_as_that() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let keys = JwtKeys::from_url(&format!("http://{closed}/jwks")).unwrap().with_min_refetch(Duration::ZERO);
    assert_out_of_reach(Api::with(keys).await.answer("/v1/me", p256().token("a")).await);
}
