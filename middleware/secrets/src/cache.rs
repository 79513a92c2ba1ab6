//! Values between calls: bounded in number and time, asked for once however many calls wait.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use function_gateway_core::{CallContext, Error, Result, Secret, SecretChain, SecretRef, TenantId};
use moka::future::Cache;
use moka::ops::compute::Op;
use tokio::time::Instant;

use crate::SecretsOptions;

type Key = (TenantId, SecretRef);

#[derive(Clone)]
struct Fetched {
    value: Secret,
    /// Taken before the provider was asked, so that a value is never taken for younger than it is.
    asked: Instant,
}

/// Asks a chain of providers, and keeps the answers for a time.
///
/// The age of a value is checked here, on tokio's clock. The cache drops old values by a clock of its own as well, but
/// that only frees their memory.
pub(crate) struct SecretCache {
    chain: SecretChain,
    options: SecretsOptions,
    values: Cache<Key, Fetched>,
    /// When a value was last invalidated. Holds nothing older than the time to live: what was asked for before is out
    /// of use by then anyway.
    invalidated: Mutex<HashMap<Key, Instant>>,
}

impl SecretCache {
    pub(crate) fn new(chain: SecretChain, options: SecretsOptions) -> Self {
        let values = Cache::builder().max_capacity(options.max_cached).time_to_live(options.ttl.min(MAX_TTL)).build();
        Self { chain, options, values, invalidated: Mutex::default() }
    }

    /// A value for a call of its context's tenant.
    pub(crate) async fn get(&self, cx: &CallContext, secret: &SecretRef) -> Result<Secret> {
        let came_in = Instant::now();
        let key: Key = (cx.tenant().clone(), secret.clone());
        if let Some(fetched) = self.values.get(&key).await
            && self.is_fresh(&key, &fetched)
        {
            return Ok(fetched.value);
        }
        loop {
            let drop_stale = |entry: Option<moka::Entry<Key, Fetched>>| {
                let stale = entry.is_some_and(|entry| !self.is_fresh(&key, entry.value()));
                std::future::ready(if stale { Op::Remove } else { Op::Nop })
            };
            self.values.entry_by_ref(&key).and_compute_with(drop_stale).await;
            let ask = async {
                let asked = Instant::now();
                let value = self.chain.require(&shared_context(cx), secret).await?.secret;
                Ok(Fetched { value, asked })
            };
            let fetched =
                self.values.try_get_with_by_ref(&key, ask).await.map_err(|error: Arc<Error>| (*error).clone())?;
            // A question that another call asked before this one came in may have been answered too late, or before
            // the value was invalidated. The next one is asked later than that, so this ends.
            if fetched.asked >= came_in || self.is_fresh(&key, &fetched) {
                return Ok(fetched.value);
            }
        }
    }

    pub(crate) async fn invalidate(&self, tenant: &TenantId, secret: &SecretRef) {
        let key = (tenant.clone(), secret.clone());
        let now = Instant::now();
        {
            let mut invalidated = self.invalidated();
            invalidated.retain(|_, at| now.saturating_duration_since(*at) < self.options.ttl);
            invalidated.insert(key.clone(), now);
        }
        self.values.invalidate(&key).await;
    }

    fn is_fresh(&self, key: &Key, fetched: &Fetched) -> bool {
        fetched.asked.elapsed() < self.options.ttl && self.invalidated().get(key).is_none_or(|at| *at < fetched.asked)
    }

    fn invalidated(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.invalidated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache takes no longer time than 1000 years.
const MAX_TTL: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);

/// The context in which a provider is asked. Other calls wait for the same answer, so neither the deadline nor the
/// cancellation of the first one applies to it; each call bounds its own wait by dropping it.
fn shared_context(cx: &CallContext) -> CallContext {
    let shared = CallContext::new(cx.principal().clone()).with_origin(cx.origin());
    match cx.trace() {
        Some(trace) => shared.with_trace(trace),
        None => shared,
    }
}

impl fmt::Debug for SecretCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretCache")
            .field("chain", &self.chain)
            .field("options", &self.options)
            .field("cached", &self.values.entry_count())
            .finish_non_exhaustive()
    }
}
