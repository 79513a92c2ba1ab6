//! `serve`: what a first run says and does, restarts, logs, and how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use reqwest::header::{HOST, HeaderName};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Gateway, PATIENCE, Ran, curl, file, folder, program, shell};

/// Reads what is at a path, by a client that sends what the test says.
fn get(gateway: &Gateway, path: &str, header: Option<(HeaderName, &str)>) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut request = reqwest::Client::new().get(format!("{}{path}", gateway.url));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

#[test]
fn the_lines_that_are_printed_work() {
    let folder = folder();
    let mut gateway = Gateway::start(folder.path(), &[]);
    assert!(gateway.out.wait_for("  Access ").ends_with("without authentication, on this machine alone"));
    assert!(gateway.out.wait_for("  Kept in ").ends_with(folder.path().to_str().unwrap()));
    let samples = gateway.out.wait_for("  Samples ");
    if !samples.contains("greet") {
        eprintln!("SKIPPED in part: python3 is missing");
    }
    // The last one is there once all have come.
    gateway.out.wait_for("Ctrl-C lets calls end");
    let mut tried = 0;
    for (part, answer) in [
        ("{\"name\": \"Ada\"}", "Hello, Ada!"),
        ("{\"nam\": \"Ada\"}", "\\\"name\\\" is a required property"),
        ("to be or not to be", "\"words\": 6"),
        ("curl -N", "lift-off\n"),
        ("/v1/executions", "word-count"),
        ("executions list", "word-count"),
    ] {
        if part != "to be or not to be" && !part.contains("executions") && !samples.contains("greet") {
            continue;
        }
        let line = gateway.out.wait_for(part);
        // What was just executed takes a moment to be in the list.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ran = match line.trim_start().starts_with("curl ") {
                true => curl(&line),
                false => Ran::of(Command::new("sh").args(["-euc", &line])),
            };
            let ran = ran.ends_with(0);
            if ran.out.contains(answer) {
                break;
            }
            assert!(part.contains("executions") && Instant::now() < deadline, "{line}: {ran:#?}");
        }
        tried += 1;
    }
    assert!(tried >= 3);
    assert_eq!(get(&gateway, "/healthz", None).0, 200);
    let (status, metrics) = get(&gateway, "/metrics", None);
    assert_eq!(status, 200);
    assert!(metrics.contains("faas_invocations{faas_invoked_name=\"word-count\",tenant=\"local\"} 1"), "{metrics}");
    gateway.stop();
}

#[test]
fn the_data_folder_is_for_its_user_alone() {
    let folder = folder();
    let data = folder.path().join("deep/data");
    Gateway::start(&data, &["--no-samples"]).stop();
    assert_eq!(data.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
}

#[test]
fn the_database_is_for_its_user_alone_in_whichever_folder() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Gateway::start(folder.path(), &["--no-samples"]).stop();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("gateway.db")), 0o600);
    // What is there stays as it is.
    fs::set_permissions(folder.path().join("gateway.db"), fs::Permissions::from_mode(0o640)).unwrap();
    Gateway::start(folder.path(), &["--no-samples"]).stop();
    assert_eq!(mode(&folder.path().join("gateway.db")), 0o640);
}

#[test]
fn what_comes_by_a_proxy_is_kept_out() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &["--no-samples"]);
    for name in ["x-forwarded-for", "via"] {
        let (status, body) = get(&gateway, "/v1/me", Some((HeaderName::from_static(name), "192.0.2.1")));
        assert_eq!(status, 403, "{body}");
        assert!(body.contains("--authentication api-keys"), "{body}");
    }
}

#[test]
fn pages_that_a_browser_shows_are_kept_out() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &["--no-samples"]);
    assert_eq!(get(&gateway, "/v1/me", None).0, 200);
    for (name, value) in [
        (HOST, "evil.example"),
        (HeaderName::from_static("origin"), "https://evil.example"),
        (HeaderName::from_static("sec-fetch-site"), "cross-site"),
    ] {
        let (status, body) = get(&gateway, "/v1/me", Some((name, value)));
        assert_eq!(status, 403, "{body}");
        assert!(body.contains("permission_denied"), "{body}");
    }
}

#[test]
fn pages_that_are_configured_are_let_in() {
    let folder = folder();
    let any = Gateway::start(&folder.path().join("a"), &["--authentication", "api-keys", "--set", "cors.origins=*"]);
    let args = ["--authentication", "api-keys", "--set", "cors.origins=https://app.example.com"];
    let one = Gateway::start(&folder.path().join("b"), &args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (gateway, origin, allowed) in [
        (&any, "https://app.example.com", Some("*")),
        (&one, "https://app.example.com", Some("https://app.example.com")),
        (&one, "https://evil.example", None),
    ] {
        let request = reqwest::Client::new().get(format!("{}/healthz", gateway.url)).header("origin", origin);
        let answer = runtime.block_on(request.send()).unwrap();
        let header = answer.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!(header, allowed, "{origin}");
    }
}

#[test]
fn the_time_of_uploads_is_as_it_is_set() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &["--no-samples", "--set", "limits.upload_idle_timeout_ms=77"]);
    let (_, limits) = get(&gateway, "/v1/limits", None);
    assert!(limits.contains("\"upload_idle_ms\":77"), "{limits}");
}

#[test]
fn drivers_of_all_kinds_are_there_and_take_the_secrets_that_are_configured() {
    let folder = folder();
    let config = "[drivers.local]\nkind = 'local-process'\n[drivers.faas]\nkind = 'openfaas'\nauth.bearer.token = 'token'\n\
                  [drivers.k]\nkind = 'knative'\naccess.api_server = { url = 'https://k', token = 'token' }\n\
                  [secrets.memory]\n'function-gateway/token' = 'x'\n";
    let config = file(&folder, "a.toml", config);
    let gateway = Gateway::start(&folder.path().join("data"), &["--no-samples", "--config", &config]);
    let (_, drivers) = get(&gateway, "/v1/drivers", None);
    let drivers: Value = serde_json::from_str(&drivers).unwrap();
    let kinds: Vec<_> = drivers.as_array().unwrap().iter().map(|driver| driver["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["openfaas", "knative", "local-process"], "{drivers}");
}

#[test]
fn a_restart_leaves_functions_as_they_are_and_updates_samples_that_moved() {
    let folder = folder();
    let data = folder.path().join("data");
    let generation = |gateway: &Gateway, name: &str| {
        gateway.client(&["function", "get", name, "-o", "json"]).ends_with(0).json()["generation"].as_u64().unwrap()
    };
    let first = Gateway::start(&data, &[]);
    let own = file(&folder, "slow.yaml", &shell("slow", "echo mine"));
    first.client(&["function", "create", "-f", &own, "--replace"]).ends_with(0);
    assert_eq!(generation(&first, "slow"), 2);
    first.stop();

    let second = Gateway::start(&data, &[]);
    assert_eq!(["slow", "fail"].map(|name| generation(&second, name)), [2, 1]);
    assert_eq!(second.client(&["invoke", "slow"]).ends_with(0).out, "mine\n");
    second.stop();

    let samples = folder.path().join("samples");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions"), &samples);
    let third = Gateway::start(&data, &["--set", &format!("samples.folder={}", samples.display())]);
    assert_eq!(["slow", "fail"].map(|name| generation(&third, name)), [2, 2]);
    third.client(&["function", "delete", "fail"]).ends_with(0);
    third.stop();

    let fourth = Gateway::start(&data, &["--no-samples"]);
    fourth.client(&["function", "get", "fail"]).ends_with(3);
    assert_eq!(
        fourth.client(&["invoke", "word-count", "-d", "a"]).ends_with(0).out,
        "{\"lines\": 0, \"words\": 1, \"bytes\": 1}\n"
    );
    fourth.stop();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in ["fail.sh", "greet.py", "resize-plan.py", "slow.sh", "word-count.sh"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    fs::create_dir(to.join("countdown")).unwrap();
    for name in ["main.py", "spec.json"] {
        fs::copy(from.join("countdown").join(name), to.join("countdown").join(name)).unwrap();
    }
}

#[test]
fn samples_that_are_not_there_are_told() {
    let folder = folder();
    let args = ["--set", "samples.folder=/is/not/there", "--listen", "127.0.0.1:0", "--data"];
    let ran = Ran::of(program(&args).arg(folder.path())).ends_with(2);
    assert!(ran.err.contains("/is/not/there") && ran.err.contains("--no-samples"), "{ran:#?}");
}

#[test]
fn requests_are_logged_in_lines() {
    let folder = folder();
    let mut gateway = Gateway::start(folder.path(), &[]);
    gateway.client(&["invoke", "word-count", "-d", "a", "-H", "X-Request-Id: mine-7"]).ends_with(0);
    let line = gateway.err.wait_for("mine-7");
    let parts: Vec<_> = line.split_whitespace().collect();
    assert_eq!(parts[1..4], ["200", "POST", "/v1/functions/word-count/invocations"], "{line}");
    assert_eq!(parts[6..], ["local/anonymous", "mine-7"], "{line}");
    // Neither what samples were made, nor colours where no terminal is.
    let all = gateway.stop().err;
    assert!(!all.contains("action=create") && !all.contains('\x1b'), "{all}");
}

#[test]
fn programs_get_their_log_in_json() {
    let folder = folder();
    let mut command = program(&["--log-format", "json", "--listen", "127.0.0.1:0", "--data"]);
    let mut child = command.arg(folder.path()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let ready = lines.find_map(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        (line["message"] == "the gateway is ready").then_some(line)
    });
    let url = ready.unwrap()["url"].as_str().unwrap().to_owned();
    let mut request = program(&["invoke", "word-count", "-d", "a", "-H", "X-Request-Id: mine-7", "--url", &url]);
    Ran::of(&mut request).ends_with(0);
    let line = lines.find_map(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        (line["request_id"] == "mine-7").then_some(line)
    });
    let line = line.unwrap();
    assert_eq!((&line["status"], &line["principal"]), (&Value::from(200), &Value::from("anonymous")), "{line}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    // Until its end, so that it can be written.
    assert!(lines.all(|line| line.is_ok()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// Starts a call that takes a time, and waits until it runs.
fn running(gateway: &Gateway, seconds: &str) -> std::process::Child {
    let mut call = gateway.command(&["invoke", "slow", "-d", seconds]);
    let call = call.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let list = ["executions", "list", "--state", "running", "-o", "json"];
    gateway.until(&list, |ran| ran.json().as_array().is_some_and(|running| !running.is_empty()));
    call
}

/// So that one sees of an execution that it runs.
const DURABLE: [&str; 2] = ["--set", "records.mode=durable"];

#[test]
fn ctrl_c_lets_calls_end() {
    let folder = folder();
    let mut gateway = Gateway::start(folder.path(), &DURABLE);
    let call = running(&gateway, "3");
    gateway.signal(Signal::INT);
    gateway.err.wait_for("stopping once all calls have ended");
    // Nobody new is let in.
    gateway.until(&["function", "list"], |ran| ran.code == Some(4));
    let answer = Ran::from(call.wait_with_output().unwrap()).ends_with(0);
    assert_eq!(answer.out, "{\"slept\": 3}\n");
    let ended = gateway.ended().ends_with(0);
    assert!(ended.err.trim_end().ends_with("stopped"), "{ended:#?}");
}

#[test]
fn sigterm_lets_calls_end_too() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &DURABLE);
    let call = running(&gateway, "1");
    gateway.signal(Signal::TERM);
    Ran::from(call.wait_with_output().unwrap()).ends_with(0);
    gateway.ended().ends_with(0);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let folder = folder();
    let mut gateway = Gateway::start(folder.path(), &DURABLE);
    let call = running(&gateway, "20");
    gateway.signal(Signal::INT);
    gateway.err.wait_for("stopping once all calls have ended");
    gateway.signal(Signal::INT);
    gateway.ended().ends_with(130);
    let answer = Ran::from(call.wait_with_output().unwrap());
    assert!(matches!(answer.code, Some(4 | 5)), "{answer:#?}");
}

#[test]
fn calls_that_do_not_end_are_given_up_when_their_time_is_over() {
    let folder = folder();
    let gateway =
        Gateway::start(folder.path(), &["--set", "records.mode=durable", "--set", "limits.shutdown_grace_ms=100"]);
    let call = running(&gateway, "20");
    gateway.signal(Signal::INT);
    gateway.ended().ends_with(0);
    let answer = Ran::from(call.wait_with_output().unwrap());
    assert_ne!(answer.code, Some(0), "{answer:#?}");
}

#[test]
fn whoever_follows_a_log_does_not_keep_the_gateway_from_ending() {
    let folder = folder();
    // Waiting for who follows would take longer than this test has.
    let mut gateway = Gateway::start(folder.path(), &["--set", "limits.shutdown_grace_ms=600000"]);
    if !gateway.out.wait_for("  Samples ").contains("countdown") {
        eprintln!("SKIPPED: python3 is missing");
        return;
    }
    let url = format!("{}/v1/functions/countdown/logs?follow=true", gateway.url);
    let client = reqwest::Client::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let lines = client.get(&url).send().await.unwrap();
        let events = client.get(&url).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!((lines.status().as_u16(), events.status().as_u16()), (200, 200));
        gateway.signal(Signal::INT);
        // Neither looks whole: the one has no end, the other one says why it ends.
        lines.bytes().await.unwrap_err();
        let events = events.text().await.unwrap();
        let (_, last) = events.trim_end().rsplit_once("event: ").unwrap();
        assert!(last.starts_with("error\ndata: {") && last.contains("\"shutting_down\""), "{events}");
    });
    gateway.ended().ends_with(0);
}

#[test]
fn a_port_that_is_taken_is_told() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &["--no-samples"]);
    let address = gateway.url.strip_prefix("http://").unwrap();
    let ran = Ran::of(program(&["--listen", address, "--data"]).arg(folder.path().join("other"))).ends_with(5);
    assert!(ran.err.contains(&format!("can't listen on {address}: Address already in use")), "{ran:#?}");
}

#[test]
fn secrets_come_from_where_they_are_configured() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("secrets/local")).unwrap();
    fs::write(folder.path().join("secrets/local/a"), "from a folder").unwrap();
    let config = file(
        &folder,
        "a.toml",
        "[secrets.memory]\n'local/c' = 'from the file'\n[secrets.environment]\nlocal = 'OURS_'\n",
    );
    let of = |name: &str| {
        let spec = shell(&format!("tell-{name}"), "printf '%s' \"$S\"");
        format!("{spec}  secrets:\n  - secret: {name}\n    deliver: {{env: S}}\n")
    };
    let functions = file(&folder, "f.yaml", &["a", "b", "c"].map(of).join("---\n"));
    let data = folder.path().join("data");
    let mut command = program(&["--config", &config, "--listen", "127.0.0.1:0", "--no-samples", "--data"]);
    command.arg(&data).env("OURS_B", "from a variable");
    command.env("FUNCTION_GATEWAY_SECRETS_DIRECTORY", folder.path().join("secrets"));
    let gateway = Gateway::run(&mut command);
    gateway.client(&["function", "create", "-f", &functions]).ends_with(0);
    for (name, value) in [("tell-a", "from a folder"), ("tell-b", "from a variable"), ("tell-c", "from the file")] {
        assert_eq!(gateway.client(&["invoke", name]).ends_with(0).out, value);
    }
    gateway.stop();

    // Where none are configured, a function that wants one is refused.
    let gateway = Gateway::start(&folder.path().join("other"), &["--no-samples"]);
    let ran = gateway.client(&["function", "create", "-f", &functions]).ends_with(3);
    assert!(ran.err.contains("/spec/secrets"), "{ran:#?}");
}

#[test]
fn functions_that_get_ready_with_a_time_of_their_own_are_waited_for() {
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &["--no-samples"]);
    let spec = shell("never", "sleep 60") + "  protocol: http\n";
    let spec = file(&folder, "never.yaml", &spec);
    let ran = gateway.client(&["function", "create", "-f", &spec, "--wait", "1"]).ends_with(1);
    assert!(ran.err.contains("not ready"), "{ran:#?}");
}
