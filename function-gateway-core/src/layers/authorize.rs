//! Asks the authorizer whether the principal may call the function.

use std::sync::Arc;

use async_trait::async_trait;

use crate::body::by_deadline;
use crate::{
    Action, Authorizer, Decision, Error, ErrorKind, Invocation, InvokeResponse, Middleware, Next, Resource, Result,
    Stage,
};

#[derive(Debug)]
pub(crate) struct Authorize(pub(crate) Arc<dyn Authorizer>);

#[async_trait]
impl Middleware for Authorize {
    fn name(&self) -> &str {
        "authorize"
    }

    fn stage(&self) -> Stage {
        Stage::Authorize
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let revision = call.revision();
        let resource = Resource::function(&revision.key.tenant, &revision.key.name, Some(&revision.owner));
        let decision =
            by_deadline(call.cx.deadline(), self.0.authorize(&call.cx, Action::Invoke, resource).as_mut()).await?;
        match decision {
            Decision::Allow => next.run(call).await,
            Decision::Deny => Err(Error::new(ErrorKind::PermissionDenied, "the principal may not do this: invoke")),
        }
    }
}
