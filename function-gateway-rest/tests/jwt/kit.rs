//! An issuer of tokens, and what a gateway makes of them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use function_gateway_core::{Clock, ErrorKind, Principal, Result, Timestamp};
use function_gateway_rest::Authenticator as _;
use function_gateway_rest::auth::jwt::{JwtAuthenticator, JwtKeys, JwtOptions};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const AUDIENCE: &str = "gateway";
/// What time it is, in seconds since the Unix epoch.
pub(crate) const NOW: i64 = 1_800_000_000;

/// A key of the issuer's.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// It takes long to make, so there is one for all tests.
pub(crate) static RSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));

pub(crate) fn p256() -> Signer {
    Signer::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
}

pub(crate) fn ed25519() -> Signer {
    Signer::Ed25519(Ed25519KeyPair::generate().unwrap())
}

impl Signer {
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key (RFC 7517), with a name.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({"kty": "RSA", "n": encode(public.n), "e": encode(public.e)})
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])})
            }
            Self::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key())}),
        };
        jwk["kid"] = kid.into();
        jwk
    }

    /// The public key (RFC 7468, section 13), which has no name.
    pub(crate) fn pem(&self) -> String {
        let der = match self {
            Self::Rsa(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Self::P256(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
        };
        let encoded = STANDARD.encode(der);
        let lines: Vec<_> = encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    /// A token that is valid, whose header names a key.
    pub(crate) fn token(&self, kid: &str) -> String {
        self.token_of(&json!({"typ": "JWT", "alg": self.algorithm(), "kid": kid}), &claims())
    }

    pub(crate) fn token_of(&self, head: &Value, claims: &Value) -> String {
        let message = unsigned(head, claims);
        let signature = encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

pub(crate) fn unsigned(head: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(head.to_string()), encode(claims.to_string()))
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims that are valid.
pub(crate) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 300, "nbf": NOW - 300, "iat": NOW - 300,
        "sub": "alice", "tenant": "acme", "scope": "functions:read functions:invoke",
    })
}

pub(crate) fn jwks(keys: impl IntoIterator<Item = Value>) -> String {
    json!({"keys": keys.into_iter().collect::<Vec<_>>()}).to_string()
}

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(NOW * 1_000_000)
    }
}

pub(crate) fn options(keys: JwtKeys) -> JwtOptions {
    JwtOptions::new(ISSUER, AUDIENCE, keys).with_clock(Arc::new(Still))
}

pub(crate) fn gateway(keys: JwtKeys) -> JwtAuthenticator {
    JwtAuthenticator::new(options(keys))
}

/// What comes of a request with this credential.
pub(crate) async fn ask(authenticator: &JwtAuthenticator, token: &str) -> Result<Option<Arc<Principal>>> {
    let request = http::Request::builder().header("authorization", format!("Bearer {token}")).body(()).unwrap();
    let found = authenticator.authenticate(&request.into_parts().0).await?;
    Ok(found.map(|found| {
        assert_eq!(found.headers, [http::header::AUTHORIZATION]);
        found.principal
    }))
}

#[track_caller]
pub(crate) fn assert_accepted(answer: &Result<Option<Arc<Principal>>>) {
    assert_eq!(answer.as_ref().unwrap().as_ref().unwrap().id.as_str(), "alice");
}

#[track_caller]
pub(crate) fn assert_refused(answer: &Result<Option<Arc<Principal>>>) {
    assert_fails_as(answer, ErrorKind::Unauthenticated);
    // Nobody is told why.
    let shown = answer.as_ref().unwrap_err().to_string();
    assert_eq!(shown, "unauthenticated: the credential is not valid, or no longer");
}

#[track_caller]
pub(crate) fn assert_fails_as(answer: &Result<Option<Arc<Principal>>>, kind: ErrorKind) {
    assert_eq!(answer.as_ref().map_err(function_gateway_core::Error::kind), Err(kind));
}

/// Lets time pass for the runtime's clock, which runs otherwise: a client waits for a server that is not part of this runtime.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
