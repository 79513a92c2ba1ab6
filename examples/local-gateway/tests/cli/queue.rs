//! Executions that outlive their caller, by the commands for them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use crate::common::{Gateway, Ran, file, folder, program, shell};

const NOBODY: &str = "01a2151e-528b-7319-b3f4-0a8bdb250683";

/// The id that is shown, alone.
fn submitted(gateway: &Gateway, args: &[&str]) -> String {
    let mut all = vec!["invoke", "--async"];
    all.extend(args);
    gateway.client(&all).ends_with(0).out.trim_end().to_owned()
}

#[test]
fn what_is_submitted_is_waited_for_and_its_result_shown() {
    let folder = folder();
    let gateway = Gateway::start(&folder.path().join("data"), &["--no-samples"]);
    let functions = [shell("count", "wc -c"), shell("fails", "echo no luck; exit 3")];
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &functions.join("---\n"))]).ends_with(0);
    let id = submitted(&gateway, &["count", "-d", "12345"]);
    let waited = gateway.client(&["executions", "wait", &id]).ends_with(0);
    assert_eq!((waited.row("Id"), waited.row("State")), (vec!["Id", &id], vec!["State", "succeeded"]));
    assert_eq!(gateway.client(&["executions", "wait", &id, "-o", "json"]).ends_with(0).json()["state"], "succeeded");
    assert_eq!(gateway.client(&["executions", "result", &id]).ends_with(0).out.trim(), "5");
    let about = gateway.client(&["executions", "result", &id, "-o", "json"]).ends_with(0).json();
    assert_eq!((&about["id"], &about["outcome"]), (&json!(id), &json!("succeeded")));

    let id = submitted(&gateway, &["fails"]);
    let waited = gateway.client(&["executions", "wait", &id]).ends_with(1);
    assert!(waited.err.contains("did not succeed: function_failed: "), "{waited:#?}");
    let result = gateway.client(&["executions", "result", &id]).ends_with(1);
    assert_eq!(result.out, "no luck\n");
    assert!(result.err.starts_with("error: the function failed"), "{result:#?}");
    for command in ["wait", "result", "cancel"] {
        gateway.client(&["executions", command, NOBODY]).ends_with(3);
    }
}

#[test]
fn a_time_is_waited_for_and_what_waits_is_cancelled() {
    let folder = folder();
    let gateway = Gateway::start(&folder.path().join("data"), &["--no-samples"]);
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("one", "echo 1"))]).ends_with(0);
    let later = submitted(&gateway, &["one", "--delay", "1h", "--pin"]);
    let at = submitted(&gateway, &["one", "--at", "2020-01-01T00:00:00Z"]);
    gateway.client(&["executions", "wait", &at]).ends_with(0);
    let queued = gateway.client(&["executions", "list", "--state", "queued", "-o", "json"]).ends_with(0).json();
    assert_eq!((queued.as_array().unwrap().len(), &queued[0]["id"]), (1, &json!(later)));
    let early = gateway.client(&["executions", "result", &later]).ends_with(3);
    assert!(early.err.contains("in_progress"), "{early:#?}");
    let cancelled = gateway.client(&["executions", "cancel", &later]).ends_with(0);
    assert_eq!(cancelled.out, format!("{later} is being ended\n"));
    let waited = gateway.client(&["executions", "wait", &later]).ends_with(1);
    assert!(waited.err.contains("cancelled: "), "{waited:#?}");
    gateway.client(&["executions", "cancel", &later]).ends_with(3);
    for wrong in [
        &["--delay", "1h"][..],
        &["--async", "--delay", "soon"],
        &["--async", "--delay", "1y"],
        &["--async", "--delay", "99999999999999999d"],
        &["--async", "--delay", "1h", "--at", "2030-01-01T00:00:00Z"],
        &["--async", "--at", "tomorrow"],
        &["--pin"],
        &["--idempotency-key", ""],
        &["--idempotency-key", "caf\u{e9}"],
    ] {
        let mut args = vec!["invoke", "one"];
        args.extend(wrong);
        gateway.client(&args).ends_with(2);
    }
    let far = gateway.client(&["invoke", "one", "--async", "--delay", "400d"]).ends_with(3);
    assert!(far.err.contains("365 days"), "{far:#?}");
}

#[test]
fn one_key_is_one_execution() {
    let folder = folder();
    let gateway = Gateway::start(&folder.path().join("data"), &["--no-samples"]);
    let script = format!("echo x >> '{0}'; wc -l < '{0}'", folder.path().join("calls").display());
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("count", &script))]).ends_with(0);
    let key = ["--idempotency-key", "a \"b\" \\c"];
    let first = submitted(&gateway, &["count", key[0], key[1]]);
    gateway.client(&["executions", "wait", &first]).ends_with(0);
    let again = gateway.client(&["invoke", "count", "--async", key[0], key[1]]).ends_with(0);
    assert_eq!((again.out.trim_end(), again.err.as_str()), (&*first, "It was accepted before, under the same key.\n"));
    for _ in 0..2 {
        assert_eq!(gateway.client(&["invoke", "count", key[0], key[1]]).ends_with(0).out.trim(), "1");
    }
    let document = gateway.client(&["invoke", "count", "--async", key[0], key[1], "-o", "json"]).ends_with(0).json();
    assert_eq!((&document["id"], &document["repeated"]), (&json!(first), &json!(true)));
    let other = gateway.client(&["invoke", "count", "-d", "other", key[0], key[1]]).ends_with(3);
    assert!(other.err.contains("idempotency_mismatch"), "{other:#?}");
}

#[test]
fn dead_letters_are_shown_redriven_and_purged() {
    let folder = folder();
    let gateway = Gateway::start(&folder.path().join("data"), &["--no-samples"]);
    let fixed = folder.path().join("fixed");
    let script = format!("[ -e '{}' ] || {{ echo no luck >&2; exit 3; }}; cat", fixed.display());
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("picky", &script))]).ends_with(0);
    let dead: Vec<_> = ["1", "2", "3", "4"]
        .into_iter()
        .map(|payload| {
            let id = submitted(&gateway, &["picky", "-d", payload]);
            gateway.client(&["executions", "wait", &id]).ends_with(1);
            id
        })
        .collect();
    let list = gateway.client(&["dead-letters", "list"]).ends_with(0);
    assert!(list.out.starts_with("ID ") && list.out.lines().count() == 5, "{list:#?}");
    assert_eq!(list.row(&dead[0])[1], "picky");
    let some = gateway.client(&["dead-letters", "list", "--function", "picky", "--limit", "1"]).ends_with(0);
    assert_eq!(some.err, "There are more: --limit shows more than 1.\n");
    let none = gateway.client(&["dead-letters", "list", "--function", "other", "-o", "json"]).ends_with(0);
    assert_eq!(none.json(), json!([]));

    let shown = gateway.client(&["dead-letters", "show", &dead[0]]).ends_with(0);
    assert_eq!((shown.row("State"), shown.row("Payload")), (vec!["State", "dead"], vec!["Payload", "1"]));
    assert!(shown.row("Of these")[1].starts_with("1: "), "{shown:#?}");
    assert_eq!(gateway.client(&["dead-letters", "show", &dead[0], "-o", "json"]).json()["payload"]["text"], "1");
    gateway.client(&["dead-letters", "show", NOBODY]).ends_with(3);

    std::fs::write(fixed, "").unwrap();
    let redriven = gateway.client(&["dead-letters", "redrive", &dead[0], NOBODY, "-o", "json"]).ends_with(3);
    let document = redriven.json();
    assert_eq!(
        (&document["redriven"][0]["id"], &document["failed"][0]["code"]),
        (&json!(dead[0]), &json!("not_found"))
    );
    let new = document["redriven"][0]["redriven_as"].as_str().unwrap();
    gateway.client(&["executions", "wait", new]).ends_with(0);
    assert_eq!(gateway.client(&["executions", "result", new]).ends_with(0).out, "1");
    let purged = gateway.client(&["dead-letters", "purge", &dead[1]]).ends_with(0);
    assert_eq!(purged.out, format!("{} is forgotten\n", dead[1]));
    let many = gateway.client(&["dead-letters", "redrive", "--function", "picky"]).ends_with(0);
    assert_eq!(many.out.matches(" is executed again as ").count(), 2, "{many:#?}");
    assert_eq!(
        gateway.client(&["dead-letters", "purge", "--all", "-o", "json"]).ends_with(0).json(),
        json!({"failed": []})
    );
    for wrong in [&["redrive"][..], &["purge"], &["purge", "--all", &dead[2]], &["purge", "--all", "--function", "f"]] {
        let mut args = vec!["dead-letters"];
        args.extend(wrong);
        gateway.client(&args).ends_with(2);
    }
}

#[test]
fn what_was_accepted_survives_the_gateway() {
    let folder = folder();
    let data = folder.path().join("data");
    let first = Gateway::start(&data, &["--no-samples", "--set", "workers.enabled=false"]);
    first.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("echo", "cat"))]).ends_with(0);
    let id = submitted(&first, &["echo", "-d", "still there"]);
    assert_eq!(first.client(&["executions", "get", &id]).ends_with(0).row("State"), ["State", "queued"]);
    first.signal(Signal::KILL);
    drop(first);
    let second = Gateway::start(&data, &["--no-samples"]);
    second.client(&["executions", "wait", &id]).ends_with(0);
    assert_eq!(second.client(&["executions", "result", &id]).ends_with(0).out, "still there");
}

#[test]
fn what_is_being_executed_ends_before_the_gateway_does() {
    let folder = folder();
    let data = folder.path().join("data");
    let gateway = Gateway::start(&data, &["--no-samples"]);
    let go = folder.path().join("go");
    let script = format!("until [ -e '{}' ]; do sleep 0.05; done; echo done", go.display());
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("slow", &script))]).ends_with(0);
    let id = submitted(&gateway, &["slow"]);
    gateway.until(&["executions", "get", &id], |ran| ran.row("State") == ["State", "running"]);
    let mut wait = gateway.command(&["executions", "wait", &id]);
    let wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    gateway.signal(Signal::TERM);
    std::fs::write(go, "").unwrap();
    gateway.ended().ends_with(0);
    // Whoever waits was let go, and finds nobody to ask again.
    let waited = Ran::from(wait.wait_with_output().unwrap());
    assert!(matches!(waited.code, Some(0 | 4)), "{waited:#?}");
    let again = Gateway::start(&data, &["--no-samples", "--set", "workers.enabled=false"]);
    let kept = again.client(&["executions", "get", &id]).ends_with(0);
    assert_eq!(kept.row("State"), ["State", "succeeded"], "{kept:#?}");
}

#[test]
fn an_address_is_told_of_the_end_where_that_is_allowed() {
    let folder = folder();
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hooks", receiver.local_addr().unwrap());
    let destination = format!("  async:\n    on_success: {{callback: {{url: '{url}'}}}}\n");
    let function = file(&folder, "f.yaml", &(shell("one", "echo 1") + &destination));
    let create = ["function", "create", "-f", &function];
    let strict = Gateway::start(&folder.path().join("strict"), &["--no-samples"]);
    let refused = strict.client(&create).ends_with(3);
    assert!(refused.err.contains("\n  /spec/async/on_success/callback/url: "), "{refused:#?}");

    let allowed = ["--set", "callbacks.allow_networks=127.0.0.1", "--set", "callbacks.allow_http=true"];
    let gateway = Gateway::start(&folder.path().join("data"), &[&["--no-samples"][..], &allowed].concat());
    gateway.client(&create).ends_with(0);
    let id = submitted(&gateway, &["one"]);
    let (stream, _) = receiver.accept().unwrap();
    let mut request = BufReader::new(stream);
    let head: Vec<String> =
        request.by_ref().lines().map(|line| line.unwrap().to_lowercase()).take_while(|line| !line.is_empty()).collect();
    let header =
        |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{head:?}"));
    assert_eq!((head[0].as_str(), header("webhook-id: ").len()), ("post /hooks http/1.1", 36));
    let mut body = vec![0; header("content-length: ").parse().unwrap()];
    request.read_exact(&mut body).unwrap();
    request.get_mut().write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("invocation.succeeded") && body.contains(&id), "{body}");

    let elsewhere = [&["--no-samples", "--set", "callbacks.allow_ports=443,8443"][..], &allowed].concat();
    let gateway = Gateway::start(&folder.path().join("elsewhere"), &elsewhere);
    let refused = gateway.client(&create).ends_with(3);
    assert!(refused.err.contains("\n  /spec/async/on_success/callback/url: "), "{refused:#?}");

    for (setting, says) in [
        ("allow_networks=here", "`callbacks`: allow_networks: "),
        ("allow_ports=https", "`callbacks.allow_ports`: \"https\" is not whole numbers"),
        ("allow_ports=65536", "`callbacks.allow_ports[0]`: invalid value: integer `65536`"),
        ("timeout_ms=0", "`callbacks`: timeout_ms: must be at least 1"),
    ] {
        let setting = format!("callbacks.{setting}");
        let wrong = program(&["--set", &setting, "--data", folder.path().to_str().unwrap()])
            .args(["--listen", "127.0.0.1:0"])
            .output();
        let wrong = Ran::from(wrong.unwrap()).ends_with(2);
        assert!(wrong.err.contains(says), "{wrong:#?}");
    }
}

#[test]
fn limits_of_the_queue_are_as_they_are_set() {
    let folder = folder();
    let args = ["--no-samples", "--set", "workers.enabled=false", "--set", "queue.max_per_function=1"];
    let gateway = Gateway::start(&folder.path().join("data"), &args);
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("echo", "cat"))]).ends_with(0);
    submitted(&gateway, &["echo"]);
    let full = gateway.client(&["invoke", "echo", "--async"]).ends_with(3);
    assert!(full.err.contains("rate_limited") && full.err.contains("(limit: max_per_function)"), "{full:#?}");
    for (setting, told) in [
        ("workers.concurrency=0", "`workers.concurrency`: invalid value: integer `0`"),
        ("workers.max_per_tenant=65", "`workers.max_per_tenant`: is at most workers.concurrency, which is 64"),
        ("workers.poll_interval_ms=0", "`workers.poll_interval_ms`: invalid value: integer `0`"),
        ("queue.keep_hours=0", "`queue.keep_hours`: invalid value: integer `0`"),
        ("queue.lease_margin_ms=999", "`queue.lease_margin_ms`: is at least 1000"),
        ("queue.max_per_functio=1", "did you mean `queue.max_per_function`?"),
    ] {
        let ran = Ran::of(&mut program(&["--set", setting, "--print-config"])).ends_with(2);
        assert!(ran.err.contains(told), "{ran:#?}");
    }
}
