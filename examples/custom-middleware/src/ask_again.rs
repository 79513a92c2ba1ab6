//! Middleware that hands a call on more than once.

use async_trait::async_trait;
use function_gateway::{Invocation, InvokeResponse, Middleware, Next, Result, Stage};

/// Asks an idempotent function once more where it succeeded with an empty answer.
#[derive(Debug, Clone, Copy)]
pub struct AskAgain;

#[async_trait]
impl Middleware for AskAgain {
    fn name(&self) -> &str {
        "ask-again"
    }

    fn stage(&self) -> Stage {
        Stage::Validate
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        // The clone is made before the rest of the chain changes the call. A streamed payload can be read once only.
        let again = call.try_clone().filter(|call| call.revision().spec.idempotent);
        let response = next.run(call).await?;
        match again {
            Some(again) if response.outcome.is_success() && response.body.is_empty() => next.run(Box::new(again)).await,
            _ => Ok(response),
        }
    }
}
