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

macro_rules! cases {
    ($($case:ident)+) => {
        mod on_openfaas {
            use super::Live;

            $(
                #[test]
                #[ignore = "needs a real OpenFaaS gateway: FUNCTION_GATEWAY_TEST_OPENFAAS_URL, _USER, _PASSWORD and _IMAGE"]
                fn $case() {
                    function_gateway_testkit::driver::run(
                        stringify!($case),
                        async { Live::new() },
                        function_gateway_testkit::driver::cases::$case,
                    );
                }
            )+
        }

        const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

cases! {
    info_names_a_kind_and_its_protocols
    an_unknown_protocol_has_no_capabilities
    probe_names_the_engine
    references_are_pure_and_distinct
    check_accepts_what_deploy_takes
    check_names_what_it_refuses
    a_target_is_missing_before_deploy_and_after_remove
    deploy_can_be_repeated
    deploy_can_run_twice_at_a_time
    what_was_removed_can_be_deployed_again
    a_dropped_deploy_converges
    a_dropped_remove_converges
    remove_can_be_repeated
    remove_of_what_never_was_is_ok
    generations_stand_side_by_side
    what_cannot_become_ready_never_is
    a_list_holds_only_what_belongs_to_its_gateway
    a_list_holds_only_what_belongs_to_its_function
    another_process_sees_what_the_scope_says
    another_process_can_deploy_and_remove_again
    echo_answers_with_the_payload
    an_empty_payload_passes
    a_payload_of_1_mib_passes
    content_types_pass_both_ways
    method_path_and_query_reach_the_function
    the_call_is_told_to_the_function
    environment_reaches_the_function
    a_failing_function_is_an_answer
    a_refusing_function_is_an_answer
    an_answer_at_the_limit_passes
    an_answer_over_the_limit_is_refused
    sixteen_calls_at_a_time_keep_apart
    a_call_that_hangs_holds_up_no_other
    a_call_to_what_was_never_deployed_is_not_sent
    a_call_to_what_was_removed_is_not_sent
    secrets_at_deployment_reach_the_function
    secrets_at_each_call_reach_the_function
    secrets_are_never_shown
    a_streamed_answer_arrives_whole
    a_streamed_answer_arrives_as_it_comes
    a_streamed_payload_arrives_as_it_comes
    a_stream_that_breaks_off_says_so
    dropping_a_call_stops_the_function
    dropping_an_answer_stops_the_function
    a_deadline_stops_the_function
    removing_a_target_stops_its_calls
    the_log_of_a_call_is_told
    logs_are_read_or_refused
    scaling_works_or_is_refused
    shutdown_can_be_repeated
    no_call_is_taken_after_shutdown
    shutdown_lets_calls_end_in_time
    shutdown_stops_calls_at_its_deadline
    shutdown_keeps_what_others_share
}

#[test]
fn every_case_of_the_suite_is_here() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../function-gateway-testkit/src/driver/cases.rs");
    let source = std::fs::read_to_string(path).unwrap();
    let cases = source.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next());
    let missing: Vec<_> = cases.filter(|case| !CASES.contains(case)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
