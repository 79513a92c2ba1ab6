//! Events and subscriptions, by the commands for them.

use serde_json::json;

use crate::common::{Gateway, file, folder, shell};

/// A gateway with the sample functions `word-count` and `fail`, and some others.
fn start(folder: &tempfile::TempDir) -> Gateway {
    Gateway::start(&folder.path().join("data"), &[])
}

fn subscribe(gateway: &Gateway, args: &[&str]) {
    let mut all = vec!["subscriptions", "create"];
    all.extend(args);
    gateway.client(&all).ends_with(0);
}

#[test]
fn an_event_executes_what_subscribes_to_it_and_a_second_one_is_told() {
    let folder = folder();
    let gateway = start(&folder);
    let filter = r#"{"prefix":{"type":"note."}}"#;
    let create = ["subscriptions", "create", "notes", "--function", "word-count", "--filter", filter];
    assert_eq!(gateway.client(&create).ends_with(0).out, "notes is created\n");
    let taken = gateway.client(&create).ends_with(3);
    assert!(taken.err.contains("already_exists"), "{taken:#?}");

    let publish = |more: &[&str]| {
        let mut args = vec!["events", "publish", "--source", "/desk"];
        args.extend(more);
        gateway.client(&args)
    };
    let event = ["--type", "note.written", "--id", "1", "--subject", "caf\u{e9}", "--data", "to be or not"];
    let first = publish(&event).ends_with(0);
    let row = first.out.lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(row[1..], ["word-count", "notes", "1", "now"], "{first:#?}");
    let waited = gateway.client(&["executions", "wait", &row[0], "-o", "json"]).ends_with(0).json();
    let told = &waited["lineage"]["event"];
    assert_eq!((&told["type"], &told["subscription"]), (&json!("note.written"), &json!("notes")));
    let result = gateway.client(&["executions", "result", &row[0], "-o", "json"]).ends_with(0).json();
    assert_eq!(result["result"]["json"]["words"], 4);

    assert_eq!(publish(&event).ends_with(0).row(&row[0]).last(), Some(&"before"));
    let new = publish(&["--type", "note.read", "-o", "json"]).ends_with(0).json();
    assert_eq!(new[0]["triggered"][0]["repeated"], false, "an id of its own");
    let nobody = publish(&["--type", "other", "--id", "7"]).ends_with(0);
    assert_eq!((nobody.out.lines().count(), nobody.err.as_str()), (1, "No subscription is about 7 of /desk.\n"));
    let path = file(&folder, "data.json", r#"{"a": 1}"#);
    let from_file = publish(&["--type", "note.kept", "--data-file", &path, "-o", "json"]).ends_with(0).json();
    let id = from_file[0]["triggered"][0]["execution"].as_str().unwrap();
    gateway.client(&["executions", "wait", id]).ends_with(0);
    let result = gateway.client(&["executions", "result", id, "-o", "json"]).ends_with(0).json();
    assert_eq!(result["result"]["json"]["bytes"], 8);

    assert_eq!(gateway.client(&["subscriptions", "delete", "notes"]).ends_with(0).out, "notes is deleted\n");
    gateway.client(&["subscriptions", "show", "notes"]).ends_with(3);
    assert_eq!(publish(&["--type", "note.written", "-o", "json"]).ends_with(0).json()[0]["triggered"], json!([]));
}

#[test]
fn files_hold_one_event_or_several() {
    let folder = folder();
    let gateway = start(&folder);
    subscribe(&gateway, &["all", "--function", "word-count"]);
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": {"a": 1}});
    let one = file(&folder, "one.json", &event("1").to_string());
    let one = gateway.client(&["events", "publish", "--file", &one]).ends_with(0);
    assert_eq!(one.out.lines().count(), 2, "{one:#?}");
    let batch = json!([event("1"), event("2")]).to_string();
    let both = gateway.client_with_input(&["events", "publish", "-f", "-", "-o", "json"], batch.as_bytes());
    let both = both.ends_with(0).json();
    assert_eq!((&both[0]["triggered"][0]["repeated"], &both[1]["id"]), (&json!(true), &json!("2")));

    let not_whole = file(&folder, "bad.json", &json!({"specversion": "1.0", "id": "1"}).to_string());
    let refused = gateway.client(&["events", "publish", "-f", &not_whole]).ends_with(3);
    assert!(refused.err.contains("/source") && refused.err.contains("/type"), "{refused:#?}");
    for wrong in [
        &["-f", &file(&folder, "text", "no event")][..],
        &["-f", "/nowhere"],
        &["-f", &not_whole, "--id", "1"],
        &["--type", "t"],
        &["--type", "t", "--source", "not a uri"],
    ] {
        let mut args = vec!["events", "publish"];
        args.extend(wrong);
        gateway.client(&args).ends_with(2);
    }
}

#[test]
fn subscriptions_are_shown_and_replaced() {
    let folder = folder();
    let gateway = start(&folder);
    let args = ["--function", "word-count,slow", "--strategy", "sequential-go-on", "--on-failure", "retry:2"];
    let mut create = vec!["s", "--description", "Two of them", "--form", "structured", "--tell-invalid"];
    create.extend(args);
    subscribe(&gateway, &create);
    let shown = gateway.client(&["subscriptions", "show", "s"]).ends_with(0);
    for (name, value) in [
        ("Functions", "word-count, slow"),
        ("Strategy", "sequential_go_on"),
        ("On failure", r#"{"retry":{"max_attempts":2}}"#),
        ("Filters", "all events"),
        ("Form", "structured"),
        ("Tells invalid", "yes"),
        ("Description", "Two of them"),
        ("On behalf of", "anonymous"),
    ] {
        assert_eq!(shown.row(name), [name, value]);
    }
    let spec = "functions: [word-count]\nfilters:\n- exact: {type: a}\non_failure: drop\n";
    let spec = file(&folder, "s.yaml", spec);
    let replaced = gateway.client(&["subscriptions", "create", "s", "-f", &spec, "--replace"]).ends_with(0);
    assert_eq!(replaced.out, "s is updated\n");
    let json = gateway.client(&["subscriptions", "show", "s", "-o", "json"]).ends_with(0).json();
    assert_eq!((&json["version"], &json["spec"]["on_failure"]), (&json!(2), &json!("drop")));
    subscribe(&gateway, &["t", "--function", "slow", "--on-failure", "function:word-count"]);
    let list = gateway.client(&["subscriptions", "list"]).ends_with(0);
    assert_eq!(list.row("s ")[..5], ["s", "word-count", "parallel", "drop", "anonymous"]);
    assert_eq!(list.row("s ").last(), Some(&r#"{"exact":{"type":"a"}}"#));
    let some = gateway.client(&["subscriptions", "list", "--limit", "1"]).ends_with(0);
    assert_eq!(some.err, "There are more: --limit shows more than 1.\n");

    let refused = gateway.client(&["subscriptions", "create", "u", "--function", "slow", "--on-failure", "retry:0"]);
    let refused = refused.ends_with(3);
    assert!(refused.err.contains("/spec/on_failure/retry/max_attempts"), "{refused:#?}");
    for wrong in [
        &["--filter", r#"{"sql": "x"}"#][..],
        &["--filter", "type=a"],
        &["--strategy", "any"],
        &["--on-failure", "retry:often"],
        &["--on-failure", "function:"],
        &["--on-failure", "ignore"],
        &["-f", "/nowhere"],
    ] {
        let mut args = vec!["subscriptions", "create", "u", "--function", "slow"];
        args.extend(wrong);
        gateway.client(&args).ends_with(2);
    }
    gateway.client(&["subscriptions", "create", "u"]).ends_with(2);
}

#[test]
fn what_an_event_could_not_do_is_a_dead_letter_that_is_redriven() {
    let folder = folder();
    let gateway = start(&folder);
    let fixed = folder.path().join("fixed");
    let script = format!("[ -e '{}' ] || exit 3; cat", fixed.display());
    gateway.client(&["function", "create", "-f", &file(&folder, "f.yaml", &shell("picky", &script))]).ends_with(0);
    subscribe(&gateway, &["s", "--function", "picky", "--on-failure", "dead-letter"]);
    let event = ["events", "publish", "--type", "t", "--source", "/s", "--data", "{}", "-o", "json"];
    let published = gateway.client(&event).ends_with(0).json();
    let dead = published[0]["triggered"][0]["execution"].as_str().unwrap();
    gateway.client(&["executions", "wait", dead]).ends_with(1);
    assert_eq!(gateway.client(&["dead-letters", "list"]).ends_with(0).row(dead)[1], "picky");
    std::fs::write(fixed, "").unwrap();
    let redriven = gateway.client(&["dead-letters", "redrive", dead, "-o", "json"]).ends_with(0).json();
    let again = redriven["redriven"][0]["redriven_as"].as_str().unwrap();
    gateway.client(&["executions", "wait", again]).ends_with(0);
    assert_eq!(gateway.client(&["executions", "result", again]).ends_with(0).out, "{}");
}
