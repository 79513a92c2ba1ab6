//! The conformance suite against a real OpenFaaS gateway.
//!
//! Needs `FUNCTION_GATEWAY_TEST_OPENFAAS_URL`, `FUNCTION_GATEWAY_TEST_OPENFAAS_USER`, `FUNCTION_GATEWAY_TEST_OPENFAAS_PASSWORD` and
//! `FUNCTION_GATEWAY_TEST_OPENFAAS_IMAGE`. `docs/drivers/openfaas.md` says what the image has to do. Run with
//! `cargo test -p function-gateway-openfaas --test live -- --ignored on_openfaas`; the Community Edition takes 15 functions, so add
//! `--test-threads 2` there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code fails by panicking")]

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::{FaasDriver, FunctionSpec, MemorySecrets, Secret};
use function_gateway_openfaas::{OpenFaas, OpenFaasAuth, OpenFaasConfig};
use function_gateway_testkit::{Behaviour, DriverHarness};
use serde_json::json;

fn setting(name: &str) -> String {
    let name = format!("FUNCTION_GATEWAY_TEST_OPENFAAS_{name}");
    std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a real OpenFaaS gateway"))
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
    let secrets = MemorySecrets::new();
    secrets.set("function-gateway".parse().unwrap(), "password".parse().unwrap(), Secret::new(setting("PASSWORD")));
    let auth: OpenFaasAuth =
        serde_json::from_value(json!({"basic": {"user": setting("USER"), "password": "password"}})).unwrap();
    let config = OpenFaasConfig::new(setting("URL")).with_auth(auth);
    Arc::new(OpenFaas::with_secrets(config, Arc::new(secrets)).unwrap())
}

#[async_trait]
impl DriverHarness for Live {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        open()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        match behaviour {
            // A server in Go reads a request whole before it answers, unless it is told otherwise: the gateway is not.
            Behaviour::StreamEcho => None,
            _ => fake::behaving(&self.image, behaviour),
        }
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(open())
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // As with the fake, and those that need to see what runs, or an answer before the payload has ended.
        &[
            "a_deadline_stops_the_function",
            "a_streamed_payload_arrives_as_it_comes",
            "dropping_a_call_stops_the_function",
            "dropping_an_answer_stops_the_function",
            "removing_a_target_stops_its_calls",
            "secrets_at_each_call_reach_the_function",
            "shutdown_lets_calls_end_in_time",
            "shutdown_stops_calls_at_its_deadline",
            "the_log_of_a_call_is_told",
        ]
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}

mod on_openfaas {
    use super::Live;

    function_gateway_testkit::driver_conformance!(
        Live::new(),
        #[ignore = "needs a real OpenFaaS gateway: FUNCTION_GATEWAY_TEST_OPENFAAS_URL, _USER, _PASSWORD and _IMAGE"]
    );
}
