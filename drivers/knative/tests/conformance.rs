//! Holds the driver to the promises of a driver, against a fake of the API server, of Knative and of the ingress.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
mod fake;

use std::sync::Arc;

use async_trait::async_trait;
use fake::{Fake, Options};
use function_gateway_core::{DriverRef, FaasDriver, FunctionSpec};
use function_gateway_knative::{Knative, KnativeConfig, KnativeNamespaces};
use function_gateway_testkit::{Behaviour, DriverHarness};

struct Harness {
    fake: Fake,
    config: KnativeConfig,
}

impl Harness {
    async fn new() -> Self {
        let fake = Fake::start(Options::default()).await;
        let config = fake.config();
        Self { fake, config }
    }

    async fn per_tenant() -> Self {
        let mut harness = Self::new().await;
        let rule = KnativeNamespaces::PerTenant { prefix: "tenant-".to_owned() };
        harness.config = harness.config.with_namespaces(rule);
        harness.fake.add_namespace("tenant-conformance");
        harness
    }

    fn open(&self) -> Arc<dyn FaasDriver> {
        Arc::new(Knative::new(self.config.clone()).unwrap())
    }
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        self.open()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        fake::behaving("lab.local/fn:1", behaviour)
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(self.open())
    }

    async fn running(&self, target: &DriverRef) -> Option<usize> {
        let parts: Vec<_> = target.as_str().split('/').collect();
        Some(self.fake.running(&format!("{}-g{}", parts[6], parts[3])))
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // A function may go on when its caller is gone; it has its secrets when it is deployed; the cluster's log is that of an
        // instance, not of a call.
        &[
            "a_deadline_stops_the_function",
            "dropping_a_call_stops_the_function",
            "dropping_an_answer_stops_the_function",
            "secrets_at_each_call_reach_the_function",
            "shutdown_stops_calls_at_its_deadline",
            "the_log_of_a_call_is_told",
        ]
    }
}

mod in_one_namespace {
    use super::Harness;

    function_gateway_testkit::driver_conformance!(Harness::new().await);
}

mod in_a_namespace_for_each_tenant {
    use super::Harness;

    function_gateway_testkit::driver_conformance!(Harness::per_tenant().await);
}
