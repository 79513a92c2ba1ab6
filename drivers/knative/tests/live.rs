//! The conformance suite against a real cluster with Knative Serving.
//!
//! Needs `FUNCTION_GATEWAY_TEST_KNATIVE_KUBECONFIG`, `FUNCTION_GATEWAY_TEST_KNATIVE_NAMESPACE`, `FUNCTION_GATEWAY_TEST_KNATIVE_INGRESS` and
//! `FUNCTION_GATEWAY_TEST_KNATIVE_IMAGE`. `docs/drivers/knative.md` says what the image has to do. Run with
//! `cargo test -p function-gateway-knative --test live -- --ignored on_knative --test-threads 4`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::{FaasDriver, FunctionSpec};
use function_gateway_knative::{Knative, KnativeConfig};
use function_gateway_testkit::{Behaviour, DriverHarness};
use serde_json::json;

fn setting(name: &str) -> String {
    let name = format!("FUNCTION_GATEWAY_TEST_KNATIVE_{name}");
    std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a real cluster with Knative"))
}

struct Live {
    image: String,
}

impl Live {
    fn new() -> Self {
        Self { image: setting("IMAGE") }
    }
}

fn open() -> Arc<dyn FaasDriver> {
    let config: KnativeConfig = serde_json::from_value(json!({
        "access": {"kubeconfig": {"path": setting("KUBECONFIG")}},
        "namespaces": {"shared": setting("NAMESPACE")},
        "routing": {"ingress": {"url": setting("INGRESS")}},
    }))
    .unwrap();
    Arc::new(Knative::new(config).unwrap())
}

#[async_trait]
impl DriverHarness for Live {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        open()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        fake::behaving(&self.image, behaviour)
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(open())
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // As with the fake, and those that need to see what runs.
        &[
            "a_deadline_stops_the_function",
            "dropping_a_call_stops_the_function",
            "dropping_an_answer_stops_the_function",
            "removing_a_target_stops_its_calls",
            "secrets_at_each_call_reach_the_function",
            "shutdown_stops_calls_at_its_deadline",
            "the_log_of_a_call_is_told",
        ]
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}

mod on_knative {
    use super::Live;

    function_gateway_testkit::driver_conformance!(
        Live::new(),
        #[ignore = "needs a real cluster: FUNCTION_GATEWAY_TEST_KNATIVE_KUBECONFIG, _NAMESPACE, _INGRESS and _IMAGE"]
    );
}
