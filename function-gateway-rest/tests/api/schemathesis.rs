//! The API against its own description, by a tool that makes requests of it.

use std::path::Path;

use function_gateway_core::WorkerConfig;

use crate::common::{Server, Setup, key};

/// Every check of schemathesis: no status, content type, header or document that the description does not have, no failure of the
/// server, nothing taken that the description forbids, nothing done without a credential.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the runtimes that `cargo xtask test` installs"]
async fn the_description_holds_by_a_real_runtime_of_schemathesis() {
    let runtimes = std::env::var("FUNCTION_GATEWAY_RUNTIMES").unwrap();
    let program = Path::new(&runtimes).join("schemathesis/venv/bin/schemathesis");
    let metrics = |builder: function_gateway_rest::RestApiBuilder| builder.metrics(|| "calls 1\n".to_owned());
    let server = Server::with(Setup { api: Box::new(metrics), ..Setup::default() }).await;
    for name in ["echo", "other"] {
        server.create(name).await;
        server.invoke(name, "{}").await;
    }
    let _workers = server.gateway.start_workers(WorkerConfig::default()).unwrap();
    let root = key(&server.gateway, "acme", "root", &["admin", "metrics"]).await;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis/schemathesis.toml");
    let run = tokio::process::Command::new(program)
        .arg("--config-file")
        .arg(config)
        .args(["run", &server.url("/openapi.json"), "--checks", "all", "--seed", "4711", "--max-examples", "20"])
        .args(["--header", &format!("Authorization: Bearer {root}"), "--continue-on-failure", "--no-color"])
        .current_dir(std::env::temp_dir())
        .status()
        .await
        .unwrap();
    assert!(run.success(), "what it found is in its output above");
}
