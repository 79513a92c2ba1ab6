//! Which tokens are valid, and what is read from them.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_lc_rs::hmac;
use function_gateway_core::TenantId;
use function_gateway_rest::Authenticator as _;
use function_gateway_rest::auth::jwt::{JwtAuthenticator, JwtKeys};
use serde_json::{Value, json};

use crate::kit::*;

fn keys(all: impl IntoIterator<Item = Value>) -> JwtKeys {
    JwtKeys::from_jwks(&jwks(all)).unwrap()
}

/// The claims with one that is another, or is not there where it is null.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

#[tokio::test]
async fn a_token_of_each_algorithm_says_who_calls() {
    let (p256, ed25519) = (p256(), ed25519());
    let gateway = gateway(keys([RSA.jwk("r"), p256.jwk("p"), ed25519.jwk("e")]));
    for (signer, kid) in [(&*RSA, "r"), (&p256, "p"), (&ed25519, "e")] {
        let principal = ask(&gateway, &signer.token(kid)).await.unwrap().unwrap();
        assert_eq!(principal.id.as_str(), "alice");
        assert_eq!(principal.tenant.as_str(), "acme");
        assert_eq!(principal.scopes, BTreeSet::from(["functions:read".into(), "functions:invoke".into()]));
    }
    let by_new_name = json!({"alg": "Ed25519", "kid": "e"});
    assert_accepted(&ask(&gateway, &ed25519.token_of(&by_new_name, &claims())).await);
}

#[tokio::test]
async fn claims_that_are_not_valid_are_refused() {
    let signer = p256();
    let gateway = gateway(keys([signer.jwk("a")]));
    let head = json!({"alg": "ES256", "kid": "a"});
    let bad = [
        ("iss", Value::Null),
        ("iss", json!([ISSUER])),
        ("aud", Value::Null),
        ("aud", json!("another")),
        ("aud", json!(["another", "gateway2", 1])),
        ("aud", json!({"gateway": true})),
        ("exp", Value::Null),
        ("exp", json!("tomorrow")),
        ("exp", json!(NOW - 60)),
        ("exp", json!(-1)),
        ("nbf", json!(NOW + 61)),
        ("nbf", json!("now")),
        ("sub", Value::Null),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("sub", json!("a\nb")),
        ("tenant", Value::Null),
        ("tenant", json!("../acme")),
        ("tenant", json!(["acme"])),
        ("scope", json!(["a", 1])),
        ("scope", json!(1)),
    ];
    for (name, value) in bad {
        let answer = ask(&gateway, &signer.token_of(&head, &with(name, value.clone()))).await;
        assert!(answer.is_err(), "{name}: {value}");
        assert_refused(&answer);
    }
    let good = [
        ("aud", json!(["another", AUDIENCE])),
        ("exp", json!(NOW - 59)),
        ("exp", json!(NOW as f64 + 0.5)),
        ("nbf", Value::Null),
        ("nbf", json!(NOW + 60)),
        ("scope", Value::Null),
        ("scope", json!(["a", "b"])),
    ];
    for (name, value) in good {
        let answer = ask(&gateway, &signer.token_of(&head, &with(name, value.clone()))).await;
        assert!(answer.is_ok(), "{name}: {value}");
        assert_accepted(&answer);
    }
}

#[tokio::test]
async fn a_token_that_nobody_signed_is_refused() {
    let gateway = gateway(keys([RSA.jwk("r")]));
    for alg in ["none", "None", "NONE", ""] {
        let message = unsigned(&json!({"alg": alg, "kid": "r"}), &claims());
        assert_refused(&ask(&gateway, &format!("{message}.")).await);
        assert_refused(&ask(&gateway, &format!("{message}.AAAA")).await);
    }
    assert_refused(&ask(&gateway, &format!("{}.", unsigned(&json!({"alg": "RS256", "kid": "r"}), &claims()))).await);
}

#[tokio::test]
async fn the_public_key_is_no_shared_secret() {
    let gateway = gateway(keys([RSA.jwk("r")]));
    let message = unsigned(&json!({"alg": "HS256", "kid": "r"}), &claims());
    for secret in [RSA.pem(), RSA.jwk("r").to_string(), RSA.jwk("r")["n"].as_str().unwrap().to_owned()] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message.as_bytes());
        assert_refused(&ask(&gateway, &format!("{message}.{}", encode(tag))).await);
    }
}

#[tokio::test]
async fn a_key_is_used_only_for_what_it_is_for() {
    let signer = p256();
    let other = RSA.jwk("other");
    let with = |name: &str, value: Value| {
        let mut jwk = signer.jwk("a");
        jwk[name] = value;
        gateway(keys([jwk, other.clone()]))
    };
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!("")),
        ("key_ops", json!(["sign"])),
        ("key_ops", json!([])),
        ("alg", json!("ES384")),
        ("alg", json!("RS256")),
        ("crv", json!("P-384")),
        ("kty", json!("OKP")),
        ("x", json!("AAAA")),
    ] {
        assert_refused(&ask(&with(name, value), &signer.token("a")).await);
    }
    for (name, value) in [("use", json!("sig")), ("key_ops", json!(["verify"])), ("alg", json!("ES256"))] {
        assert_accepted(&ask(&with(name, value), &signer.token("a")).await);
    }
    // A token of the one algorithm under the name of a key for the other.
    let gateway = gateway(keys([signer.jwk("a"), other]));
    assert_refused(&ask(&gateway, &signer.token("other")).await);
    assert_refused(&ask(&gateway, &RSA.token_of(&json!({"alg": "ES256", "kid": "a"}), &claims())).await);
}

#[tokio::test]
async fn a_token_that_was_changed_is_refused() {
    let signer = p256();
    let gateway = gateway(keys([signer.jwk("a")]));
    let token = signer.token("a");
    assert_accepted(&ask(&gateway, &token).await);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (head, _) = signed.split_once('.').unwrap();
    let other = encode(with("sub", json!("mallory")).to_string());
    assert_refused(&ask(&gateway, &format!("{head}.{other}.{signature}")).await);
    assert_refused(&ask(&gateway, &format!("{signed}.{}", &signature[..40])).await);
    assert_refused(&ask(&gateway, &format!("{signed}.{signature}==")).await);
    assert_refused(&ask(&gateway, &p256().token("a")).await);
    assert_refused(&ask(&gateway, "a.b.c").await);
    assert_refused(&ask(&gateway, "..").await);
}

#[tokio::test]
async fn a_header_that_asks_for_more_is_refused() {
    let signer = p256();
    let gateway = gateway(keys([signer.jwk("a")]));
    for (name, value) in [("crit", json!(["exp"])), ("typ", json!("logout+jwt")), ("kid", json!(1))] {
        let mut head = json!({"alg": "ES256", "kid": "a"});
        head[name] = value;
        assert_refused(&ask(&gateway, &signer.token_of(&head, &claims())).await);
    }
}

#[tokio::test]
async fn a_key_in_the_token_itself_is_not_used() {
    let (signer, mallory) = (p256(), p256());
    let gateway = gateway(keys([signer.jwk("a")]));
    let head = json!({"alg": "ES256", "jwk": mallory.jwk("a")});
    assert_refused(&ask(&gateway, &mallory.token_of(&head, &claims())).await);
}

#[tokio::test]
async fn a_token_that_names_no_key_is_tried_with_those_that_fit() {
    let (first, second) = (p256(), p256());
    let gateway = gateway(keys([first.jwk("a"), RSA.jwk("r"), second.jwk("b")]));
    let head = json!({"alg": "ES256"});
    assert_accepted(&ask(&gateway, &second.token_of(&head, &claims())).await);
    assert_refused(&ask(&gateway, &p256().token_of(&head, &claims())).await);
}

#[tokio::test]
async fn no_more_than_eight_keys_are_tried() {
    let all: Vec<_> = (0..9).map(|_| p256()).collect();
    let gateway = gateway(keys(all.iter().map(|signer| signer.jwk("same"))));
    assert_accepted(&ask(&gateway, &all[7].token("same")).await);
    assert_refused(&ask(&gateway, &all[8].token("same")).await);
}

#[tokio::test]
async fn a_key_without_a_name_is_tried_where_no_key_has_the_tokens() {
    let (named, nameless) = (p256(), p256());
    let mut jwk = nameless.jwk("");
    jwk.as_object_mut().unwrap().remove("kid");
    let gateway = gateway(keys([named.jwk("a"), jwk]));
    assert_accepted(&ask(&gateway, &nameless.token("whatever")).await);
    assert_refused(&ask(&gateway, &nameless.token("a")).await);
}

#[tokio::test]
async fn what_is_no_token_of_this_issuer_is_left_to_others() {
    let signer = p256();
    let gateway = gateway(keys([signer.jwk("a")]));
    let elsewhere = signer.token_of(&json!({"alg": "HS256"}), &with("iss", json!("https://another.example")));
    for other in ["opaque", "a.b", "a.b.c.d.e", "fgk_a.b.c", &elsewhere] {
        assert_eq!(ask(&gateway, other).await.unwrap(), None, "{other}");
    }
    let nothing = http::Request::new(()).into_parts().0;
    assert!(gateway.authenticate(&nothing).await.unwrap().is_none());
    let basic = http::Request::builder().header("authorization", "Basic YTpi").body(()).unwrap().into_parts().0;
    assert!(gateway.authenticate(&basic).await.unwrap().is_none());
}

#[tokio::test]
async fn the_options_say_what_is_read() {
    let signer = ed25519();
    let mut claims = with("tenant", Value::Null);
    claims["org"] = "umbrella".into();
    claims["permissions"] = json!(["x"]);
    claims["aud"] = "other".into();
    claims["exp"] = json!(NOW - 100);
    let token = signer.token_of(&json!({"alg": "EdDSA", "kid": "a"}), &claims);
    let options = options(keys([signer.jwk("a")]))
        .with_audience("other")
        .with_tenant_claim("org")
        .with_scope_claim("permissions")
        .with_leeway(Duration::from_secs(101));
    let principal = ask(&JwtAuthenticator::new(options.clone()), &token).await.unwrap().unwrap();
    assert_eq!(principal.tenant.as_str(), "umbrella");
    assert_eq!(principal.scopes, BTreeSet::from(["x".into()]));

    let fixed = options.clone().with_tenant(TenantId::new("only").unwrap());
    let principal = ask(&JwtAuthenticator::new(fixed), &token).await.unwrap().unwrap();
    assert_eq!(principal.tenant.as_str(), "only");

    let short = options.with_max_token_bytes(token.len() - 1);
    assert_refused(&ask(&JwtAuthenticator::new(short), &token).await);
}

#[tokio::test]
async fn whatever_the_leeway_nothing_overflows() {
    let signer = ed25519();
    let options = options(keys([signer.jwk("a")])).with_leeway(Duration::MAX);
    assert_accepted(&ask(&JwtAuthenticator::new(options), &signer.token("a")).await);
}

#[test]
fn keys_that_are_of_no_use_are_refused() {
    let mut for_encryption = RSA.jwk("a");
    for_encryption["use"] = "enc".into();
    let mut short = RSA.jwk("a");
    short["n"] = encode([0xff; 128]).into();
    let shared = json!({"kty": "oct", "k": encode([1; 32]), "alg": "HS256"});
    for bad in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        RSA.pem(),
        jwks([]),
        jwks([for_encryption, short, shared, json!(1), json!({"kty": "EC", "crv": "Ed448"})]),
    ] {
        let error = JwtKeys::from_jwks(&bad).unwrap_err();
        assert_eq!(error.kind(), function_gateway_core::ErrorKind::InvalidArgument, "{bad}");
    }
}

#[test]
fn no_key_is_shown() {
    let signer = p256();
    let gateway = gateway(keys([signer.jwk("a")]));
    let shown = format!("{gateway:?}");
    assert!(shown.contains(ISSUER));
    assert!(!shown.contains(signer.jwk("a")["x"].as_str().unwrap()), "{shown}");
    assert_eq!(gateway.challenge().unwrap(), "Bearer realm=\"function-gateway\"");
}
