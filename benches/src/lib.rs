//! What the benchmarks share: a driver that does nothing, middleware that passes through, and how figures are taken.
//!
//! Machines are noisy, so what is compared is measured in turns within one run, and medians are given.

pub mod sql;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    BoxStream, CallContext, CustomWorkload, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities,
    DriverInfo, DriverRef, DriverRequest, EngineInfo, FaasDriver, FunctionManager, FunctionName, FunctionRef,
    FunctionSpec, Gateway, GatewayBuilder, GatewayId, Invocation, InvokeResponse, ListScope, Middleware, Next,
    Principal, Protocol, Result, Revision, Stage, Violation,
};

/// Answers every call with its own payload, at once.
#[derive(Debug)]
pub struct NoopDriver(DriverInfo);

impl Default for NoopDriver {
    fn default() -> Self {
        Self(DriverInfo::new("noop", "nothing", vec![Protocol::exec()]))
    }
}

#[async_trait]
impl FaasDriver for NoopDriver {
    fn info(&self) -> &DriverInfo {
        &self.0
    }

    fn capabilities(&self, _: &Protocol) -> DriverCapabilities {
        DriverCapabilities::NONE.with(|capabilities| capabilities.custom = true)
    }

    async fn probe(&self, _: &CallContext) -> Result<EngineInfo> {
        Ok(EngineInfo::new("noop", "1"))
    }

    async fn check(&self, _: &CallContext, _: &FunctionSpec) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _: &CallContext, _: &DriverRef, _: DeployRequest) -> Result<DeploymentStatus> {
        Ok(DeploymentStatus::ready())
    }

    async fn status(&self, _: &CallContext, _: &DriverRef) -> Result<DeploymentStatus> {
        Ok(DeploymentStatus::ready())
    }

    async fn remove(&self, _: &CallContext, _: &DriverRef) -> Result<()> {
        Ok(())
    }

    fn list<'a>(&'a self, _: &'a CallContext, _: ListScope) -> BoxStream<'a, Result<Deployment>> {
        Box::pin(futures_util::stream::empty())
    }

    async fn invoke(&self, _: &CallContext, _: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        Ok(InvokeResponse::new(http::StatusCode::OK, request.body))
    }

    async fn shutdown(&self, _: Instant) -> Result<()> {
        Ok(())
    }
}

/// Hands every call on.
#[derive(Debug)]
pub struct PassThrough;

#[async_trait]
impl Middleware for PassThrough {
    fn name(&self) -> &str {
        "pass-through"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        next.run(call).await
    }
}

/// Who calls in the benchmarks.
///
/// # Panics
/// Never: the names are valid.
#[must_use]
pub fn caller() -> CallContext {
    CallContext::new(Principal::new(parse("acme"), parse("ada")))
}

/// A name that is known to be valid.
///
/// # Panics
/// Where it is not.
#[must_use]
#[expect(clippy::panic, reason = "the benchmarks' own constants")]
pub fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not valid"))
}

/// A function for [`NoopDriver`].
#[must_use]
pub fn noop_spec() -> FunctionSpec {
    FunctionSpec::new(parse("noop"), CustomWorkload::new("noop", Vec::<u8>::new().into()))
}

/// A gateway over [`NoopDriver`] and a store in memory, with one function.
///
/// # Errors
/// Those of the gateway.
pub async fn noop_gateway(change: impl FnOnce(GatewayBuilder) -> GatewayBuilder) -> Result<(Gateway, FunctionRef)> {
    let builder = Gateway::builder()
        .store(Arc::new(MemoryStore::new(parse("bench"))))
        .driver(parse("noop"), Arc::new(NoopDriver::default()))
        .without_reconciler();
    let gateway = change(builder).build().await?;
    let name: FunctionName = parse("noop");
    gateway.create(&caller(), &name, noop_spec()).await?;
    Ok((gateway, name.into()))
}

/// With five middleware that pass calls through, and what nobody can do without: record and deadline.
#[must_use]
pub fn five_pass_through(builder: GatewayBuilder) -> GatewayBuilder {
    (0..5).fold(builder.without_observe(), |builder, _| builder.middleware(Arc::new(PassThrough)))
}

/// The middle one of some figures.
#[must_use]
pub fn median(mut figures: Vec<Duration>) -> Duration {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// How many times as long as `base` something took: the middle one of the ratios of each round.
#[must_use]
pub fn ratio(times: &[Duration], base: &[Duration]) -> f64 {
    let mut ratios: Vec<_> =
        times.iter().zip(base).map(|(time, base)| time.as_secs_f64() / base.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}
