//! Events over HTTP, and the subscriptions that lead from them to functions.

use std::time::Duration;

use function_gateway_core::WorkerConfig;
use function_gateway_rest::RestOptions;
use function_gateway_testkit::Handler;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, Setup, header, json_of, key, problem};

async fn server() -> Server {
    let server = Server::start().await;
    server.create("f").await;
    server.gateway.start_workers(WorkerConfig::default()).unwrap();
    server
}

async fn subscribe(server: &Server, name: &str, spec: Value) -> Value {
    let created = server.post("/v1/subscriptions", &json!({"name": name, "spec": spec})).send().await.unwrap();
    assert!(header(&created, "etag").ends_with(".1\""), "{created:?}");
    json_of(created, StatusCode::CREATED).await
}

fn publish(server: &Server) -> RequestBuilder {
    server.request(Method::POST, "/v1/events")
}

fn binary(server: &Server, id: &str, data: &'static str) -> RequestBuilder {
    publish(server)
        .header("ce-id", id)
        .header("ce-source", "/shop")
        .header("ce-type", "order.created")
        .header("ce-specversion", "1.0")
        .header("content-type", "application/json")
        .body(data)
}

async fn published(request: RequestBuilder) -> Value {
    json_of(request.send().await.unwrap(), StatusCode::ACCEPTED).await
}

fn execution(published: &Value) -> &str {
    published[0]["triggered"][0]["execution"].as_str().unwrap()
}

async fn ended(server: &Server, id: &str) -> Value {
    let record = server.get(&format!("/v1/executions/{id}?wait_ms=30000")).send().await.unwrap();
    json_of(record, StatusCode::OK).await
}

#[tokio::test]
async fn an_event_in_each_mode_executes_what_subscribes_to_it() {
    let server = server().await;
    let filters = json!([{"prefix": {"type": "order."}}]);
    let created = subscribe(&server, "orders", json!({"functions": ["f"], "filters": filters})).await;
    assert_eq!((&created["name"], &created["principal"]), (&json!("orders"), &json!("ada")));

    let by_headers = published(binary(&server, "1", r#"{"total":1}"#)).await;
    assert_eq!((&by_headers[0]["id"], &by_headers[0]["source"]), (&json!("1"), &json!("/shop")));
    let record = ended(&server, execution(&by_headers)).await;
    assert_eq!((&record["state"], &record["origin"]), (&json!("succeeded"), &json!("event")));
    assert_eq!(record["lineage"]["event"]["subscription"], "orders");
    let result = server.get(&format!("/v1/executions/{}/result", execution(&by_headers))).send().await.unwrap();
    assert_eq!(result.text().await.unwrap(), r#"{"total":1}"#);

    let event =
        |id: &str| json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "order.paid", "data": {"a": 1}});
    let structured =
        publish(&server).header("content-type", "application/cloudevents+json").body(event("2").to_string());
    let structured = published(structured).await;
    assert_eq!(ended(&server, execution(&structured)).await["state"], "succeeded");

    let other = json!({"specversion": "1.0", "id": "9", "source": "/shop", "type": "other"});
    let batch = json!([event("2"), event("3"), other]).to_string();
    let batch = publish(&server).header("content-type", "application/cloudevents-batch+json").body(batch);
    let batch = published(batch).await;
    assert_eq!(batch.as_array().unwrap().len(), 3);
    assert_eq!(batch[0]["triggered"][0]["repeated"], true, "it was taken before");
    assert_eq!(batch[1]["triggered"][0]["repeated"], false);
    assert_eq!(batch[2]["triggered"], json!([]));
}

#[tokio::test]
async fn what_is_no_event_is_refused_with_all_that_is_wrong() {
    let server = server().await;
    let refused = publish(&server).header("ce-specversion", "1.0").header("ce-id", "").body("x").send().await.unwrap();
    let problem = problem(refused, 400, "invalid_argument").await;
    let pointers: Vec<_> =
        problem["violations"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert!(pointers.contains(&"/id") && pointers.contains(&"/source") && pointers.contains(&"/type"), "{pointers:?}");
}

#[tokio::test]
async fn a_subscription_is_read_replaced_and_deleted() {
    let server = server().await;
    subscribe(&server, "s", json!({"functions": ["f"]})).await;
    let path = "/v1/subscriptions/s";
    let taken = server.post("/v1/subscriptions", &json!({"name": "s", "spec": {"functions": ["f"]}})).send().await;
    problem(taken.unwrap(), 409, "already_exists").await;
    let read = server.get(path).send().await.unwrap();
    let etag = header(&read, "etag").to_owned();
    let known = server.get(path).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((known.status(), header(&known, "etag")), (StatusCode::NOT_MODIFIED, etag.as_str()));
    assert_eq!(json_of(read, StatusCode::OK).await["spec"]["functions"], json!(["f"]));
    let replace = |etag: &str| {
        let spec = json!({"functions": ["f", "g"], "strategy": "sequential_stop", "on_failure": "drop"});
        server.request(Method::PUT, path).header("if-match", etag).json(&spec)
    };
    problem(replace("\"7\"").send().await.unwrap(), 412, "precondition_failed").await;
    let replaced = replace(&etag).send().await.unwrap();
    let newer = header(&replaced, "etag").to_owned();
    assert_ne!(newer, etag);
    let changed = server.get(path).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(json_of(replaced, StatusCode::OK).await["spec"]["strategy"], "sequential_stop");
    let list = json_of(server.get("/v1/subscriptions?limit=5").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"][0]["name"], "s");
    let delete = |etag: &str| server.request(Method::DELETE, path).header("if-match", etag);
    problem(delete(&etag).send().await.unwrap(), 412, "precondition_failed").await;
    assert_eq!(delete(&newer).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    problem(server.get(path).send().await.unwrap(), 404, "not_found").await;
    // Another one of the name is not the one that was read.
    subscribe(&server, "s", json!({"functions": ["f"]})).await;
    problem(delete(&etag).send().await.unwrap(), 412, "precondition_failed").await;
}

#[tokio::test]
async fn a_bad_subscription_says_where() {
    let server = server().await;
    for (document, pointer) in [
        (json!({"name": "s", "spec": {"functions": []}}), Some("/spec/functions")),
        (json!({"name": "s", "spec": {"functions": ["f"], "filters": [{"sql": "x"}]}}), Some("/spec/filters")),
        (
            json!({"name": "s", "spec": {"functions": ["f"], "on_failure": {"retry": {"max_attempts": 0}}}}),
            Some("/spec/on_failure/retry/max_attempts"),
        ),
        (json!({"name": "s", "spec": {"functions": ["f"], "stratgy": "parallel"}}), Some("/spec/stratgy")),
        (json!({"name": "S!", "spec": {"functions": ["f"]}}), None),
    ] {
        let refused = server.post("/v1/subscriptions", &document).send().await.unwrap();
        let problem = problem(refused, 400, "invalid_argument").await;
        let found = problem["violations"][0]["pointer"].as_str();
        assert_eq!(found.is_some(), pointer.is_some(), "{problem}");
        assert!(pointer.is_none_or(|pointer| found.unwrap().starts_with(pointer)), "{problem}");
    }
}

#[tokio::test]
async fn what_fails_is_a_dead_letter_that_can_be_redriven() {
    let server = server().await;
    subscribe(&server, "s", json!({"functions": ["f"], "on_failure": "dead_letter"})).await;
    server.engine.on_invoke(Handler::failing("bad luck"));
    let event = published(binary(&server, "1", "{}")).await;
    let id = execution(&event).to_owned();
    assert_eq!(ended(&server, &id).await["state"], "failed");
    let letters = json_of(server.get("/v1/dead-letters").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(letters["items"][0]["id"], json!(id));
    server.engine.on_invoke(Handler::echo());
    let redriven: Response =
        server.request(Method::POST, &format!("/v1/dead-letters/{id}/redrive")).send().await.unwrap();
    let redriven = json_of(redriven, StatusCode::ACCEPTED).await;
    let record = ended(&server, redriven["id"].as_str().unwrap()).await;
    assert_eq!((&record["state"], &record["lineage"]["redrive_of"]), (&json!("succeeded"), &json!(id)));
}

#[tokio::test]
async fn rights_are_asked_for() {
    let server = server().await;
    let reader = key(&server.gateway, "acme", "ben", &["read"]).await;
    let event = server
        .as_who(&reader, Method::POST, "/v1/events")
        .header("content-type", "application/cloudevents+json")
        .body(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}).to_string());
    problem(event.send().await.unwrap(), 403, "permission_denied").await;
    let spec = json!({"name": "s", "spec": {"functions": ["f"]}});
    let create = server.as_who(&reader, Method::POST, "/v1/subscriptions").json(&spec);
    problem(create.send().await.unwrap(), 403, "permission_denied").await;
    let list = server.as_who(&reader, Method::GET, "/v1/subscriptions").send().await.unwrap();
    assert_eq!(list.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_gateway_that_takes_no_events_says_so() {
    let server = Server::with(Setup { events: false, ..Setup::default() }).await;
    problem(binary(&server, "1", "{}").send().await.unwrap(), 501, "unsupported").await;
    problem(server.get("/v1/subscriptions").send().await.unwrap(), 501, "unsupported").await;
}

#[tokio::test]
async fn an_event_that_is_too_large_or_does_not_come_is_refused() {
    let options = RestOptions::default().with_max_document_bytes(200).with_document_timeout(Duration::from_millis(50));
    let server = Server::with_options(options).await;
    let large = publish(&server).header("content-type", "application/cloudevents+json").body(" ".repeat(201));
    problem(large.send().await.unwrap(), 413, "payload_too_large").await;
    let late = server.send_half("POST", "/v1/events", "application/cloudevents+json").await;
    assert!(late.starts_with("HTTP/1.1 408") && late.contains("request_timeout"), "{late}");
}
