//! Tokens as clients show them: over a socket.

use std::sync::Arc;

use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{Gateway, GatewayId, ScopeAuthorizer};
use function_gateway_rest::RestApi;
use function_gateway_rest::auth::jwt::{JwtAuthenticator, JwtKeys};
use function_gateway_rest::serve::{ServeOptions, serve};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::kit::*;

#[tokio::test]
async fn a_token_opens_what_its_scopes_say() {
    let (p256, ed25519, other) = (p256(), ed25519(), p256());
    let keys = JwtKeys::from_jwks(&jwks([RSA.jwk("r"), p256.jwk("p"), ed25519.jwk("e")])).unwrap();
    let store = Arc::new(MemoryStore::new(GatewayId::generate()));
    let gateway = Gateway::builder().store(store).authorizer(Arc::new(ScopeAuthorizer)).build().await.unwrap();
    let authenticator = JwtAuthenticator::new(options(keys));
    let router = RestApi::builder(gateway).authenticator(authenticator).build().unwrap().router();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let _server = tokio::spawn(serve(listener, router, ServeOptions::default(), std::future::pending()));
    let client = reqwest::Client::new();
    let get = async |path: &str, token: String| {
        let answer = client.get(format!("{url}{path}")).bearer_auth(token).send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let mut reads = claims();
    reads["scope"] = json!("read");
    for (signer, kid) in [(&*RSA, "r"), (&p256, "p"), (&ed25519, "e")] {
        let head = json!({"alg": signer.algorithm(), "kid": kid});
        let (status, me) = get("/v1/me", signer.token_of(&head, &reads)).await;
        assert_eq!(status, StatusCode::OK, "{me}");
        assert_eq!(me, json!({"tenant": "acme", "principal": "alice", "scopes": ["read"]}));
        let (status, list) = get("/v1/functions", signer.token_of(&head, &reads)).await;
        assert_eq!((status, &list["items"]), (StatusCode::OK, &json!([])));
        let (status, refused) = get("/v1/keys", signer.token_of(&head, &reads)).await;
        assert_eq!((status, &refused["code"]), (StatusCode::FORBIDDEN, &json!("permission_denied")));
    }
    let mut expired = reads.clone();
    expired["exp"] = json!(NOW - 300);
    let head = json!({"alg": "ES256", "kid": "p"});
    for bad in [p256.token_of(&head, &expired), other.token_of(&head, &reads), unsigned(&head, &reads)] {
        let (status, refused) = get("/v1/me", bad).await;
        assert_eq!((status, &refused["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")));
    }
}
