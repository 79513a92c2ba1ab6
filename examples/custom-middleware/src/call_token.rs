//! Middleware that gets each attempt ready.

use std::fmt;

use async_trait::async_trait;
use function_gateway::{Error, ErrorKind, Invocation, InvokeResponse, Middleware, Next, Result, Secret, Stage};
use http::{HeaderName, HeaderValue};

/// The header in which a function gets its token.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-call-token");

type Mint = dyn Fn(&Invocation) -> Secret + Send + Sync;

/// Gives the function a token, anew for each attempt. The token is in no record, log or error.
pub struct CallToken(Box<Mint>);

impl CallToken {
    /// Has tokens minted by a function of the host's.
    #[must_use]
    pub fn new(mint: impl Fn(&Invocation) -> Secret + Send + Sync + 'static) -> Self {
        Self(Box::new(mint))
    }
}

impl fmt::Debug for CallToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallToken")
    }
}

#[async_trait]
impl Middleware for CallToken {
    fn name(&self) -> &str {
        "call-token"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let token = (self.0)(&call);
        // Before it goes anywhere: from here on nothing that is stored or logged of the call shows it.
        call.state().redactor().add(&token);
        let mut header = HeaderValue::from_bytes(token.expose())
            .map_err(|_| Error::new(ErrorKind::Internal, "the minted token does not fit into a header"))?;
        header.set_sensitive(true);
        call.request.headers.insert(TOKEN_HEADER, header);
        next.run(call).await
    }
}
