//! JSON Web Tokens (RFC 7519) that an issuer of the host's choice has signed.
//!
//! ```no_run
//! # use function_gateway_core::Result;
//! use function_gateway_rest::auth::jwt::{JwtAuthenticator, JwtKeys, JwtOptions};
//!
//! # fn authenticator() -> Result<JwtAuthenticator> {
//! let keys = JwtKeys::from_url("https://login.example.com/.well-known/jwks.json")?;
//! let options = JwtOptions::new("https://login.example.com/", "function-gateway", keys).with_tenant_claim("org");
//! Ok(JwtAuthenticator::new(options))
//! # }
//! ```

mod keys;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use function_gateway_core::{Clock, Error, Principal, PrincipalId, Result, SystemClock, TenantId};
use http::header::{self, HeaderValue};
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Authenticated, Authenticator, bearer, not_valid};

pub use keys::JwtKeys;

/// What API keys begin with: those are never tokens.
const API_KEY_PREFIX: &str = "fgk_";

/// Where the tenant of a token's bearer is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtTenant {
    /// A claim of that name, whose value is the tenant's id.
    Claim(String),
    /// Everybody who has a token belongs to this tenant.
    Fixed(TenantId),
}

/// Which tokens are accepted, and what is read from them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JwtOptions {
    /// What a token's `iss` has to be, byte for byte.
    pub issuer: String,
    /// Of these, a token's `aud` has to hold at least one, byte for byte.
    pub audiences: Vec<String>,
    /// The keys of the issuer.
    pub keys: JwtKeys,
    /// Where the tenant comes from. Default: the claim `tenant`.
    pub tenant: JwtTenant,
    /// The claim that holds the scopes. Default: `scope`.
    pub scope_claim: String,
    /// By how much the issuer's clock and this one may differ. Default: 60 s.
    pub leeway: Duration,
    /// The longest token, in bytes. Default: 8 KiB.
    pub max_token_bytes: usize,
    /// Where the time comes from that `exp` and `nbf` are compared with. Default: the system's clock.
    pub clock: Arc<dyn Clock>,
}

impl JwtOptions {
    /// How far clocks may differ, unless an option says otherwise.
    pub const DEFAULT_LEEWAY: Duration = Duration::from_secs(60);
    /// How many bytes a token may have, unless an option says otherwise.
    pub const DEFAULT_MAX_TOKEN_BYTES: usize = 8 * 1024;

    /// Accepts the tokens that one issuer has made for one audience.
    #[must_use]
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>, keys: JwtKeys) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: vec![audience.into()],
            keys,
            tenant: JwtTenant::Claim("tenant".to_owned()),
            scope_claim: "scope".to_owned(),
            leeway: Self::DEFAULT_LEEWAY,
            max_token_bytes: Self::DEFAULT_MAX_TOKEN_BYTES,
            clock: Arc::new(SystemClock),
        }
    }

    /// Accepts tokens for another audience too.
    #[must_use]
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Names the claim that holds the tenant's id.
    #[must_use]
    pub fn with_tenant_claim(mut self, name: impl Into<String>) -> Self {
        self.tenant = JwtTenant::Claim(name.into());
        self
    }

    /// Puts everybody into one tenant: for an installation that has only one.
    #[must_use]
    pub fn with_tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = JwtTenant::Fixed(tenant);
        self
    }

    /// Names the claim that holds the scopes.
    #[must_use]
    pub fn with_scope_claim(mut self, name: impl Into<String>) -> Self {
        self.scope_claim = name.into();
        self
    }

    /// Sets by how much the issuer's clock and this one may differ. RFC 7519 advises against more than a few minutes.
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Sets the longest token, in bytes.
    #[must_use]
    pub fn with_max_token_bytes(mut self, bytes: usize) -> Self {
        self.max_token_bytes = bytes;
        self
    }

    /// Sets where the time comes from that `exp` and `nbf` are compared with.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

/// Knows callers by the JSON Web Tokens of one issuer, sent as `Authorization: Bearer`.
///
/// # Which tokens are valid
/// - It is signed (RFC 7515) by RS256, ES256 or EdDSA with Ed25519, whose newer name `Ed25519` (RFC 9864) is known too.
///   Never `none`, never by a shared secret.
/// - A key of the issuer verifies it. Its `kid` chooses the key; where no key has that name, keys without a name are tried,
///   and where the token names none, all are that fit its algorithm: 8 at most. A key fits where its own `kty`, `crv`,
///   `alg`, `use` and `key_ops` say so. Keys and addresses of keys in the token itself (`jwk`, `jku`, `x5c`, `x5u`) are not
///   looked at.
/// - Its `typ`, if any, is `JWT`, `at+jwt` (RFC 9068) or `JOSE`, so that a token for another purpose (RFC 8725, section
///   3.11) is no credential. A token with `crit` is refused.
/// - `iss` and `aud` are the options'. `exp` is there and not past, `nbf` not to come, give or take the leeway.
///
/// That a token is bound to a key of its bearer's (`cnf`, RFC 7800) is not checked, nor whether the issuer has revoked it.
///
/// # What is read from it
/// `sub` is the principal's id, and a claim or an option says its tenant; a token from which either can't be read is not
/// valid. The scopes are one text with spaces between (RFC 8693, section 4.2) or an array of texts; a token without is
/// without scopes.
///
/// # What is left to other authenticators
/// A credential that does not consist of three parts with dots between, or that begins with `fgk_`; and a token of another
/// issuer, so that several of these can stand side by side. For that choice alone the issuer is read before anything is
/// verified.
///
/// # Errors
/// [`Unauthenticated`](function_gateway_core::ErrorKind::Unauthenticated) for a token that is not valid; why is in an event
/// of level debug. [`DependencyUnavailable`](function_gateway_core::ErrorKind::DependencyUnavailable) where it can't be
/// known now, since the keys are out of reach: see [`JwtKeys`].
///
/// A principal is not remembered: each request's token is verified. The future can be dropped at any time.
#[derive(Debug)]
pub struct JwtAuthenticator {
    options: JwtOptions,
}

impl JwtAuthenticator {
    /// Knows the bearers of the tokens that the options describe.
    #[must_use]
    pub fn new(options: JwtOptions) -> Self {
        Self { options }
    }

    /// `None` for a token of another issuer.
    async fn check(&self, token: &Compact<'_>) -> Result<Option<Principal>, Refusal> {
        if token.len() > self.options.max_token_bytes {
            return Err(Refusal::Token("the token is too long"));
        }
        let head: Head = part(token.head).ok_or(Refusal::Token("the header can't be read"))?;
        let claims: Claims = part(token.claims).ok_or(Refusal::Token("the claims can't be read"))?;
        match claims.get("iss") {
            Some(Value::String(issuer)) if *issuer == self.options.issuer => {}
            Some(Value::String(_)) => return Ok(None),
            _ => return Err(Refusal::Token("iss is missing")),
        }
        let algorithm = head.check()?;
        self.check_claims(&claims)?;
        let signature =
            URL_SAFE_NO_PAD.decode(token.signature).map_err(|_| Refusal::Token("the signature can't be read"))?;
        let signed = Signed { algorithm, key: head.kid.as_deref(), message: token.signed.as_bytes(), signature };
        if !self.options.keys.verify(&signed).await? {
            return Err(Refusal::Token("no key verifies the signature"));
        }
        Ok(Some(self.principal(&claims)?))
    }

    fn check_claims(&self, claims: &Claims) -> Result<(), Refusal> {
        let is_ours = |audience: &str| self.options.audiences.iter().any(|ours| ours == audience);
        let is_for_us = match claims.get("aud") {
            Some(Value::String(audience)) => is_ours(audience),
            Some(Value::Array(audiences)) => audiences.iter().filter_map(Value::as_str).any(is_ours),
            _ => return Err(Refusal::Token("aud is missing")),
        };
        if !is_for_us {
            return Err(Refusal::Token("aud is another"));
        }
        // A NumericDate may have a fraction; to the microsecond, an f64 holds the next centuries.
        let now = Duration::from_micros(u64::try_from(self.options.clock.now().as_micros()).unwrap_or(0)).as_secs_f64();
        let leeway = self.options.leeway.as_secs_f64();
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(Refusal::Token("exp is missing"))?;
        if now >= expires + leeway {
            return Err(Refusal::Token("exp is past"));
        }
        if let Some(begins) = claims.get("nbf") {
            let begins = begins.as_f64().ok_or(Refusal::Token("nbf is no number"))?;
            if now + leeway < begins {
                return Err(Refusal::Token("nbf is to come"));
            }
        }
        Ok(())
    }

    fn principal(&self, claims: &Claims) -> Result<Principal, Refusal> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let tenant = match &self.options.tenant {
            JwtTenant::Fixed(tenant) => tenant.clone(),
            JwtTenant::Claim(name) => text(name)
                .and_then(|tenant| TenantId::new(tenant).ok())
                .ok_or(Refusal::Token("the tenant is missing, or can't be one"))?,
        };
        let id = text("sub")
            .and_then(|id| PrincipalId::new(id).ok())
            .ok_or(Refusal::Token("sub is missing, or can't be a principal"))?;
        let mut principal = Principal::new(tenant, id);
        principal.scopes = match claims.get(&self.options.scope_claim) {
            None => BTreeSet::new(),
            Some(value) => {
                scopes(value).ok_or(Refusal::Token("the scopes are neither a text nor an array of texts"))?
            }
        };
        Ok(principal)
    }
}

#[async_trait]
impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>> {
        let Some(token) = bearer(&request.headers).and_then(Compact::split) else { return Ok(None) };
        match self.check(&token).await {
            Ok(principal) => {
                Ok(principal.map(|principal| Authenticated::new(Arc::new(principal)).by_header(header::AUTHORIZATION)))
            }
            Err(Refusal::Token(reason)) => {
                tracing::debug!(issuer = self.options.issuer, reason, "a token is not valid");
                Err(not_valid())
            }
            Err(Refusal::Keys(error)) => Err(error),
        }
    }

    fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Bearer realm=\"function-gateway\""))
    }
}

/// Why a token is not accepted.
enum Refusal {
    /// What is wrong with it: for the log only.
    Token(&'static str),
    /// It can't be known.
    Keys(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Keys(error)
    }
}

/// The parts of a token in the compact form (RFC 7515, section 3.1), still encoded.
struct Compact<'a> {
    head: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// The first two, as they are signed.
    signed: &'a str,
}

impl<'a> Compact<'a> {
    fn split(text: &'a str) -> Option<Self> {
        if text.starts_with(API_KEY_PREFIX) {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        (!claims.contains('.')).then_some(Self { head, claims, signature, signed })
    }

    fn len(&self) -> usize {
        self.signed.len() + 1 + self.signature.len()
    }
}

/// A part that is JSON in base64url. Of members with the same name, the last counts (RFC 7519, section 4).
fn part<T: DeserializeOwned>(encoded: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

type Claims = Map<String, Value>;

/// What a token says about itself (RFC 7515, section 4). The rest is not looked at.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

impl Head {
    fn check(&self) -> Result<Algorithm, Refusal> {
        const TYPES: [&str; 3] = ["JWT", "at+jwt", "JOSE"];
        if self.crit.is_some() {
            return Err(Refusal::Token("crit names what is not understood"));
        }
        if let Some(typ) = &self.typ {
            let short = match typ.split_at_checked("application/".len()) {
                Some((prefix, short)) if prefix.eq_ignore_ascii_case("application/") => short,
                _ => typ,
            };
            if !TYPES.iter().any(|known| known.eq_ignore_ascii_case(short)) {
                return Err(Refusal::Token("typ is of another kind of token"));
            }
        }
        Algorithm::named(&self.alg).ok_or(Refusal::Token("alg is none that is accepted"))
    }
}

/// The algorithms by which tokens may be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
    Ed25519,
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// What a key is to verify.
struct Signed<'a> {
    algorithm: Algorithm,
    key: Option<&'a str>,
    message: &'a [u8],
    signature: Vec<u8>,
}

impl fmt::Debug for Signed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("algorithm", &self.algorithm).field("key", &self.key).finish_non_exhaustive()
    }
}

/// `None` where it is of another form.
fn scopes(value: &Value) -> Option<BTreeSet<String>> {
    match value {
        Value::String(text) => Some(text.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()),
        Value::Array(all) => all.iter().map(|scope| scope.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_not_three_parts_is_no_token() {
        for other in ["", "a", "a.b", "a.b.c.d", "a.b.c.d.e", "fgk_a.b.c", "fgk_00_11"] {
            assert!(Compact::split(other).is_none(), "{other}");
        }
        let token = Compact::split("ab.cd.ef").unwrap();
        assert_eq!((token.head, token.claims, token.signature, token.signed), ("ab", "cd", "ef", "ab.cd"));
        assert_eq!(token.len(), "ab.cd.ef".len());
    }

    #[test]
    fn only_three_algorithms_are_accepted() {
        for other in
            ["none", "None", "", "HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "ES384", "Ed448", "rs256"]
        {
            assert_eq!(Algorithm::named(other), None, "{other}");
        }
    }

    #[test]
    fn a_type_of_another_kind_of_token_is_refused() {
        let head = |typ: Option<&str>| Head { alg: "ES256".into(), kid: None, typ: typ.map(Into::into), crit: None };
        for typ in [None, Some("JWT"), Some("jwt"), Some("at+jwt"), Some("application/at+JWT"), Some("JOSE")] {
            assert!(head(typ).check().is_ok(), "{typ:?}");
        }
        for typ in ["", "application/", "logout+jwt", "dpop+jwt", "JWE", "ÄÖÜÄÖÜ"] {
            assert!(head(Some(typ)).check().is_err(), "{typ:?}");
        }
    }

    #[test]
    fn scopes_are_a_text_or_an_array_of_texts() {
        let read = |value: Value| scopes(&value).map(|scopes| scopes.into_iter().collect::<Vec<_>>());
        assert_eq!(read(json!("a  b:c ")), Some(vec!["a".into(), "b:c".into()]));
        assert_eq!(read(json!("")), Some(vec![]));
        assert_eq!(read(json!(["b", "a"])), Some(vec!["a".into(), "b".into()]));
        for other in [json!(null), json!(1), json!({"a": "b"}), json!(["a", 1])] {
            assert_eq!(read(other.clone()), None, "{other}");
        }
    }
}
