//! Holds the driver to the promises of a driver, against a fake of the OpenFaaS gateway with either provider.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

#[cfg(test)]
mod fake;

use std::sync::Arc;

use async_trait::async_trait;
use fake::{Fake, Flavour, Options};
use function_gateway_core::{DriverRef, FaasDriver, FunctionSpec};
use function_gateway_openfaas::{OpenFaas, OpenFaasConfig};
use function_gateway_testkit::{Behaviour, DriverHarness};

struct Harness(Fake);

impl Harness {
    async fn new(flavour: Flavour) -> Self {
        Self(Fake::start(Options::new(flavour)).await)
    }

    fn open(&self) -> Arc<dyn FaasDriver> {
        Arc::new(OpenFaas::new(OpenFaasConfig::new(&self.0.url)).unwrap())
    }
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        self.open()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        fake::behaving("lab/fn:v1", behaviour)
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(self.open())
    }

    async fn running(&self, target: &DriverRef) -> Option<usize> {
        Some(self.0.running(target.as_str().rsplit('/').next()?))
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // A function may go on when its caller is gone; it has its secrets when it is deployed; the engine's log is that of a
        // function, not of a call.
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

mod with_faas_netes {
    use super::{Flavour, Harness};

    function_gateway_testkit::driver_conformance!(Harness::new(Flavour::Netes).await);
}

mod with_faasd {
    use super::{Flavour, Harness};

    function_gateway_testkit::driver_conformance!(Harness::new(Flavour::Faasd).await);
}
