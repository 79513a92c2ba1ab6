//! What is sent to an address about the end of an invocation.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{CallContext, InvocationId, Result, Secret, Timestamp};

/// A document about the end of an invocation, for an address that its function names (`on_success`, `on_failure`).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Callback {
    /// Identifies the message: the same for each attempt to deliver it.
    pub id: InvocationId,
    /// The address.
    pub url: String,
    /// When this attempt is made.
    pub at: Timestamp,
    /// The document, JSON.
    pub body: Bytes,
    /// What it is to be signed with.
    pub secret: Option<Secret>,
}

impl Callback {
    /// A document that is not signed.
    #[must_use]
    pub fn new(id: InvocationId, url: impl Into<String>, at: Timestamp, body: impl Into<Bytes>) -> Self {
        Self { id, url: url.into(), at, body: body.into(), secret: None }
    }

    /// Signs the document.
    #[must_use]
    pub fn with_secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }
}

/// Delivers [`Callback`]s.
///
/// It has to keep to what the host allows: an address is a developer's choice, and what answers it may be inside the
/// host's own network.
#[async_trait]
pub trait CallbackSender: fmt::Debug + Send + Sync + 'static {
    /// What is wrong with an address, where it can be seen at once; asked when a function is created or updated.
    fn check(&self, url: &str) -> Option<String>;

    /// Delivers it once. It is tried again where the error is transient, by the policy of the function that it tells of.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) where it can't be delivered now; [`PermissionDenied`](crate::ErrorKind::PermissionDenied)
    /// where it must not be; [`Misconfigured`](crate::ErrorKind::Misconfigured) where its receiver will not take it, or it can't be signed.
    async fn send(&self, cx: &CallContext, callback: Callback) -> Result<()>;
}
