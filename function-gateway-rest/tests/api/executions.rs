//! What is kept of executions, and figures over them.

use function_gateway_testkit::{Gate, Handler};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, header, json_of, logging, problem};

/// Executions of two functions, one of which failed.
async fn with_executions() -> Server {
    let server = Server::start().await;
    server.create_with("good", json!({"labels": {"team": "a"}})).await;
    server.create("bad").await;
    server.invoke("good", "1").await;
    server.invoke("good", "2").await;
    server.engine.on_invoke(Handler::failing("it failed"));
    server.invoke("bad", "3").await;
    server
}

async fn list(server: &Server, query: &str) -> Value {
    json_of(server.get(&format!("/v1/executions?{query}")).send().await.unwrap(), StatusCode::OK).await
}

#[tokio::test]
async fn executions_are_found_by_what_they_are() {
    let server = with_executions().await;
    let first = list(&server, "limit=1").await;
    let bad = &first["items"][0];
    let function = bad["function"].as_str().unwrap();
    let created = bad["created_at"].as_str().unwrap();
    for (query, expected) in [
        (String::new(), 3),
        ("function=good".to_owned(), 2),
        (format!("function_id={function}"), 1),
        ("state=failed".to_owned(), 1),
        ("state=succeeded".to_owned(), 2),
        ("class=function".to_owned(), 1),
        ("class=caller".to_owned(), 0),
        ("caller=me".to_owned(), 3),
        ("caller=bob".to_owned(), 0),
        ("label=team=a".to_owned(), 2),
        (format!("from={created}"), 1),
        (format!("until={created}"), 2),
    ] {
        assert_eq!(list(&server, &query).await["items"].as_array().unwrap().len(), expected, "{query}");
    }
    let second = list(&server, &format!("limit=5&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!(second["items"].as_array().unwrap().len(), 2);
    assert!(second.get("next").is_none());
    let many = server.get(&format!("/v1/executions?{}", "label=a=b&".repeat(33))).send().await.unwrap();
    problem(many, 400, "invalid_argument").await;
    for query in ["state=good", "function_id=7", "from=now", "unknown=1"] {
        let refused = server.get(&format!("/v1/executions?{query}")).send().await.unwrap();
        problem(refused, 400, "invalid_argument").await;
    }
    let id = bad["id"].as_str().unwrap();
    assert_eq!(&json_of(server.get(&format!("/v1/executions/{id}")).send().await.unwrap(), StatusCode::OK).await, bad);
    problem(server.get("/v1/executions/7").send().await.unwrap(), 400, "invalid_argument").await;
    let other = server.get("/v1/executions/0190a5e4-0000-7000-8000-000000000001").send().await.unwrap();
    problem(other, 404, "not_found").await;
}

#[tokio::test]
async fn executions_are_exported_as_lines() {
    let server = with_executions().await;
    let export = server.get("/v1/executions/export?function=good").send().await.unwrap();
    assert_eq!(header(&export, "content-type"), "application/x-ndjson");
    let text = export.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|record| record["key"]["name"] == "good"));
    let none = server.get("/v1/executions/export?caller=nobody").send().await.unwrap();
    assert_eq!(none.text().await.unwrap(), "");
    problem(server.get("/v1/executions/export?limit=3").send().await.unwrap(), 400, "invalid_argument").await;
}

#[tokio::test]
async fn figures_are_over_a_range() {
    let server = with_executions().await;
    let figures = json_of(server.get("/v1/statistics").send().await.unwrap(), StatusCode::OK).await;
    // This minute is rounded up, so what has just ended is in it.
    assert_eq!((&figures["count"], &figures["by_state"]["failed"]), (&json!(3), &json!(1)));
    assert!(figures["phases"]["total"]["p99_us"].is_u64());
    let good = json_of(server.get("/v1/statistics?function=good").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(good["count"], 2);
    let before = server.get("/v1/statistics?until=2020-01-01T00:00:00Z").send().await.unwrap();
    assert_eq!(json_of(before, StatusCode::OK).await["count"], 0);
    let since = server.get("/v1/statistics?from=2020-01-01T00:00:00Z&function=good").send().await.unwrap();
    assert_eq!(json_of(since, StatusCode::OK).await["count"], 2);
    let later = server.get("/v1/statistics?from=2120-01-01T00:00:00Z&until=2120-01-02T00:00:00Z").send().await.unwrap();
    assert_eq!(json_of(later, StatusCode::OK).await["count"], 0);
    problem(server.get("/v1/statistics?from=yesterday").send().await.unwrap(), 400, "invalid_argument").await;
}

#[tokio::test]
async fn the_log_of_an_execution_is_read_after_its_end() {
    let server = Server::start().await;
    server.create("logs").await;
    server.engine.on_invoke(logging("one\ntwo\u{e9}\n"));
    let answer = server.invoke("logs", "").await;
    let path = format!("/v1/executions/{}/logs", header(&answer, "x-function-invocation-id"));
    let log = server.get(&path).send().await.unwrap();
    assert_eq!(header(&log, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(log.text().await.unwrap(), "one\ntwo\u{e9}\n");
    let events = server.get(&path).header("accept", "text/event-stream").send().await.unwrap().text().await.unwrap();
    assert_eq!(events, "event: log\ndata: {\"text\":\"one\\ntwo\u{e9}\\n\"}\n\nevent: end\ndata: {}\n\n");
}

#[tokio::test]
async fn the_log_of_an_execution_is_followed_while_it_runs() {
    let server = Server::start().await;
    server.create("logs").await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::logging(&["one\n", "two\n"], &gate));
    let id = "0190a5e4-0000-7000-8000-000000000002";
    let call = server.request(Method::POST, "/v1/functions/logs/invocations").header("x-function-invocation-id", id);
    let call = tokio::spawn(call.send());
    gate.reached_by(1).await;
    let path = format!("/v1/executions/{id}/logs?follow=true");
    let log = server.get(&path).header("accept", "text/event-stream").send().await.unwrap();
    let mut events = log.bytes_stream();
    let mut next = async || String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, "event: log\ndata: {\"text\":\"one\\n\"}\n\n");
    gate.release(1);
    assert_eq!(next().await, "event: log\ndata: {\"text\":\"two\\n\"}\n\n");
    gate.open();
    assert_eq!(next().await, "event: end\ndata: {}\n\n");
    assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_export_has_each_execution_once_however_many_there_are() {
    let server = Server::start().await;
    server.create("echo").await;
    let mut made = Vec::new();
    // More than twice what is read of the store at once.
    for _ in 0..520 {
        let answer = server.invoke("echo", "").await;
        made.push(header(&answer, "x-function-invocation-id").to_owned());
    }
    let export = server.get("/v1/executions/export").send().await.unwrap().text().await.unwrap();
    let lines = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut exported: Vec<_> = lines.map(|record| record["id"].as_str().unwrap().to_owned()).collect();
    made.sort_unstable();
    exported.sort_unstable();
    assert_eq!(exported, made);
}
