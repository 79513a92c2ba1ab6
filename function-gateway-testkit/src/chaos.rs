//! Wraps a driver and injects faults at random, repeatable by a seed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities, DriverInfo,
    DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionSpec, GatewayId, InvokeResponse,
    ListScope, LogLine, LogQuery, Protocol, Result, Revision, ScaleRequest, Violation,
};
use futures_util::{StreamExt as _, stream};

use crate::Op;

/// How often which fault strikes, as probabilities from 0 to 1. The default is never.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ChaosRates {
    /// A transient error without an effect: [`Delivery::NotSent`].
    pub before: f64,
    /// The effect, then a transient error in place of the answer: [`Delivery::Unknown`].
    pub after: f64,
    /// [`ErrorKind::NotDeployed`] without an effect; for `invoke` only.
    pub not_deployed: f64,
    /// A delay before, up to `max_delay`, by the runtime's clock.
    pub delay: f64,
    /// The longest delay.
    pub max_delay: Duration,
}

impl ChaosRates {
    /// Each kind of fault at the same rate, with delays up to 20 ms.
    #[must_use]
    pub fn all(rate: f64) -> Self {
        Self { before: rate, after: rate, not_deployed: rate, delay: rate, max_delay: Duration::from_millis(20) }
    }

    /// Changes the rates, since the struct can't be written out outside this crate.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// What happens to one call of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Fate {
    delay: Option<Duration>,
    before: bool,
    not_deployed: bool,
    after: bool,
}

/// A driver that fails at random.
///
/// What befalls the `n`th call of an operation follows from the seed, the operation and `n` alone, so that a run can be
/// repeated as far as its order of calls can. The seed is printed to standard error, which a failing test shows.
#[derive(Debug)]
pub struct ChaosDriver {
    inner: Arc<dyn FaasDriver>,
    seed: u64,
    rates: ChaosRates,
    own_rates: HashMap<Op, ChaosRates>,
    calls: Mutex<HashMap<Op, u64>>,
    healed: AtomicBool,
}

impl ChaosDriver {
    /// Wraps a driver, with the same rates for every operation.
    #[must_use]
    pub fn new(inner: Arc<dyn FaasDriver>, seed: u64, rates: ChaosRates) -> Self {
        eprintln!("ChaosDriver around {}: seed {seed}", inner.info().kind);
        Self { inner, seed, rates, own_rates: HashMap::new(), calls: Mutex::default(), healed: AtomicBool::new(false) }
    }

    /// Sets the rates of one operation.
    #[must_use]
    pub fn with_rates(mut self, op: Op, rates: ChaosRates) -> Self {
        self.own_rates.insert(op, rates);
        self
    }

    /// Injects nothing from now on, so that a test can see everything settle. What has begun already ends as it was to.
    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    /// The seed, to repeat a run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn fate(&self, op: Op) -> Fate {
        if self.healed.load(Ordering::Relaxed) {
            return Fate::default();
        }
        let number = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let number = calls.entry(op).or_default();
            *number += 1;
            *number
        };
        // Within one build of the standard library this hash is the same for the same values.
        let mut hasher = DefaultHasher::new();
        (self.seed, op, number).hash(&mut hasher);
        let mut random = fastrand::Rng::with_seed(hasher.finish());
        let rates = self.own_rates.get(&op).unwrap_or(&self.rates);
        // Every draw is made each time, so that one rate does not change what the others do.
        let mut strikes = |rate: f64| random.f64() < rate;
        let (delay, before, not_deployed, after) =
            (strikes(rates.delay), strikes(rates.before), strikes(rates.not_deployed), strikes(rates.after));
        let part = random.f64();
        let not_deployed = not_deployed && op == Op::Invoke;
        Fate { delay: delay.then(|| rates.max_delay.mul_f64(part)), before, not_deployed, after }
    }

    async fn operate<T>(&self, op: Op, effect: impl Future<Output = Result<T>>) -> Result<T> {
        let fate = self.fate(op);
        if let Some(delay) = fate.delay {
            tokio::time::sleep(delay).await;
        }
        if fate.before {
            return Err(injected(Delivery::NotSent));
        }
        if fate.not_deployed {
            return Err(Error::new(ErrorKind::NotDeployed, "chaos: the engine does not hold this function"));
        }
        let result = effect.await?;
        if fate.after { Err(injected(Delivery::Unknown)) } else { Ok(result) }
    }
}

fn injected(delivery: Delivery) -> Error {
    let message = match delivery {
        Delivery::NotSent => "chaos: the engine is out of reach",
        _ => "chaos: the engine's answer was lost",
    };
    Error::new(ErrorKind::Unavailable, message).with_delivery(delivery)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl FaasDriver for ChaosDriver {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        self.inner.capabilities(protocol)
    }

    async fn probe(&self, cx: &CallContext) -> Result<EngineInfo> {
        self.operate(Op::Probe, self.inner.probe(cx)).await
    }

    async fn check(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        self.operate(Op::Check, self.inner.check(cx, spec)).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        self.inner.reference(gateway, revision)
    }

    async fn deploy(&self, cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        self.operate(Op::Deploy, self.inner.deploy(cx, target, request)).await
    }

    async fn status(&self, cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        self.operate(Op::Status, self.inner.status(cx, target)).await
    }

    async fn remove(&self, cx: &CallContext, target: &DriverRef) -> Result<()> {
        self.operate(Op::Remove, self.inner.remove(cx, target)).await
    }

    /// A fault before is an error in place of the list, one after is an error behind its items.
    fn list<'a>(&'a self, cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listed = async move {
            let mut items: Vec<_> = Vec::new();
            let result = self
                .operate(Op::List, async {
                    items = self.inner.list(cx, scope).collect().await;
                    Ok(())
                })
                .await;
            items.extend(result.err().map(Err));
            stream::iter(items)
        };
        Box::pin(stream::once(listed).flatten())
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        self.operate(Op::Invoke, self.inner.invoke(cx, target, request)).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.operate(Op::Shutdown, self.inner.shutdown(deadline)).await
    }

    async fn scale(&self, cx: &CallContext, target: &DriverRef, request: ScaleRequest) -> Result<()> {
        self.operate(Op::Scale, self.inner.scale(cx, target, request)).await
    }

    async fn logs<'a>(
        &'a self,
        cx: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        self.operate(Op::Logs, self.inner.logs(cx, target, query)).await
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::Principal;

    use super::*;
    use crate::ScriptedDriver;

    fn fates(seed: u64) -> Vec<Fate> {
        let driver = ChaosDriver::new(Arc::new(ScriptedDriver::new()), seed, ChaosRates::all(0.3));
        (0..64).map(|_| driver.fate(Op::Invoke)).collect()
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let seven = fates(7);
        assert!(seven.iter().any(|fate| fate.before) && seven.iter().any(|fate| fate.after));
        assert!(seven.iter().any(|fate| fate.not_deployed) && seven.iter().any(|fate| fate.delay.is_some()));
    }

    #[tokio::test]
    async fn a_healed_driver_fails_no_more() {
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let always = ChaosRates::default().with(|rates| rates.before = 1.0);
        let chaos = ChaosDriver::new(Arc::new(ScriptedDriver::new()), 1, always);
        chaos.probe(&cx).await.unwrap_err();
        chaos.heal();
        chaos.probe(&cx).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_is_lost_after_the_effect_and_not_before() {
        let scripted = Arc::new(ScriptedDriver::new());
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let target = DriverRef::new("x");
        for (rates, delivery, reached) in [
            (ChaosRates::default().with(|rates| rates.before = 1.0), Delivery::NotSent, 0),
            (ChaosRates::default().with(|rates| rates.after = 1.0), Delivery::Unknown, 1),
        ] {
            let chaos = ChaosDriver::new(Arc::clone(&scripted) as _, 1, rates);
            let error = chaos.remove(&cx, &target).await.unwrap_err();
            assert!(error.is_transient());
            assert_eq!(error.delivery(), delivery);
            assert_eq!(scripted.engine().count(Op::Remove), reached);
            let gateway = GatewayId::generate();
            let listed: Vec<_> = chaos.list(&cx, ListScope::All(gateway)).collect().await;
            assert_eq!(listed.len(), 1);
            assert!(listed[0].is_err());
        }
    }
}
