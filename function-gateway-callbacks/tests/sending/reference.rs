//! Signatures, as receivers check them: by the reference library in Python, and by the lines in docs/callbacks.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use function_gateway_core::{CallbackSender as _, Secret};
use tokio::io::AsyncWriteExt as _;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::{callback, callbacks, cx};

/// The lines of Python in the page.
fn lines_of_the_page() -> String {
    let page = include_str!("../../../docs/callbacks.md");
    let (_, rest) = page.split_once("```python\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// Asks both receivers, which have to be of one mind.
async fn is_accepted(
    runtimes: &Path,
    page: &Path,
    secret: &str,
    headers: &BTreeMap<String, String>,
    body: &str,
) -> bool {
    let folder: PathBuf = runtimes.join("standardwebhooks");
    let mut receiver = tokio::process::Command::new(folder.join("venv/bin/python"))
        .args([&folder.join("receiver.py"), page])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let request = serde_json::json!({"secret": secret, "headers": headers, "body": body});
    receiver.stdin.take().unwrap().write_all(request.to_string().as_bytes()).await.unwrap();
    let output = receiver.wait_with_output().await.unwrap();
    assert!(output.status.success());
    let opinions: [bool; 2] = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(opinions[0], opinions[1]);
    opinions[0]
}

#[tokio::test]
#[ignore = "needs the runtimes that `cargo xtask test` installs"]
async fn signatures_hold_by_a_real_runtime_of_standardwebhooks() {
    let runtimes = PathBuf::from(std::env::var_os("FUNCTION_GATEWAY_RUNTIMES").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.py");
    std::fs::write(&page, lines_of_the_page()).unwrap();
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(204)).mount(&server).await;

    let (new, old, other) =
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_b3RoZXI=");
    let callback = callback(server.uri()).with_secret(Secret::new(format!("{new} {old}\n")));
    callbacks().send(&cx(), callback).await.unwrap();
    let request = server.received_requests().await.unwrap().remove(0);
    let body = String::from_utf8(request.body).unwrap();
    let headers: BTreeMap<String, String> =
        request.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();

    let ask = async |secret, headers: &_, body: &str| is_accepted(&runtimes, &page, secret, headers, body).await;
    assert!(ask(new, &headers, &body).await);
    assert!(ask(old, &headers, &body).await);
    assert!(!ask(other, &headers, &body).await);
    assert!(!ask(new, &headers, &(body.clone() + " ")).await);
    let changed = |name: &str, value: &str| {
        let mut headers = headers.clone();
        headers.insert(name.to_owned(), value.to_owned());
        headers
    };
    let later = headers["webhook-timestamp"].parse::<u64>().unwrap() + 1;
    let long_ago = later - 1000;
    assert!(!ask(new, &changed("webhook-timestamp", &later.to_string()), &body).await);
    assert!(!ask(new, &changed("webhook-timestamp", &long_ago.to_string()), &body).await);
    assert!(!ask(new, &changed("webhook-id", "another"), &body).await);
}
