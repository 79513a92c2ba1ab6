//! Middleware that is the same for every function.

use async_trait::async_trait;
use function_gateway::{Error, ErrorKind, Invocation, InvokeResponse, Middleware, Next, Result, Stage, Violation};
use http::header::CONTENT_TYPE;

/// Refuses payloads whose content type is not on a list. An empty payload needs none.
#[derive(Debug)]
pub struct ContentTypes {
    allowed: Vec<String>,
}

impl ContentTypes {
    /// Lets payloads of these media types pass, whatever their parameters.
    #[must_use]
    pub fn only<I: IntoIterator<Item = S>, S: Into<String>>(allowed: I) -> Self {
        Self { allowed: allowed.into_iter().map(Into::into).collect() }
    }

    fn allows(&self, content_type: &str) -> bool {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(media_type))
    }

    /// What is wrong with a call's payload, if something is.
    fn refusal(&self, call: &Invocation) -> Option<String> {
        let content_type = call.request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let passes = call.request.body.is_empty() || content_type.is_some_and(|content_type| self.allows(content_type));
        (!passes).then(|| format!("the payload's content type has to be {}", self.allowed.join(" or ")))
    }
}

#[async_trait]
impl Middleware for ContentTypes {
    fn name(&self) -> &str {
        "content-types"
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    async fn check(&self, call: &Invocation) -> Result<Vec<Violation>> {
        Ok(self.refusal(call).map(|reason| Violation::new("", reason)).into_iter().collect())
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        match self.refusal(&call) {
            Some(reason) => Err(Error::new(ErrorKind::InvalidInput, reason)),
            None => next.run(call).await,
        }
    }
}
