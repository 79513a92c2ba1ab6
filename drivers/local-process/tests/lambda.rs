//! Holds the protocol `lambda` to the promises of a driver, with real workers, and to its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

#[cfg(test)]
#[path = "common/runtime.rs"]
mod runtime;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use function_gateway_core::{DriverRef, FaasDriver, FunctionSpec};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_testkit::{Behaviour, DriverHarness, driver_conformance};

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    runtime::main();
}

/// Its workers tell in a folder whether they are executing a call.
struct Harness {
    running: tempfile::TempDir,
}

impl Harness {
    fn new() -> Self {
        Self { running: tempfile::tempdir().expect("a folder") }
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
        let behaviour = match behaviour {
            Behaviour::Echo | Behaviour::EchoTyped | Behaviour::StreamEcho => "echo".to_owned(),
            Behaviour::EchoVariable(name) => format!("variable:{name}"),
            Behaviour::Tell => "tell".to_owned(),
            Behaviour::Fail => "fail".to_owned(),
            Behaviour::Reject => "reject".to_owned(),
            Behaviour::Hang => "hang".to_owned(),
            Behaviour::Large(bytes) => format!("large:{bytes}"),
            Behaviour::Lines(count) => format!("lines:{count}"),
            Behaviour::Stall => "stall".to_owned(),
            Behaviour::BreakOff => "break-off".to_owned(),
            Behaviour::Log(text) => format!("log:{text}"),
            Behaviour::Unready => "never-ask".to_owned(),
            Behaviour::Invalid => return Some(runtime::function("echo").with_annotation("listen", "port")),
            _ => return None,
        };
        Some(runtime::function(behaviour).with_env("RUNNING", self.running.path().to_str()?))
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(driver())
    }

    async fn running(&self, _: &DriverRef) -> Option<usize> {
        let workers = fs::read_dir(self.running.path()).ok()?.flatten();
        let alive = workers.filter(|file| Path::new("/proc").join(file.file_name()).exists());
        // A file that is just being written is empty.
        Some(alive.filter_map(|file| fs::read_to_string(file.path()).ok()?.parse::<usize>().ok()).sum())
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // The protocol knows a payload and no request; the driver hands secrets over when it starts a worker, and what it
        // runs belongs to its process.
        &[
            "method_path_and_query_reach_the_function",
            "secrets_at_each_call_reach_the_function",
            "shutdown_keeps_what_others_share",
        ]
    }
}

driver_conformance!(Harness::new());
