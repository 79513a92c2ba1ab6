//! Holds the driver to the promises of a driver, with real processes.

#![expect(clippy::expect_used, reason = "test code fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use function_gateway_core::{DriverRef, FaasDriver, FunctionId, FunctionSpec, ProcessWorkload};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_testkit::{Behaviour, DriverHarness, driver_conformance};

const TELL: &str = r#"printf '{"method":"%s","path":"%s","query":"%s","invocation_id":"%s","traceparent":"%s","attempt":"%s","deadline_ms":"%s"}' \
"$FUNCTION_METHOD" "$FUNCTION_PATH" "$FUNCTION_QUERY" "$FUNCTION_INVOCATION_ID" "$TRACEPARENT" "$FUNCTION_ATTEMPT" "$FUNCTION_DEADLINE_MS""#;

/// What a shell runs for a behaviour.
fn script(behaviour: &Behaviour) -> Option<String> {
    Some(match behaviour {
        Behaviour::Echo | Behaviour::StreamEcho => "exec cat".to_owned(),
        Behaviour::EchoVariable(name) => format!("printf %s \"${name}\""),
        Behaviour::Tell => TELL.to_owned(),
        Behaviour::Fail => "echo it went wrong; exit 3".to_owned(),
        Behaviour::Hang => "sleep 1000000".to_owned(),
        Behaviour::Large(bytes) => format!("exec head -c {bytes} /dev/zero"),
        Behaviour::Lines(count) => format!("i=0; while [ $i -lt {count} ]; do echo $i; i=$((i + 1)); done"),
        Behaviour::Stall => "printf first; exec sleep 1000000".to_owned(),
        Behaviour::BreakOff => "printf first; exit 1".to_owned(),
        Behaviour::Log(text) => format!("echo '{text}' >&2"),
        _ => return None,
    })
}

/// Each harness marks its processes, to find them again among those of other tests.
struct Harness {
    mark: String,
}

impl Harness {
    fn new() -> Self {
        Self { mark: format!("HARNESS={}", FunctionId::generate()) }
    }

    /// The processes of this harness that lead their group: one for each call that is running.
    fn leaders(&self) -> usize {
        let processes = std::fs::read_dir("/proc").expect("/proc can be read").filter_map(|entry| {
            let id = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
            let environment = std::fs::read(format!("/proc/{id}/environ")).ok()?;
            let status = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let group = status.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse::<u32>().ok()?;
            let ours = environment.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes());
            (ours && group == id).then_some(())
        });
        processes.count()
    }
}

fn driver() -> Arc<dyn FaasDriver> {
    Arc::new(LocalProcess::new(LocalProcessConfig::default()).expect("a driver"))
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        driver()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        let run = match behaviour {
            Behaviour::Invalid => ProcessWorkload::new("/nowhere/at/all"),
            _ => ProcessWorkload::new("/bin/sh").with_args(["-c".to_owned(), script(behaviour)?]),
        };
        let (name, value) = self.mark.split_once('=')?;
        Some(FunctionSpec::new("local".parse().ok()?, run).with_env("PATH", "/usr/bin:/bin").with_env(name, value))
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(driver())
    }

    async fn running(&self, _: &DriverRef) -> Option<usize> {
        Some(self.leaders())
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // A process has no way to refuse a call, no content types and no time to get ready; the driver hands secrets over
        // at each call, and what it runs belongs to its process.
        &[
            "a_refusing_function_is_an_answer",
            "content_types_pass_both_ways",
            "secrets_at_deployment_reach_the_function",
            "shutdown_keeps_what_others_share",
            "what_cannot_become_ready_never_is",
        ]
    }
}

driver_conformance!(Harness::new());
