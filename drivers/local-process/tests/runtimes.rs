//! Runtimes that others made, unmodified, with the functions of `examples/functions` as their `spec.json` runs them.
//!
//! The step `test` of `cargo xtask test` runs these tests: it installs the runtimes, and says where. By hand:
//!
//! ```sh
//! FUNCTION_GATEWAY_RUNTIMES=$(cargo xtask runtimes | tail -n 1) \
//!     cargo test -p function-gateway-local-process --test runtimes -- --ignored
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Deployed, ENOUGH, cx, streaming, text};
use function_gateway_core::{
    Body, Delivery, DeploymentState, DriverRequest, ErrorClass, ErrorKind, FaasDriver as _, FunctionId, FunctionSpec,
    InvocationId, InvokeResponse, LogQuery, Outcome, Result, Workload,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use serde_json::{Value, json};

/// Longer than a runtime takes to start: reached only where a test has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// By which the processes of one function are found, children too.
const MARK: &str = "RUNTIME_TEST_MARK";

/// What `examples/functions/<function>/spec.json` says, run in the folder where the function is installed.
fn spec(function: &str) -> FunctionSpec {
    let runtimes = std::env::var_os("FUNCTION_GATEWAY_RUNTIMES").expect("FUNCTION_GATEWAY_RUNTIMES names no folder");
    let folder = PathBuf::from(runtimes).join(function);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/functions");
    let text = fs::read_to_string(examples.join(function).join("spec.json")).unwrap();
    let mut spec: FunctionSpec = serde_json::from_str(&text).unwrap();
    let Workload::Process(run) = &mut spec.run else { panic!("{text}") };
    run.working_dir = Some(folder.to_str().unwrap().to_owned());
    spec.with_env(MARK, FunctionId::generate().to_string())
}

/// A driver that finds what the developer's shell finds.
fn driver() -> Arc<LocalProcess> {
    let path = std::env::var_os("PATH").unwrap();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    Arc::new(LocalProcess::new(LocalProcessConfig::new().with_search_path(folders)).unwrap())
}

async fn ready(spec: FunctionSpec) -> Deployed {
    let function = Deployed::on(driver(), spec).await;
    let looking = async {
        loop {
            let status = function.status().await;
            match status.state {
                DeploymentState::Ready => break,
                DeploymentState::Progressing => {
                    // sleep: the driver says when to look again
                    tokio::time::sleep(status.poll_after.unwrap()).await;
                }
                _ => panic!("{status:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("the function does not get ready");
    function
}

fn request(function: &Deployed, payload: &Value) -> DriverRequest {
    let mut request = function.request(payload.to_string());
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

async fn call(function: &Deployed, payload: &Value) -> (InvocationId, Result<InvokeResponse>) {
    let id = InvocationId::generate();
    (id, function.send_as(&cx().with_invocation_id(id), request(function, payload)).await)
}

/// Waits for a line with this in it.
async fn logged(function: &Deployed, wanted: &str) {
    let mut query = LogQuery::default();
    query.follow = true;
    let cx = cx();
    let mut log = function.driver.logs(&cx, &function.target, query).await.unwrap();
    let looking = async {
        while let Some(line) = log.next().await {
            if String::from_utf8_lossy(&line.unwrap().text).contains(wanted) {
                return true;
            }
        }
        false
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    assert!(found.is_ok_and(|found| found), "{wanted:?} was not logged");
}

/// The processes that a function has started, and those that these have started.
fn processes(function: &Deployed) -> Vec<u32> {
    let mark = format!("{MARK}={}", function.revision.spec.env[MARK]);
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(marked).collect()
}

/// What comes of a function that raises an error.
enum Raised {
    /// A status.
    Status(u16),
    /// An answer that breaks off.
    BrokenOff,
    /// The error itself, of a kind.
    Told(&'static str),
}

/// A function that greets, from its deployment to its end.
async fn greets(spec: FunctionSpec, raised: Raised) {
    let function = ready(spec).await;

    let (id, answer) = call(&function, &json!({"name": "Åsa"})).await;
    let answer = answer.unwrap();
    assert_eq!(answer.outcome, Outcome::Succeeded);
    assert_eq!(answer.json::<Value>(ENOUGH).await.unwrap(), json!({"greeting": "Hello, Åsa!"}));
    logged(&function, &format!("greeting for invocation {id}")).await;

    let (_, answer) = call(&function, &json!({"name": "Ada", "fail": true})).await;
    match raised {
        Raised::Status(status) => {
            let answer = answer.unwrap();
            assert!(matches!(answer.outcome, Outcome::Failed(_)), "{:?}", answer.outcome);
            assert_eq!(answer.status, status);
            logged(&function, "asked to fail").await;
        }
        Raised::BrokenOff => {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), error.class()), (ErrorKind::FunctionBroken, ErrorClass::Function));
            assert_eq!(error.delivery(), Delivery::Executed);
            logged(&function, "asked to fail").await;
        }
        Raised::Told(kind) => {
            let Outcome::Failed(failure) = answer.unwrap().outcome else { panic!("it did not fail") };
            assert_eq!((failure.kind.as_deref(), failure.message.as_str()), (Some(kind), "asked to fail"));
        }
    }

    let at_a_time = join_all((0..8).map(|number| {
        let function = &function;
        async move {
            let (_, answer) = call(function, &json!({"name": format!("caller {number}")})).await;
            answer.unwrap().json::<Value>(ENOUGH).await.unwrap()
        }
    }));
    for (number, answer) in at_a_time.await.into_iter().enumerate() {
        assert_eq!(answer, json!({"greeting": format!("Hello, caller {number}!")}));
    }

    assert!(!processes(&function).is_empty());
    tokio::time::timeout(PATIENCE, function.remove()).await.expect("the removal hangs");
    assert_eq!(processes(&function), [0; 0]);
    assert_eq!(function.status().await.state, DeploymentState::Missing);
}

mod real_runtime {
    use super::*;

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn functions_framework_for_python() {
        greets(spec("functions-framework-python"), Raised::Status(500)).await;
    }

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn functions_framework_for_node() {
        greets(spec("functions-framework-node"), Raised::Status(500)).await;
    }

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn knative_for_python() {
        // Of an error, func-python 0.8.1 sends the head of an answer and then breaks off.
        greets(spec("knative-python"), Raised::BrokenOff).await;
    }

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn knative_for_node() {
        greets(spec("knative-node"), Raised::Status(500)).await;
    }

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn lambda_for_python() {
        greets(spec("lambda-python"), Raised::Told("RuntimeError")).await;
    }

    #[tokio::test]
    #[ignore = "needs runtimes: cargo xtask test"]
    async fn lambda_for_rust() {
        greets(spec("lambda-worker"), Raised::Told("AskedToFail")).await;
    }

    mod axum {
        use super::*;

        #[tokio::test]
        #[ignore = "needs runtimes: cargo xtask test"]
        async fn payloads_come_back_eight_at_a_time_by_both_versions_of_http() {
            for version in ["1.1", "2"] {
                let function = ready(spec("axum-worker").with_annotation("http-version", version)).await;
                let payloads: Vec<Vec<u8>> = (1..9).map(|size: u8| vec![size; usize::from(size) * 100_000]).collect();
                let answers = join_all(payloads.iter().map(|payload| function.call(payload.clone()))).await;
                for (answer, payload) in answers.into_iter().zip(&payloads) {
                    assert!(answer.unwrap().body.as_bytes().unwrap() == payload);
                }
                function.remove().await;
                assert_eq!(processes(&function), [0; 0]);
            }
        }

        #[tokio::test]
        #[ignore = "needs runtimes: cargo xtask test"]
        async fn a_request_gets_there_as_it_was_made() {
            let function = ready(spec("axum-worker")).await;
            let mut request = request(&function, &json!({}));
            request.method = Method::PUT;
            (request.path, request.query) = ("/inspect/a%2Fb".into(), Some("c=%20&d".to_owned()));
            request.headers.append("x-list", HeaderValue::from_static("1"));
            request.headers.append("x-list", HeaderValue::from_static("2"));
            let seen: Value = function.send(request).await.unwrap().json(ENOUGH).await.unwrap();
            let of_request = [&seen["method"], &seen["path"], &seen["query"]];
            assert_eq!(of_request, ["PUT", "/inspect/a%2Fb", "c=%20&d"]);
            assert_eq!(seen["headers"]["x-list"], json!(["1", "2"]));
            assert_eq!(seen["headers"]["content-type"], json!(["application/json"]));
            function.remove().await;
        }

        #[tokio::test]
        #[ignore = "needs runtimes: cargo xtask test"]
        async fn a_long_answer_is_streamed() {
            let function = ready(streaming(spec("axum-worker"))).await;
            let mut request = function.request(Body::empty());
            (request.method, request.path) = (Method::GET, "/stream/5000000".into());
            let response = function.send(request).await.unwrap();
            assert!(response.body.as_bytes().is_none());
            assert_eq!(text(response).await.len(), 5_000_000);
            function.remove().await;
        }

        #[tokio::test]
        #[ignore = "needs runtimes: cargo xtask test"]
        async fn a_worker_that_crashes_is_replaced() {
            let function = ready(spec("axum-worker")).await;
            let before = processes(&function);
            let mut crash = function.request(Body::empty());
            crash.path = "/crash".into();
            let error = function.send(crash).await.unwrap_err();
            assert_eq!((error.kind(), error.delivery()), (ErrorKind::FunctionBroken, Delivery::Unknown));
            assert!(error.message().contains("exit status 3"), "{error}");
            assert!(error.context_value("log").unwrap().contains("asked to crash"), "{error:?}");
            assert_eq!(text(function.call("again").await.unwrap()).await, "again");
            assert_ne!(processes(&function), before);
            function.remove().await;
        }
    }
}
