//! The sample functions, run by hand as their README says: they keep their contract without a gateway around them. Those
//! that need a runtime are tested by the driver.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use function_gateway_core::{FunctionSpec, Workload};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/functions")
}

/// Runs a function; `None` where its interpreter is missing, which is said.
fn call(name: &str, env: &[(&str, &str)], payload: &str) -> Option<Output> {
    if name.ends_with(".py") && Command::new("python3").arg("--version").output().is_err() {
        // Written past the capture of a passing test's output, so that it is seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: python3 is missing");
        return None;
    }
    let mut command = Command::new(folder().join(name));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(env.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(payload.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[track_caller]
fn assert_result(output: &Option<Output>, expected: &Value) {
    let Some(output) = output else { return };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), *expected);
}

#[track_caller]
fn assert_failure(output: &Option<Output>, status: i32, message: &str) {
    let Some(output) = output else { return };
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(message), "{output:?}");
}

#[test]
fn greet_greets() {
    assert_result(&call("greet.py", &[], r#"{"name": "Ada"}"#), &json!({"greeting": "Hello, Ada!"}));
    assert_result(&call("greet.py", &[], r#"{"name": "Åsa 🦀"}"#), &json!({"greeting": "Hello, Åsa 🦀!"}));
}

#[test]
fn greet_says_what_it_needs() {
    assert_failure(&call("greet.py", &[], "Ada"), 1, "is not JSON");
    for payload in ["{}", r#"{"name": ""}"#, r#"{"name": 1}"#, "[]", "null"] {
        assert_failure(&call("greet.py", &[], payload), 1, "needs a \"name\"");
    }
}

#[test]
fn word_count_counts() {
    assert_result(&call("word-count.sh", &[], "to be or\nnot\n"), &json!({"lines": 2, "words": 4, "bytes": 13}));
    assert_result(&call("word-count.sh", &[], ""), &json!({"lines": 0, "words": 0, "bytes": 0}));
}

#[test]
fn sign_signs() {
    // Test case 2 of RFC 4231.
    let output = call("sign.py", &[("SIGNING_KEY", "Jefe")], "what do ya want for nothing?");
    let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    assert_result(&output, &json!({"algorithm": "hmac-sha256", "signature": signature}));
}

#[test]
fn sign_fails_without_its_secret() {
    assert_failure(&call("sign.py", &[], "x"), 1, "the secret SIGNING_KEY is missing");
}

#[test]
fn resize_plan_answers_in_an_envelope() {
    let input = json!({"context": {"invocation_id": "7"}, "payload": {"width": 4000, "height": 3000, "max": 800}});
    let logs = json!({"stdout": ["invocation 7", "planned 800 x 600"], "stderr": []});
    let expected = json!({"context": {"error": null, "logs": logs}, "payload": {"width": 800, "height": 600}});
    assert_result(&call("resize-plan.py", &[], &input.to_string()), &expected);
}

#[test]
fn resize_plan_tells_a_wrong_size_as_an_error_of_its_own() {
    let input = json!({"context": {"invocation_id": "7"}, "payload": {"width": 0, "height": 3000, "max": 800}});
    let error = json!({"type": "InvalidSize", "message": "\"width\" has to be a whole number of at least 1"});
    let logs = json!({"stdout": ["invocation 7"], "stderr": []});
    let expected = json!({"context": {"error": error, "logs": logs}, "payload": null});
    assert_result(&call("resize-plan.py", &[], &input.to_string()), &expected);
}

#[test]
fn resize_plan_refuses_what_is_no_envelope() {
    for input in ["{}", "[]", "nothing", r#"{"payload": 1}"#, r#"{"context": 1, "payload": 1}"#] {
        assert_failure(&call("resize-plan.py", &[], input), 1, "not an envelope");
    }
}

#[test]
fn fail_fails() {
    assert_failure(&call("fail.sh", &[], "anything"), 3, "always fails");
}

#[test]
fn slow_sleeps_as_long_as_it_is_told() {
    assert_result(&call("slow.sh", &[], "0"), &json!({"slept": 0}));
    for payload in ["", "soon", "-1", "1 2"] {
        assert_failure(&call("slow.sh", &[], payload), 1, "whole number of seconds");
    }
}

#[test]
fn echo_secret_tells_its_secret() {
    let output = call("echo-secret.sh", &[("SECRET", "s3cret")], "").unwrap();
    assert_eq!(output.stdout, b"s3cret");
    assert_eq!(output.stderr, b"the secret is s3cret\n");
    assert_failure(&call("echo-secret.sh", &[], ""), 1, "the secret SECRET is missing");
}

#[test]
fn every_worker_has_a_specification_to_run_it_by() {
    let folders = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for folder in folders.collect::<Vec<_>>() {
        let text = fs::read_to_string(folder.join("spec.json")).unwrap();
        let spec: FunctionSpec = serde_json::from_str(&text).unwrap();
        assert_eq!(spec.unknown.names().count(), 0, "{text}");
        let Workload::Process(run) = spec.run else { unreachable!("{text}") };
        assert_eq!(run.unknown.names().count(), 0, "{text}");
        let installed = Path::new("/srv/functions").join(folder.file_name().unwrap());
        assert_eq!(run.working_dir.as_deref(), installed.to_str());
    }
}

#[test]
fn the_readme_shows_a_specification_as_it_is() {
    let readme = fs::read_to_string(folder().join("README.md")).unwrap();
    let spec = fs::read_to_string(folder().join("knative-node/spec.json")).unwrap();
    assert!(readme.contains(&format!("```json\n{spec}```\n")));
}
