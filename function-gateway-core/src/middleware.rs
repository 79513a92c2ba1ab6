//! What an author of middleware implements, and the chain that calls pass through.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::{Error, ErrorKind, FunctionSpec, Invocation, InvokeResponse, Result, Revision, SpecField, Violation};

/// Where in the chain a middleware stands. The order is that of the variants, the first one outermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Sees everything, refusals included: traces, metrics.
    Observe,
    /// Decides whether the principal may call.
    Authorize,
    /// Keeps a record. What is refused further out is not recorded.
    Record,
    /// Bounds the call as a whole.
    Overall,
    /// Bounds how many calls are let in.
    Limit,
    /// Checks the payload, and on the way back the result.
    Validate,
    /// Tries again.
    Retry,
    /// Bounds one attempt.
    Attempt,
    /// Gets one attempt ready: secrets, headers.
    Prepare,
}

impl Stage {
    /// Whether a pipeline holds at most one middleware of this stage.
    #[must_use]
    pub fn is_unique(self) -> bool {
        matches!(self, Self::Record | Self::Overall | Self::Retry | Self::Attempt)
    }
}

/// Which bodies a middleware has to read whole. A function whose pipeline reads bodies can't stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BodyAccess {
    /// None: streams pass.
    #[default]
    None,
    /// The payload.
    Request,
    /// The result.
    Response,
    /// Both.
    Both,
}

/// A step that calls pass through on their way to the driver, and answers on their way back.
///
/// ```
/// use async_trait::async_trait;
/// use function_gateway_core::{Invocation, InvokeResponse, Middleware, Next, Result, Stage};
///
/// #[derive(Debug)]
/// struct Greeting;
///
/// #[async_trait]
/// impl Middleware for Greeting {
///     fn name(&self) -> &str {
///         "greeting"
///     }
///
///     fn stage(&self) -> Stage {
///         Stage::Prepare
///     }
///
///     async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
///         call.request.headers.insert("x-greeting", http::HeaderValue::from_static("hello"));
///         next.run(call).await
///     }
/// }
/// ```
///
/// # Behaviour
/// - It may answer without calling `next`, and may call it several times (with clones of the call).
/// - The order goes by [`stage`](Self::stage), and by the order of registration within a stage: never by how it is
///   written down.
///
/// # Cancel safety
/// The future is dropped when the caller goes away. State that outlives a call must be right at every `await`.
#[async_trait]
pub trait Middleware: fmt::Debug + Send + Sync + 'static {
    /// The name, for messages and for specifications that choose it.
    fn name(&self) -> &str;

    /// Where it stands.
    fn stage(&self) -> Stage;

    /// Which bodies it has to read whole. Only from the stage [`Validate`](Stage::Validate) on: nothing is read for a call
    /// that is not let in.
    fn body_access(&self) -> BodyAccess {
        BodyAccess::None
    }

    /// The fields of a specification that it honours.
    fn claims(&self) -> &[SpecField] {
        &[]
    }

    /// Handles a call.
    ///
    /// # Errors
    /// Its own, or those of what it calls.
    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>>;

    /// Says what is wrong with the payload of a call, without handing the call on: everything for which
    /// [`handle`](Self::handle) would refuse it as it stands. Asked by
    /// [`check_payload`](crate::FunctionExecutor::check_payload) of each middleware of a revision, in their order and until
    /// one gives an error; no call comes of it. By default nothing is wrong.
    ///
    /// # Behaviour
    /// - The payload is bytes and within the function's limit, unless the function streams. It is as the caller sent it: what
    ///   a middleware further out would make of it is not in it.
    /// - It changes nothing: neither state of the middleware's own, such as counters of calls, nor the call's.
    /// - No violation shows more of the payload than an error of `handle` does.
    ///
    /// # Errors
    /// Where it can't be checked now.
    async fn check(&self, _call: &Invocation) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }
}

/// Makes middleware for one revision of a function, so that schemas and settings are read once.
///
/// A host registers it for all functions, or for those that choose it by name.
pub trait MiddlewareFactory: fmt::Debug + Send + Sync + 'static {
    /// The name by which a specification chooses it.
    fn name(&self) -> &str;

    /// The stage of what it makes.
    fn stage(&self) -> Stage;

    /// The fields of a specification that what it makes honours.
    fn claims(&self) -> &[SpecField] {
        &[]
    }

    /// Says what is wrong with a specification, or with the settings by which it chose this middleware.
    /// [`Settings::pointer`] gives the place of a setting.
    fn admit(&self, spec: &FunctionSpec, settings: &Settings<'_>) -> Vec<Violation>;

    /// Makes the middleware for a revision; `None` where the revision has no use for it.
    ///
    /// # Errors
    /// Where a revision that was admitted can't be served, such as after an upgrade that dropped a feature.
    fn build(&self, revision: &Arc<Revision>, settings: &Value) -> Result<Option<Arc<dyn Middleware>>>;
}

/// The settings by which a specification chose a middleware.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    value: &'a Value,
    at: String,
}

impl<'a> Settings<'a> {
    /// The settings of a middleware that is for all functions: none.
    #[must_use]
    pub fn none() -> Self {
        Self { value: &Value::Null, at: String::new() }
    }

    /// The settings of the middleware that a specification chooses at a position of its list.
    #[must_use]
    pub fn chosen(value: &'a Value, position: usize) -> Self {
        Self { value, at: format!("/middleware/{position}/settings") }
    }

    /// The settings themselves; `null` where there are none.
    #[must_use]
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Where a setting stands in the specification, from its pointer within the settings.
    #[must_use]
    pub fn pointer(&self, within: &str) -> String {
        format!("{}{within}", self.at)
    }
}

/// Where the innermost middleware hands the call on.
#[async_trait]
pub(crate) trait Endpoint: Send + Sync {
    async fn call(&self, call: Box<Invocation>) -> Result<Box<InvokeResponse>>;
}

type Chain<'a> = &'a [Arc<dyn Middleware>];
type Answer<'a> = Pin<Box<dyn Future<Output = Result<Box<InvokeResponse>>> + Send + 'a>>;

/// The rest of the chain, as a middleware sees it.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    chain: &'a [Arc<dyn Middleware>],
    endpoint: &'a dyn Endpoint,
}

impl<'a> Next<'a> {
    pub(crate) fn new(chain: &'a [Arc<dyn Middleware>], endpoint: &'a dyn Endpoint) -> Self {
        Self { chain, endpoint }
    }

    /// Hands the call to the next middleware, or to the driver after the last.
    ///
    /// # Errors
    /// Whatever stopped the call on its way.
    pub fn run(self, call: Box<Invocation>) -> Answer<'a> {
        match self.chain.split_first() {
            Some((first, rest)) => first.handle(call, Self { chain: rest, endpoint: self.endpoint }),
            None => self.endpoint.call(call),
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.chain.iter().map(|middleware| middleware.name())).finish()
    }
}

/// The chain for one revision, sorted by stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pipeline {
    chain: Vec<Arc<dyn Middleware>>,
}

impl Pipeline {
    /// Sorts middleware by stage, keeping the order of registration within a stage.
    pub(crate) fn new(mut chain: Vec<Arc<dyn Middleware>>) -> Result<Self> {
        chain.sort_by_key(|middleware| middleware.stage());
        for middleware in &chain {
            if middleware.stage() <= Stage::Limit && middleware.body_access() != BodyAccess::None {
                let message = format!(
                    "the middleware {:?} reads bodies whole, which are not read before the stage {:?}",
                    middleware.name(),
                    Stage::Validate
                );
                return Err(Error::new(ErrorKind::Misconfigured, message));
            }
        }
        for pair in chain.windows(2) {
            let [one, two] = pair else { continue };
            if one.stage() == two.stage() && one.stage().is_unique() {
                let message = format!(
                    "the middleware {:?} and {:?} both stand at the stage {:?}, which holds one",
                    one.name(),
                    two.name(),
                    one.stage()
                );
                return Err(Error::new(ErrorKind::Misconfigured, message));
            }
        }
        Ok(Self { chain })
    }

    /// The part up to and including a stage, and the part after it.
    pub(crate) fn split_after(&self, stage: Stage) -> (Chain<'_>, Chain<'_>) {
        let at = self.chain.partition_point(|middleware| middleware.stage() <= stage);
        self.chain.split_at_checked(at).unwrap_or((&self.chain, &[]))
    }

    /// All of it, outermost first.
    pub(crate) fn all(&self) -> Chain<'_> {
        &self.chain
    }

    /// The first middleware that has to read a body whole.
    pub(crate) fn body_reader(&self) -> Option<&Arc<dyn Middleware>> {
        self.chain.iter().find(|middleware| middleware.body_access() != BodyAccess::None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAGES: [Stage; 9] = [
        Stage::Observe,
        Stage::Authorize,
        Stage::Record,
        Stage::Overall,
        Stage::Limit,
        Stage::Validate,
        Stage::Retry,
        Stage::Attempt,
        Stage::Prepare,
    ];

    #[derive(Debug)]
    struct Step(String, Stage);

    #[async_trait]
    impl Middleware for Step {
        fn name(&self) -> &str {
            &self.0
        }

        fn stage(&self) -> Stage {
            self.1
        }

        async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
            next.run(call).await
        }
    }

    fn assert_object_safe(_: Option<(&dyn Middleware, &dyn MiddlewareFactory, &dyn crate::FaasDriver)>) {}

    #[test]
    fn author_facing_traits_are_object_safe() {
        assert_object_safe(None);
    }

    proptest! {
        #[test]
        fn the_order_goes_by_stage_and_then_by_registration(picks in proptest::collection::vec(0_usize..9, 0..20)) {
            let steps: Vec<Arc<dyn Middleware>> = picks
                .iter()
                .enumerate()
                .map(|(index, &pick)| Arc::new(Step(format!("{index:03}"), STAGES[pick])) as _)
                .collect();
            let duplicates = STAGES
                .iter()
                .any(|stage| stage.is_unique() && steps.iter().filter(|step| step.stage() == *stage).count() > 1);
            match Pipeline::new(steps) {
                Err(error) => {
                    prop_assert!(duplicates);
                    prop_assert_eq!(error.kind(), ErrorKind::Misconfigured);
                }
                Ok(pipeline) => {
                    prop_assert!(!duplicates);
                    let keys: Vec<_> = pipeline.chain.iter().map(|step| (step.stage(), step.name().to_owned())).collect();
                    prop_assert!(keys.is_sorted());
                    for stage in STAGES {
                        let (outer, inner) = pipeline.split_after(stage);
                        prop_assert_eq!(outer.len() + inner.len(), picks.len());
                        prop_assert!(outer.iter().all(|step| step.stage() <= stage));
                        prop_assert!(inner.iter().all(|step| step.stage() > stage));
                    }
                }
            }
        }
    }
}
