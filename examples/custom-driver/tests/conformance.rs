//! Holds the driver to the promises of a driver, as any author outside the workspace does.

use std::sync::Arc;

use async_trait::async_trait;
use custom_driver::{Call, ClosureDriver, closure};
use function_gateway::{DriverRef, FaasDriver, FunctionSpec};
use function_gateway_testkit::{Behaviour, DriverHarness, driver_conformance};

/// The closure of a behaviour.
fn name(behaviour: &Behaviour) -> Option<String> {
    Some(match behaviour {
        Behaviour::Echo => "echo".to_owned(),
        Behaviour::EchoVariable(_) => "variable".to_owned(),
        Behaviour::Fail => "fail".to_owned(),
        Behaviour::Hang => "hang".to_owned(),
        Behaviour::Large(_) => "large".to_owned(),
        Behaviour::Log(_) => "log".to_owned(),
        Behaviour::Invalid => "nobody registered this".to_owned(),
        _ => return None,
    })
}

struct Harness(Arc<ClosureDriver>);

impl Harness {
    fn new() -> Self {
        Self(Arc::new(driver()))
    }
}

/// Closures that behave as the suite asks. What one of them needs to know it is told in its environment.
fn driver() -> ClosureDriver {
    let argument = |call: &Call| call.variables.get("ARGUMENT").cloned().unwrap_or_default();
    ClosureDriver::new()
        .with_closure("echo", async |call| Ok(call.payload.to_vec()))
        .with_closure("fail", async |_| Err("it went wrong".to_owned()))
        .with_closure("hang", |_| std::future::pending())
        .with_closure("large", move |call| async move {
            let bytes = argument(&call).parse().map_err(|error| format!("{error}"))?;
            Ok(vec![b'x'; bytes])
        })
        .with_closure("log", move |call| async move {
            call.logs.write(format!("{}\n", argument(&call)).as_bytes());
            Ok(Vec::new())
        })
        .with_closure("variable", move |call| async move {
            let value = call.variables.get(&argument(&call)).cloned();
            value.map(String::into_bytes).ok_or_else(|| "no such variable".to_owned())
        })
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        Arc::clone(&self.0) as _
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        let spec = closure("closures".parse().ok()?, &name(behaviour)?);
        Some(match behaviour {
            Behaviour::EchoVariable(argument) | Behaviour::Log(argument) => spec.with_env("ARGUMENT", argument),
            Behaviour::Large(bytes) => spec.with_env("ARGUMENT", bytes.to_string()),
            _ => spec,
        })
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(Arc::new(driver()))
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // Closures take and give bytes in one piece and know nothing else of their call.
        &[
            "a_refusing_function_is_an_answer",
            "a_stream_that_breaks_off_says_so",
            "a_streamed_answer_arrives_as_it_comes",
            "a_streamed_answer_arrives_whole",
            "a_streamed_payload_arrives_as_it_comes",
            "content_types_pass_both_ways",
            "dropping_an_answer_stops_the_function",
            "method_path_and_query_reach_the_function",
            "secrets_at_deployment_reach_the_function",
            "shutdown_keeps_what_others_share",
            "shutdown_lets_calls_end_in_time",
            "the_call_is_told_to_the_function",
            "what_cannot_become_ready_never_is",
        ]
    }

    async fn running(&self, _: &DriverRef) -> Option<usize> {
        Some(self.0.running())
    }
}

driver_conformance!(Harness::new());
