//! Function Gateway middleware that hands a function the secrets that its specification lists, anew for each call.
//!
//! ```
//! use std::sync::Arc;
//! use function_gateway_core::{MemorySecrets, SecretChain};
//! use function_gateway_secrets::{Secrets, SecretsOptions};
//!
//! let chain = SecretChain::new(vec![Arc::new(MemorySecrets::new())]);
//! let secrets = Secrets::new(chain, SecretsOptions::default());
//! ```
//!
//! # Behaviour
//! - A function gets exactly what its specification lists, or the part of it that the call narrows it to with
//!   [`InvokeRequest::secrets`](function_gateway_core::InvokeRequest::secrets). A call that names another secret is
//!   refused before any provider is asked.
//! - The tenant is that of the call. A value that was fetched for one tenant is never handed to another.
//! - A value is kept for [`SecretsOptions::ttl`], counted from before its provider was asked. Calls that need the same
//!   secret at the same time share one question. Errors are not kept.
//! - Past its time a value is never used, not even while its provider is out of reach: what was revoked must not live
//!   on because of an outage.
//! - Every value goes to the call's redactor, also where the driver hands secrets over at deployment.

mod cache;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{
    CallContext, Delivery, Error, ErrorKind, FunctionSpec, Invocation, InvokeResponse, Middleware, MiddlewareFactory,
    Next, Result, Revision, Secret, SecretBinding, SecretChain, SecretDelivery, SecretRef, Settings, SpecField, Stage,
    TenantId, TimedPhase, Violation,
};
use futures_util::future::try_join_all;

use crate::cache::SecretCache;

/// The name under which a specification chooses this middleware.
const NAME: &str = "secrets";

/// How secrets are kept between calls.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SecretsOptions {
    /// How long a value is used after it was fetched; 30 seconds unless set. With zero, each call gets a value that
    /// was asked for after the call came in.
    pub ttl: Duration,
    /// How many values are kept at most, over all tenants; 10,000 unless set.
    pub max_cached: u64,
}

impl Default for SecretsOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30), max_cached: 10_000 }
    }
}

impl SecretsOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a value is used after it was fetched.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how many values are kept at most.
    #[must_use]
    pub fn with_max_cached(mut self, max_cached: u64) -> Self {
        self.max_cached = max_cached;
        self
    }
}

/// Makes the middleware that injects secrets, for every revision that lists any. Clones share what is cached.
#[derive(Debug, Clone)]
pub struct Secrets(Arc<SecretCache>);

impl Secrets {
    /// Takes secrets from a chain of providers.
    #[must_use]
    pub fn new(chain: SecretChain, options: SecretsOptions) -> Self {
        Self(Arc::new(SecretCache::new(chain, options)))
    }

    /// Forgets a value, as after a rotation: calls that come in from now on get one that is asked for from now on.
    ///
    /// # Cancel safety
    /// Cancel-safe: the value is out of use as soon as the future is first polled.
    pub async fn invalidate(&self, tenant: &TenantId, secret: &SecretRef) {
        self.0.invalidate(tenant, secret).await;
    }
}

impl MiddlewareFactory for Secrets {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::Secrets]
    }

    fn admit(&self, _spec: &FunctionSpec, settings: &Settings<'_>) -> Vec<Violation> {
        if settings.value().is_null() {
            return Vec::new();
        }
        vec![Violation::new(settings.pointer(""), "this middleware takes no settings")]
    }

    fn build(&self, revision: &Arc<Revision>, _settings: &serde_json::Value) -> Result<Option<Arc<dyn Middleware>>> {
        if revision.spec.secrets.is_empty() {
            return Ok(None);
        }
        let needed = Needed::new(&revision.spec.secrets);
        Ok(Some(Arc::new(Injection { cache: Arc::clone(&self.0), needed })))
    }
}

/// The secrets that a revision lists, each once, in the order of the specification.
#[derive(Debug)]
struct Needed(Vec<(SecretRef, bool)>);

impl Needed {
    fn new(bindings: &[SecretBinding]) -> Self {
        let mut needed: Vec<(SecretRef, bool)> = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let in_env = matches!(binding.deliver, SecretDelivery::Env(_));
            match needed.iter_mut().find(|(name, _)| *name == binding.secret) {
                Some((_, other)) => *other |= in_env,
                None => needed.push((binding.secret.clone(), in_env)),
            }
        }
        Self(needed)
    }

    /// The values for one call. Nothing is asked for where the call names a secret that is not listed.
    async fn resolve(
        &self,
        cache: &SecretCache,
        cx: &CallContext,
        narrowed: Option<&BTreeSet<SecretRef>>,
    ) -> Result<Vec<(SecretRef, Secret)>> {
        if let Some(unlisted) =
            narrowed.and_then(|wanted| wanted.iter().find(|wanted| !self.0.iter().any(|(name, _)| name == *wanted)))
        {
            let message = "the function's specification does not list this secret";
            return Err(named(Error::new(ErrorKind::InvalidArgument, message), unlisted));
        }
        let wanted = self.0.iter().filter(|(name, _)| narrowed.is_none_or(|wanted| wanted.contains(name)));
        let resolved = wanted.map(async |(name, in_env)| {
            // The function has not seen this attempt, whatever the provider's error says.
            let value = cache.get(cx, name).await.map_err(|error| error.with_delivery(Delivery::NotSent))?;
            if *in_env && value.expose().contains(&0) {
                let message = "the secret holds a NUL byte, which an environment variable can't";
                return Err(named(Error::new(ErrorKind::Misconfigured, message), name));
            }
            Ok((name.clone(), value))
        });
        try_join_all(resolved).await
    }
}

fn named(error: Error, secret: &SecretRef) -> Error {
    error.with_context("secret", secret.as_str())
}

/// Injects the secrets of one revision.
struct Injection {
    cache: Arc<SecretCache>,
    needed: Needed,
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injection").field("needed", &self.needed.0).finish_non_exhaustive()
    }
}

#[async_trait]
impl Middleware for Injection {
    fn name(&self) -> &str {
        NAME
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::Secrets]
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let started = Instant::now();
        let resolved = self.needed.resolve(&self.cache, &call.cx, call.request.secrets.as_ref()).await;
        call.state().add_time(TimedPhase::Prepare, started.elapsed());
        for (name, value) in resolved? {
            call.inject_secret(&name, &value)?;
        }
        next.run(call).await
    }
}

#[cfg(test)]
mod tests;
