//! Secrets: values that never show themselves, where they come from, and how they are kept out of what is stored.

mod providers;
mod redact;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretSlice};

use crate::{CallContext, Error, ErrorKind, Result, SecretRef, TenantId};

pub use providers::{DirectorySecrets, EnvironmentSecrets, MemorySecrets};
pub use redact::{REDACTED, Redactor, StreamRedactor};

/// The value of a secret. It has no `Display` and no serialization, its `Debug` says nothing, and its memory is
/// wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Secret(Arc<SecretSlice<u8>>);

impl Secret {
    /// Takes a value. The caller's own copies of it are the caller's to wipe.
    #[must_use]
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(SecretSlice::from(value.into())))
    }

    /// The value itself. Look at every call of this in a review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// The value as text.
    ///
    /// # Errors
    /// [`ErrorKind::Misconfigured`] where it is not UTF-8; the error does not show the value.
    pub fn expose_str(&self) -> Result<&str> {
        std::str::from_utf8(self.expose())
            .map_err(|_| Error::new(ErrorKind::Misconfigured, "the secret is not valid UTF-8, and text is needed here"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// A secret as a provider gives it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProvidedSecret {
    /// The value.
    pub secret: Secret,
    /// Changes when the value does; tells nothing of it.
    pub version: String,
}

impl ProvidedSecret {
    /// A value and its version.
    #[must_use]
    pub fn new(secret: Secret, version: impl Into<String>) -> Self {
        Self { secret, version: version.into() }
    }
}

/// Where secrets come from.
#[async_trait]
pub trait SecretProvider: fmt::Debug + Send + Sync + 'static {
    /// The newest value of a tenant's secret; `Ok(None)` where this provider does not have it: the next one is asked.
    ///
    /// # Errors
    /// Where the provider can't answer. A provider that is out of reach answers
    /// [`ErrorKind::DependencyUnavailable`]; no further provider is asked then, since a secret of the same name there
    /// would be the wrong one.
    ///
    /// # Cancel safety
    /// Dropping the future must leave nothing behind.
    async fn get(&self, cx: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>>;
}

/// Asks providers one after another, and takes the first value.
#[derive(Debug, Clone, Default)]
pub struct SecretChain(Vec<Arc<dyn SecretProvider>>);

impl SecretChain {
    /// A chain of providers, in the order in which they are asked.
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn SecretProvider>>) -> Self {
        Self(providers)
    }

    /// Whether there is no provider to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a secret that a function lists.
    ///
    /// # Errors
    /// [`ErrorKind::Misconfigured`] where no provider has it, or the error of the provider that could not answer.
    pub async fn require(&self, cx: &CallContext, secret: &SecretRef) -> Result<ProvidedSecret> {
        let named = |error: Error| error.with_context("secret", secret.as_str());
        match self.get(cx, cx.tenant(), secret).await.map_err(named)? {
            Some(provided) => Ok(provided),
            None => Err(named(Error::new(ErrorKind::Misconfigured, "a secret that the function lists does not exist"))),
        }
    }
}

#[async_trait]
impl SecretProvider for SecretChain {
    async fn get(&self, cx: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        for provider in &self.0 {
            if let Some(provided) = provider.get(cx, tenant, secret).await? {
                return Ok(Some(provided));
            }
        }
        Ok(None)
    }
}

/// A secret's value and the environment variable in which it reaches the function.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SecretVariable {
    /// The variable's name.
    pub name: String,
    /// The value.
    pub secret: Secret,
}

impl SecretVariable {
    /// A variable and its value.
    #[must_use]
    pub fn new(name: impl Into<String>, secret: Secret) -> Self {
        Self { name: name.into(), secret }
    }
}
