//! Functions: create, read, change, delete, list, revisions, logs.

use std::time::Duration;

use function_gateway_core::{Error, ErrorKind, Violation};
use function_gateway_rest::RestOptions;
use function_gateway_testkit::{Fault, Op, Readiness};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, header, json_of, logging, problem, spec, until};

#[tokio::test]
async fn a_function_is_created_and_read() {
    let server = Server::start().await;
    let body = json!({"name": "echo", "spec": spec()});
    let response = server.post("/v1/functions", &body).send().await.unwrap();
    assert_eq!(header(&response, "location"), "/v1/functions/echo");
    let etag = header(&response, "etag").to_owned();
    let created = json_of(response, StatusCode::CREATED).await;
    assert_eq!(created["name"], "echo");
    assert_eq!(created["tenant"], "acme");
    assert_eq!(created["owner"], "ada");
    assert_eq!(created["status"]["phase"], "ready");
    assert_eq!(created["status"]["serving_generation"], 1);
    assert!(created["status"]["deployments"][0].get("target").is_none(), "what the driver knows it by is inside");

    let read = server.get("/v1/functions/echo").send().await.unwrap();
    assert_eq!(header(&read, "etag"), etag);
    assert_eq!(json_of(read, StatusCode::OK).await, created);
    let unchanged = server.get("/v1/functions/echo").header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((unchanged.status(), header(&unchanged, "etag")), (StatusCode::NOT_MODIFIED, etag.as_str()));
    assert_eq!(unchanged.text().await.unwrap(), "");

    let again = server.post("/v1/functions", &body).send().await.unwrap();
    problem(again, 409, "already_exists").await;
    problem(server.get("/v1/functions/none").send().await.unwrap(), 404, "not_found").await;
}

#[tokio::test]
async fn the_caller_says_how_long_to_wait() {
    let server = Server::start().await;
    let gate = function_gateway_testkit::Gate::new();
    server.engine.set_readiness(Readiness::Gated(gate.clone()));
    let body = json!({"name": "slow", "spec": spec()});
    let created = server.post("/v1/functions", &body).header("prefer", "respond-async").send().await.unwrap();
    let created = json_of(created, StatusCode::CREATED).await;
    assert_ne!(created["status"]["phase"], "ready");
    gate.open();
    until("the function gets ready", async || {
        let read = server.get("/v1/functions/slow").send().await.unwrap();
        json_of(read, StatusCode::OK).await["status"]["phase"] == "ready"
    })
    .await;
    // What is no preference is left out, and `wait` counts more, in whichever order.
    for (name, prefer) in [("a", "wait=soon"), ("b", "respond-async, wait=10"), ("c", "wait=10, respond-async")] {
        let body = json!({"name": name, "spec": spec()});
        let created = server.post("/v1/functions", &body).header("prefer", prefer).send().await.unwrap();
        assert_eq!(json_of(created, StatusCode::CREATED).await["status"]["phase"], "ready", "{prefer}");
    }
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_specification_is_told_with_its_place() {
    let server = Server::start().await;
    let mut spec = spec();
    spec["labels"] = json!({"": "x"});
    spec["readiness_path"] = json!("health");
    spec["shiny"] = json!(1);
    let refused = server.post("/v1/functions", &json!({"name": "bad", "spec": spec})).send().await.unwrap();
    let refused = problem(refused, 422, "invalid_spec").await;
    let mut pointers: Vec<_> =
        refused["violations"].as_array().unwrap().iter().map(|found| found["pointer"].as_str().unwrap()).collect();
    pointers.sort_unstable();
    pointers.dedup();
    assert_eq!(pointers, ["/spec/labels/", "/spec/readiness_path", "/spec/shiny"]);

    for (body, status, code, pointer) in [
        (json!({"name": "x", "spec": {"driver": 1}}), 422, "invalid_spec", "/spec/driver"),
        (json!({"name": "x", "spec": {"driver": "scripted"}}), 422, "invalid_spec", "/spec"),
        (json!({"name": "No Name", "spec": {}}), 400, "invalid_argument", "/name"),
        (json!({"spec": {}}), 400, "invalid_argument", ""),
        (json!({"name": "x", "spec": {}, "sepc": {}}), 400, "invalid_argument", "/sepc"),
        (json!([]), 400, "invalid_argument", ""),
    ] {
        let refused = server.post("/v1/functions", &body).send().await.unwrap();
        let refused = problem(refused, status, code).await;
        assert_eq!(refused["violations"][0]["pointer"], pointer, "{body}: {refused}");
    }
    let list = json_of(server.get("/v1/functions").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn what_is_no_document_is_refused() {
    let server = Server::start().await;
    let create = || server.request(Method::POST, "/v1/functions");
    let refused = create().body("{}").send().await.unwrap();
    let refused = problem(refused, 415, "unsupported_media_type").await;
    assert!(refused["detail"].as_str().unwrap().contains("application/json"), "{refused}");
    let json = |body: String| create().header("content-type", "application/json; charset=utf-8").body(body);
    for body in ["", "{", "{\"name\": \"a\", \"spec\": {}} x", "\u{1}"] {
        problem(json(body.to_owned()).send().await.unwrap(), 400, "invalid_argument").await;
    }
    problem(json("[".repeat(10_000)).send().await.unwrap(), 400, "invalid_argument").await;
    let large = problem(json(" ".repeat(1024 * 1024 + 1)).send().await.unwrap(), 413, "payload_too_large").await;
    assert_eq!(large["context"]["limit_bytes"], "1048576");
}

#[tokio::test]
async fn a_change_keeps_to_its_condition() {
    let server = Server::start().await;
    let created = server.post("/v1/functions", &json!({"name": "echo", "spec": spec()})).send().await.unwrap();
    let etag = header(&created, "etag").to_owned();
    let mut changed = spec();
    changed["description"] = json!("second");
    let put = |body: &Value| server.request(Method::PUT, "/v1/functions/echo").json(body);

    let response = put(&changed).header("if-match", &etag).send().await.unwrap();
    let second = json_of(response, StatusCode::OK).await;
    assert_eq!((&second["generation"], &second["spec"]["description"]), (&json!(2), &json!("second")));
    problem(put(&spec()).header("if-match", &etag).send().await.unwrap(), 412, "precondition_failed").await;
    problem(put(&spec()).header("if-match", "etag").send().await.unwrap(), 400, "invalid_argument").await;
    problem(put(&spec()).header("if-none-match", "*").send().await.unwrap(), 412, "precondition_failed").await;
    let third = put(&spec()).header("if-match", "\"other\", *").send().await.unwrap();
    assert_eq!(json_of(third, StatusCode::OK).await["generation"], 3);

    let by_generation = |generation: u32| {
        server.request(Method::PUT, &format!("/v1/functions/echo?generation={generation}")).json(&changed)
    };
    problem(by_generation(2).send().await.unwrap(), 412, "precondition_failed").await;
    assert_eq!(json_of(by_generation(3).send().await.unwrap(), StatusCode::OK).await["generation"], 4);
    let deleted = server.request(Method::DELETE, "/v1/functions/echo?generation=3").send().await.unwrap();
    problem(deleted, 412, "precondition_failed").await;
    let deleted = server.request(Method::DELETE, "/v1/functions/echo?generation=4").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    let deleted = server.request(Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    problem(deleted, 404, "not_found").await;
}

#[tokio::test]
async fn another_function_of_the_name_has_other_tags() {
    let server = Server::start().await;
    server.create("echo").await;
    let etag = header(&server.get("/v1/functions/echo").send().await.unwrap(), "etag").to_owned();
    server.request(Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    server.create("echo").await;
    let put = server.request(Method::PUT, "/v1/functions/echo").json(&spec()).header("if-match", etag);
    problem(put.send().await.unwrap(), 412, "precondition_failed").await;
}

#[tokio::test]
async fn a_part_of_a_specification_is_changed_by_a_merge_patch() {
    let server = Server::start().await;
    server.create_with("echo", json!({"labels": {"team": "a", "tier": "1"}, "timeouts": {"total_ms": 5000}})).await;
    let patch = |body: &'static str| {
        let request = server.request(Method::PATCH, "/v1/functions/echo").body(body);
        request.header("content-type", "application/merge-patch+json")
    };
    let response = patch(r#"{"labels": {"team": "b", "tier": null}, "timeouts": null}"#).send().await.unwrap();
    let patched = json_of(response, StatusCode::OK).await;
    assert_eq!(patched["spec"]["labels"], json!({"team": "b"}));
    assert!(patched["spec"].get("timeouts").is_none());
    assert_eq!(patched["generation"], 2);

    let refused = problem(patch(r#"{"labels": 7}"#).send().await.unwrap(), 422, "invalid_spec").await;
    assert_eq!(refused["violations"][0]["pointer"], "/labels");
    problem(patch("[]").send().await.unwrap(), 400, "invalid_argument").await;
    let typed = patch("{}").header("content-type", "application/json").send().await.unwrap();
    assert_eq!(typed.status(), StatusCode::OK, "one of the two types is right");
    let json = server.request(Method::PATCH, "/v1/functions/echo").json(&json!({}));
    problem(json.send().await.unwrap(), 415, "unsupported_media_type").await;
}

#[tokio::test]
async fn revisions_are_listed_read_and_rolled_back_to() {
    let server = Server::start().await;
    server.create_with("echo", json!({"description": "one"})).await;
    for description in ["two", "three"] {
        let mut spec = spec();
        spec["description"] = json!(description);
        let put = server.request(Method::PUT, "/v1/functions/echo").json(&spec);
        json_of(put.send().await.unwrap(), StatusCode::OK).await;
    }
    let first = server.get("/v1/functions/echo/revisions?limit=2").send().await.unwrap();
    let first = json_of(first, StatusCode::OK).await;
    let next = format!("/v1/functions/echo/revisions?limit=2&cursor={}", first["next"].as_str().unwrap());
    let second = json_of(server.get(&next).send().await.unwrap(), StatusCode::OK).await;
    assert!(second.get("next").is_none());
    let both = [&first, &second].map(|part| part["items"].as_array().unwrap().clone()).concat();
    let shown: Vec<_> = both.iter().map(|revision| revision["spec"]["description"].as_str().unwrap()).collect();
    assert_eq!(shown, ["three", "two", "one"]);

    let one = server.get("/v1/functions/echo/revisions/1").send().await.unwrap();
    let etag = header(&one, "etag").to_owned();
    assert_eq!(json_of(one, StatusCode::OK).await["reason"], "created");
    let known = server.get("/v1/functions/echo/revisions/1").header("if-none-match", format!("W/{etag}"));
    assert_eq!(known.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    problem(server.get("/v1/functions/echo/revisions/9").send().await.unwrap(), 404, "not_found").await;
    problem(server.get("/v1/functions/echo/revisions/0").send().await.unwrap(), 400, "invalid_argument").await;

    let back = server.post("/v1/functions/echo/rollback", &json!({"generation": 1})).send().await.unwrap();
    let back = json_of(back, StatusCode::OK).await;
    assert_eq!((&back["generation"], &back["spec"]["description"]), (&json!(4), &json!("one")));
    let nowhere = server.post("/v1/functions/echo/rollback", &json!({"generation": 9})).send().await.unwrap();
    problem(nowhere, 404, "not_found").await;
    let rotated = server.request(Method::POST, "/v1/functions/echo/rotate-secrets").send().await.unwrap();
    assert_eq!(json_of(rotated, StatusCode::OK).await["generation"], 5);
}

#[tokio::test]
async fn functions_are_found_by_what_they_are() {
    let server = Server::start().await;
    for name in ["img-a", "img-b", "other"] {
        server.create_with(name, json!({"labels": {"kind": name, "team": "x y"}})).await;
    }
    let bob = crate::common::key(&server.gateway, "acme", "bob", &["write"]).await;
    let bobs = server.as_who(&bob, Method::POST, "/v1/functions").json(&json!({"name": "bobs", "spec": spec()}));
    json_of(bobs.send().await.unwrap(), StatusCode::CREATED).await;
    for (query, expected) in [
        ("", vec!["bobs", "img-a", "img-b", "other"]),
        ("owner=me", vec!["img-a", "img-b", "other"]),
        ("owner=bob", vec!["bobs"]),
        ("prefix=img-", vec!["img-a", "img-b"]),
        ("label=kind%3Dother", vec!["other"]),
        ("label=team=x+y&label=kind=img-a", vec!["img-a"]),
        ("phase=failed", vec![]),
        ("phase=ready&driver=scripted&limit=1", vec!["bobs"]),
        ("driver=elsewhere", vec![]),
    ] {
        let list = server.get(&format!("/v1/functions?{query}")).send().await.unwrap();
        let list = json_of(list, StatusCode::OK).await;
        let names: Vec<_> =
            list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{query}");
    }
    let first = json_of(server.get("/v1/functions?limit=3").send().await.unwrap(), StatusCode::OK).await;
    let next = format!("/v1/functions?limit=3&cursor={}", first["next"].as_str().unwrap());
    let second = json_of(server.get(&next).send().await.unwrap(), StatusCode::OK).await;
    let names = [&first, &second].map(|part| part["items"].as_array().unwrap().iter().map(|item| item["name"].clone()));
    assert_eq!(names.into_iter().flatten().collect::<Vec<_>>(), ["bobs", "img-a", "img-b", "other"]);
    assert!(second.get("next").is_none(), "{second}");
    for query in ["limit=0", "limit=1001", "limit=x", "phase=good", "label=kind", "cursor=x", "colour=red", "driver=A"]
    {
        let refused = server.get(&format!("/v1/functions?{query}")).send().await.unwrap();
        problem(refused, 400, "invalid_argument").await;
    }
}

#[tokio::test]
async fn a_specification_is_checked_without_being_stored() {
    let server = Server::start().await;
    let check = async |spec: &Value| {
        let checked = server.post("/v1/validate", spec).send().await.unwrap();
        json_of(checked, StatusCode::OK).await
    };
    assert_eq!(check(&spec()).await, json!({"valid": true, "violations": []}));
    assert_eq!(
        check(&json!({"driver": "none", "run": {"custom": {"kind": "x"}}})).await["violations"][0]["pointer"],
        "/driver"
    );
    assert_eq!(check(&json!({"driver": "scripted", "run": {}})).await["valid"], false);
    server.engine.on_check(|_| vec![Violation::new("/run/custom/kind", "is not known")]);
    assert_eq!(check(&spec()).await["violations"], json!([{"pointer": "/run/custom/kind", "reason": "is not known"}]));
    let list = json_of(server.get("/v1/functions").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn a_delete_that_the_engine_delays_is_accepted() {
    let server = Server::start().await;
    server.create("echo").await;
    let gate = server.engine.hang(Op::Remove);
    let deleted = server.request(Method::DELETE, "/v1/functions/echo").header("prefer", "respond-async");
    let deleted = json_of(deleted.send().await.unwrap(), StatusCode::ACCEPTED).await;
    assert_eq!(deleted["status"]["phase"], "deleting");
    gate.open();
    server.engine.heal(Op::Remove);
    until("the function is gone", async || {
        server.get("/v1/functions/echo").send().await.unwrap().status() == StatusCode::NOT_FOUND
    })
    .await;
}

#[tokio::test]
async fn what_serves_is_scaled_and_shows_its_log() {
    let server = Server::start().await;
    server.create("echo").await;
    let scaled = server.post("/v1/functions/echo/scale", &json!({"instances": 3})).send().await.unwrap();
    assert_eq!(scaled.status(), StatusCode::NO_CONTENT);
    let target = server.engine.targets().remove(0);
    assert_eq!(server.engine.instances(&target), Some(3));
    let scale = server.post("/v1/functions/echo/scale", &json!({"instances": 3}));
    for (op, request) in [(Op::Scale, scale), (Op::Logs, server.get("/v1/functions/echo/logs"))] {
        server.engine.inject(op, Fault::error(Error::new(ErrorKind::Unsupported, "not here")));
        problem(request.send().await.unwrap(), 501, "unsupported").await;
        server.engine.heal(op);
    }

    server.engine.on_invoke(logging("one\nt\u{e9}o\n"));
    server.invoke("echo", "").await;
    let log = server.get("/v1/functions/echo/logs").send().await.unwrap();
    assert_eq!(header(&log, "content-type"), "application/x-ndjson");
    assert_eq!(log.text().await.unwrap(), "{\"text\":\"one\"}\n{\"text\":\"t\u{e9}o\"}\n");
    let events = server.get("/v1/functions/echo/logs").header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(header(&events, "content-type"), "text/event-stream");
    let events = events.text().await.unwrap();
    assert!(events.starts_with("event: log\ndata: {\"text\":\"one\"}\n\n"), "{events}");
    assert!(events.ends_with("event: end\ndata: {}\n\n"), "{events}");
}

#[tokio::test]
async fn every_change_minds_what_the_client_has_seen() {
    let server = Server::start().await;
    server.create("echo").await;
    let etag = async || header(&server.get("/v1/functions/echo").send().await.unwrap(), "etag").to_owned();
    let mut spec = spec();
    let stale = etag().await;
    spec["description"] = json!("another");
    json_of(server.request(Method::PUT, "/v1/functions/echo").json(&spec).send().await.unwrap(), StatusCode::OK).await;
    let changes = [
        (Method::PATCH, "/v1/functions/echo", "application/merge-patch+json", "{\"description\": \"a third\"}"),
        (Method::POST, "/v1/functions/echo/rollback", "application/json", "{\"generation\": 1}"),
        (Method::POST, "/v1/functions/echo/rotate-secrets", "application/json", ""),
        (Method::DELETE, "/v1/functions/echo", "application/json", ""),
    ];
    for (method, path, content_type, body) in changes {
        let change = |etag: &str| {
            let change = server.request(method.clone(), path).header("content-type", content_type).body(body);
            change.header("if-match", etag).send()
        };
        problem(change(&stale).await.unwrap(), 412, "precondition_failed").await;
        let changed = change(&etag().await).await.unwrap();
        assert!(changed.status().is_success(), "{method} {path}: {}", changed.text().await.unwrap());
    }
}

#[tokio::test]
async fn a_function_that_is_being_deleted_is_not_changed() {
    let server = Server::start().await;
    server.create("echo").await;
    let gate = server.engine.hang(Op::Remove);
    let deleted = server.request(Method::DELETE, "/v1/functions/echo").header("prefer", "respond-async");
    json_of(deleted.send().await.unwrap(), StatusCode::ACCEPTED).await;
    let patch = server.request(Method::PATCH, "/v1/functions/echo").body("{}");
    for change in [
        server.request(Method::PUT, "/v1/functions/echo").json(&spec()),
        patch.header("content-type", "application/merge-patch+json"),
        server.post("/v1/functions/echo/rollback", &json!({"generation": 1})),
        server.request(Method::POST, "/v1/functions/echo/rotate-secrets"),
    ] {
        problem(change.send().await.unwrap(), 409, "conflict").await;
    }
    let again = server.post("/v1/functions", &json!({"name": "echo", "spec": spec()})).send().await.unwrap();
    problem(again, 409, "already_exists").await;
    gate.open();
}

#[tokio::test]
async fn what_an_engine_does_wrong_has_its_status_on_every_route_that_asks_it() {
    let server = Server::start().await;
    server.create("echo").await;
    for (kind, status, retry_after) in [
        (ErrorKind::Engine, 502, None),
        (ErrorKind::Unavailable, 503, Some("1")),
        (ErrorKind::DeadlineExceeded, 504, None),
    ] {
        let scale = server.post("/v1/functions/echo/scale", &json!({"instances": 3}));
        for (op, request) in [(Op::Scale, scale), (Op::Logs, server.get("/v1/functions/echo/logs"))] {
            server.engine.inject(op, Fault::error(Error::new(kind, "as it was told")));
            let refused = request.send().await.unwrap();
            let told = refused.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(told.as_deref(), retry_after, "{op:?} {kind}");
            problem(refused, status, kind.code()).await;
            server.engine.heal(op);
        }
        // Asked whether it takes a specification.
        let patch = server.request(Method::PATCH, "/v1/functions/echo").body("{\"description\": \"another\"}");
        for request in [
            server.post("/v1/functions", &json!({"name": "new", "spec": spec()})),
            server.request(Method::PUT, "/v1/functions/echo").json(&spec()),
            patch.header("content-type", "application/merge-patch+json"),
            server.post("/v1/functions/echo/rollback", &json!({"generation": 1})),
            server.request(Method::POST, "/v1/functions/echo/rotate-secrets"),
            server.post("/v1/validate", &spec()),
        ] {
            server.engine.inject(Op::Check, Fault::error(Error::new(kind, "as it was told")));
            problem(request.send().await.unwrap(), status, kind.code()).await;
            server.engine.heal(Op::Check);
        }
    }
}

#[tokio::test]
async fn a_function_that_does_not_serve_yet_says_when_to_come_again() {
    let server = Server::start().await;
    let gate = server.engine.hang(Op::Deploy);
    let body = json!({"name": "slow", "spec": spec()});
    let created = server.post("/v1/functions", &body).header("prefer", "respond-async").send().await.unwrap();
    assert_eq!(json_of(created, StatusCode::CREATED).await["status"]["phase"], "pending");
    for request in [
        server.request(Method::POST, "/v1/functions/slow/invocations"),
        server.request(Method::POST, "/v1/functions/slow/submit"),
        server.request(Method::POST, "/v1/functions/slow/validate"),
        server.get("/v1/functions/slow/http/x"),
        server.get("/v1/functions/slow/logs"),
        server.post("/v1/functions/slow/scale", &json!({"instances": 3})),
    ] {
        let refused = request.send().await.unwrap();
        assert_eq!(header(&refused, "retry-after"), "1");
        problem(refused, 503, "not_ready").await;
    }
    gate.open();
}

#[tokio::test]
async fn every_route_that_takes_a_document_says_what_is_wrong_with_one() {
    let options = RestOptions::default().with_max_document_bytes(200).with_document_timeout(Duration::from_millis(50));
    let server = Server::with_options(options).await;
    server.create("echo").await;
    for (method, path, content_type) in [
        ("POST", "/v1/functions", "application/json"),
        ("PUT", "/v1/functions/echo", "application/json"),
        ("PATCH", "/v1/functions/echo", "application/merge-patch+json"),
        ("POST", "/v1/functions/echo/rollback", "application/json"),
        ("POST", "/v1/functions/echo/scale", "application/json"),
        ("POST", "/v1/validate", "application/json"),
        ("POST", "/v1/keys", "application/json"),
        ("POST", "/v1/dead-letters/redrive", "application/json"),
        ("POST", "/v1/dead-letters/purge", "application/json"),
        ("POST", "/v1/subscriptions", "application/json"),
        ("PUT", "/v1/subscriptions/all", "application/json"),
    ] {
        let request = || server.request(method.parse().unwrap(), path);
        let typed = || request().header("content-type", content_type);
        let large = problem(typed().body(" ".repeat(201)).send().await.unwrap(), 413, "payload_too_large").await;
        assert_eq!(large["context"]["limit_bytes"], "200", "{method} {path}");
        let other = request().header("content-type", "text/plain").body("{}").send().await.unwrap();
        problem(other, 415, "unsupported_media_type").await;
        problem(typed().body("{").send().await.unwrap(), 400, "invalid_argument").await;
        let late = server.send_half(method, path, content_type, false).await;
        assert!(late.starts_with("HTTP/1.1 408") && late.contains("request_timeout"), "{method} {path}: {late}");
        let gone = server.send_half(method, path, content_type, true).await;
        assert!(gone.starts_with("HTTP/1.1 499") && gone.contains("cancelled"), "{method} {path}: {gone}");
    }
}

#[tokio::test]
async fn a_part_of_a_functions_log_is_read() {
    let server = Server::start().await;
    server.create("echo").await;
    server.engine.on_invoke(logging("one\ntwo\nthree\n"));
    server.invoke("echo", "").await;
    let log = async |query: &str| {
        let log = server.get(&format!("/v1/functions/echo/logs?{query}")).send().await.unwrap();
        assert_eq!(log.status(), StatusCode::OK, "{query}");
        log.text().await.unwrap()
    };
    assert_eq!(log("tail=2").await, "{\"text\":\"two\"}\n{\"text\":\"three\"}\n");
    assert_eq!(log("since=2020-01-01T00:00:00Z").await.lines().count(), 3);
    let events = server.get("/v1/functions/echo/logs?follow=true&tail=1").header("accept", "text/event-stream");
    let events = events.send().await.unwrap().text().await.unwrap();
    assert_eq!(events, "event: log\ndata: {\"text\":\"three\"}\n\nevent: end\ndata: {}\n\n");
    for query in ["tail=-1", "tail=x", "since=yesterday", "follow=maybe", "colour=red"] {
        let refused = server.get(&format!("/v1/functions/echo/logs?{query}")).send().await.unwrap();
        problem(refused, 400, "invalid_argument").await;
    }
}

#[tokio::test]
async fn a_specification_that_the_driver_refuses_changes_nothing() {
    let server = Server::start().await;
    server.create("echo").await;
    let before = json_of(server.get("/v1/functions/echo").send().await.unwrap(), StatusCode::OK).await;
    server.engine.on_check(|_| vec![Violation::new("/run/custom/kind", "is not known")]);
    let patch = server.request(Method::PATCH, "/v1/functions/echo").body("{\"description\": \"another\"}");
    for (request, pointer) in [
        (server.post("/v1/functions", &json!({"name": "new", "spec": spec()})), "/spec/run/custom/kind"),
        (server.request(Method::PUT, "/v1/functions/echo").json(&spec()), "/run/custom/kind"),
        (patch.header("content-type", "application/merge-patch+json"), "/run/custom/kind"),
        (server.post("/v1/functions/echo/rollback", &json!({"generation": 1})), "/run/custom/kind"),
        (server.request(Method::POST, "/v1/functions/echo/rotate-secrets"), "/run/custom/kind"),
    ] {
        let refused = problem(request.send().await.unwrap(), 422, "invalid_spec").await;
        assert_eq!(refused["violations"], json!([{"pointer": pointer, "reason": "is not known"}]));
    }
    let list = json_of(server.get("/v1/functions").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"], json!([before]));
}
