//! API keys: random, of 256 bits, of which only a hash is stored.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use function_gateway_core::{
    AccessManager, ApiKey, ApiKeyId, ApiKeyState, Error, ErrorKind, Gateway, Principal, Result, Secret,
};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::{Authenticated, Authenticator, bearer, not_valid};

/// The header for a key where `Authorization` is the function's.
pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What every key begins with, so that those who look for leaked credentials find it.
pub(super) const PREFIX: &str = "fgk_";
const SECRET_LEN: usize = 32;

/// A key that was just made. It is shown once: only its hash is stored.
///
/// Its form is `fgk_<id>_<secret>`: the id in 32 hexadecimal digits, and 256 random bits in base64url.
#[non_exhaustive]
pub struct MintedKey {
    /// What the key is known by.
    pub id: ApiKeyId,
    /// The SHA-256 of its secret part.
    pub hash: [u8; 32],
    /// The key, for whoever is to use it.
    pub text: Secret,
}

impl MintedKey {
    /// Makes a key, from the operating system's random numbers.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where the operating system gives none.
    pub fn mint() -> Result<Self> {
        let mut secret = [0; SECRET_LEN];
        getrandom::fill(&mut secret).map_err(|error| {
            Error::new(ErrorKind::Internal, "there are no random numbers").with_detail(error.to_string())
        })?;
        let id = ApiKeyId::generate();
        let text = format!("{PREFIX}{}_{}", id.to_string().replace('-', ""), URL_SAFE_NO_PAD.encode(secret));
        Ok(Self { id, hash: Sha256::digest(secret).into(), text: Secret::new(text) })
    }
}

impl fmt::Debug for MintedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MintedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether a header's value holds an API key, valid or not, which no function is to see.
pub(crate) fn holds_key(value: &HeaderValue) -> bool {
    value.as_bytes().windows(PREFIX.len()).any(|part| part == PREFIX.as_bytes())
}

/// The parts of a key's text.
fn parse(text: &str) -> Option<(ApiKeyId, [u8; SECRET_LEN])> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let id = Some(id).filter(|id| id.len() == 32)?.parse().ok()?;
    let secret = URL_SAFE_NO_PAD.decode(secret).ok()?;
    Some((id, secret.try_into().ok()?))
}

/// Knows callers by the API keys that are kept in the gateway's store, sent as `Authorization: Bearer` or as `X-Api-Key`.
///
/// What does not begin with `fgk_` is left to other authenticators, or is the function's own.
///
/// The scopes of a key say something only to an [`Authorizer`](function_gateway_core::Authorizer) that goes by them, such as
/// [`ScopeAuthorizer`](function_gateway_core::ScopeAuthorizer): without one, every key may do everything in its tenant.
pub struct ApiKeyAuthenticator {
    gateway: Gateway,
    ttl: Duration,
    known: Cache<ApiKeyId, Result<Arc<Known>>>,
}

/// A key as it was when it was looked up.
struct Known {
    read_at: Instant,
    key: Arc<ApiKey>,
    principal: Arc<Principal>,
}

impl ApiKeyAuthenticator {
    /// How long a key is remembered, and so how long one may be used on that another process has revoked.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(1);
    const CAPACITY: usize = 10_000;

    /// Knows the keys of a gateway, and remembers one for [`DEFAULT_TTL`](Self::DEFAULT_TTL).
    #[must_use]
    pub fn new(gateway: Gateway) -> Self {
        Self::with_ttl(gateway, Self::DEFAULT_TTL)
    }

    /// Sets how long a key is remembered once it was looked up. Zero: it is looked up for each request.
    #[must_use]
    pub fn with_ttl(gateway: Gateway, ttl: Duration) -> Self {
        Self { gateway, ttl, known: Cache::new(Self::CAPACITY) }
    }

    async fn find(&self, id: ApiKeyId) -> Result<Arc<Known>> {
        if let Some(Ok(known)) = self.known.get(&id) {
            if known.read_at.elapsed() < self.ttl {
                return Ok(known);
            }
            self.known.remove_if(&id, |kept| kept.as_ref().is_ok_and(|kept| Arc::ptr_eq(kept, &known)));
        }
        Box::pin(self.look_up(id)).await
    }

    /// One look-up for all who ask at once.
    async fn look_up(&self, id: ApiKeyId) -> Result<Arc<Known>> {
        let read = async {
            // Taken before the read: what is older than this may have changed.
            let read_at = Instant::now();
            let key = self.gateway.find_api_key(id).await?.ok_or_else(not_valid)?;
            let mut principal = Principal::new(key.tenant.clone(), key.principal.clone());
            principal.scopes = key.scopes.clone();
            Ok(Arc::new(Known { read_at, key, principal: Arc::new(principal) }))
        };
        let Ok(found) = self.known.get_or_insert_async(&id, async { Ok::<_, Infallible>(read.await) }).await;
        if found.is_err() {
            // It is for those who have asked meanwhile, and not remembered: an unknown id takes up room for no longer.
            self.known.remove_if(&id, Result::is_err);
        }
        found
    }
}

#[async_trait]
impl Authenticator for ApiKeyAuthenticator {
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>> {
        let (text, header) = match bearer(&request.headers).filter(|token| token.starts_with(PREFIX)) {
            Some(token) => (token, header::AUTHORIZATION),
            None => match request.headers.get(X_API_KEY).and_then(|value| value.to_str().ok()) {
                Some(text) if text.starts_with(PREFIX) => (text, X_API_KEY),
                // One of the function's own.
                _ => return Ok(None),
            },
        };
        let (id, secret) = parse(text).ok_or_else(not_valid)?;
        let known = self.find(id).await?;
        let is_right: bool = Sha256::digest(secret).ct_eq(&known.key.hash).into();
        if !is_right || known.key.state(self.gateway.now()) != ApiKeyState::Active {
            return Err(not_valid());
        }
        Ok(Some(Authenticated::new(Arc::clone(&known.principal)).by_header(header)))
    }

    fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Bearer realm=\"function-gateway\""))
    }
}

impl fmt::Debug for ApiKeyAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyAuthenticator").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::store::memory::MemoryStore;
    use function_gateway_core::{CallContext, GatewayId, NewApiKey};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_looked_up_again_after_its_time_and_after_an_error() {
        let store = Arc::new(MemoryStore::new(GatewayId::generate()));
        let gateway = Gateway::builder().store(store).without_reconciler().build().await.unwrap();
        let authenticator = ApiKeyAuthenticator::new(gateway.clone());
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let minted = MintedKey::mint().unwrap();
        let request = http::Request::get("/").header("x-api-key", minted.text.expose_str().unwrap());
        let (head, ()) = request.body(()).unwrap().into_parts();
        let is_known = async || match authenticator.authenticate(&head).await {
            Ok(found) => found.is_some(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unauthenticated);
                false
            }
        };
        assert!(!is_known().await);
        assert_eq!(authenticator.known.len(), 0);
        gateway.create_api_key(&cx, NewApiKey::new(minted.id, minted.hash)).await.unwrap();
        assert!(is_known().await);
        gateway.revoke_api_key(&cx, minted.id).await.unwrap();
        tokio::time::advance(ApiKeyAuthenticator::DEFAULT_TTL - Duration::from_millis(1)).await;
        assert!(is_known().await, "it is remembered");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!is_known().await);
    }

    #[test]
    fn a_key_is_found_in_its_text() {
        let minted = MintedKey::mint().unwrap();
        let text = minted.text.expose_str().unwrap().to_owned();
        let (id, secret) = parse(&text).unwrap();
        assert_eq!(id, minted.id);
        assert_eq!(<[u8; 32]>::from(Sha256::digest(secret)), minted.hash);
        assert!(!format!("{minted:?}").contains(&text[37..]));
    }

    #[test]
    fn anything_else_is_no_key() {
        let text = MintedKey::mint().unwrap().text.expose_str().unwrap().to_owned();
        for bad in ["", "fgk_", "fgk__", &text[1..], &text[..text.len() - 1], &format!("{text}A"), &text.to_uppercase()]
        {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
