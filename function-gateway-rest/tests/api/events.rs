//! Events over HTTP, and the subscriptions that lead from them to functions.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    DocumentStore, Gateway, Page, PageRequest, Result, StoredDocument, TenantId, Version, WorkerConfig,
};
use function_gateway_events::{BrokerConfig, EventBroker};
use function_gateway_rest::RestOptions;
use function_gateway_testkit::Handler;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, Setup, broken, header, json_of, key, problem, store_fails, with_config};

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

/// A server whose broker is of a test's own.
async fn with_broker(broker: impl FnOnce(Gateway, Arc<MemoryStore>) -> EventBroker + 'static) -> Server {
    let events = |gateway, store| Some(broker(gateway, store));
    Server::with(Setup { events: Box::new(events), ..Setup::default() }).await
}

#[tokio::test]
async fn a_tenant_has_no_more_subscriptions_than_it_may() {
    let server = with_broker(|gateway, store| {
        let mut config = BrokerConfig::default();
        config.max_subscriptions = 1;
        EventBroker::with_config(gateway, store, config)
    })
    .await;
    subscribe(&server, "first", json!({"functions": ["f"]})).await;
    let second = json!({"name": "second", "spec": {"functions": ["f"]}});
    let refused = server.post("/v1/subscriptions", &second).send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), "1");
    let refused = problem(refused, 429, "rate_limited").await;
    assert_eq!(refused["context"]["limit"], "max_subscriptions");
    let stranger = key(&server.gateway, "other", "eve", &["admin"]).await;
    let of_another = server.as_who(&stranger, Method::POST, "/v1/subscriptions").json(&second).send().await.unwrap();
    assert_eq!(of_another.status(), StatusCode::CREATED);
    let deleted = server.request(Method::DELETE, "/v1/subscriptions/first").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    subscribe(&server, "second", json!({"functions": ["f"]})).await;
}

/// Documents each of which somebody else writes between its read and its change.
#[derive(Debug)]
struct Contended(Arc<MemoryStore>);

impl Contended {
    async fn write_before(&self, tenant: &TenantId, kind: &str, name: &str) -> Result<()> {
        if let Some(known) = self.0.document(tenant, kind, name).await? {
            self.0.put_document(&known, Some(known.version)).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl DocumentStore for Contended {
    async fn put_document(&self, document: &StoredDocument, expected: Option<Version>) -> Result<StoredDocument> {
        self.write_before(&document.tenant, &document.kind, &document.name).await?;
        self.0.put_document(document, expected).await
    }

    async fn document(&self, tenant: &TenantId, kind: &str, name: &str) -> Result<Option<StoredDocument>> {
        self.0.document(tenant, kind, name).await
    }

    async fn documents(&self, tenant: &TenantId, kind: &str, page: &PageRequest) -> Result<Page<StoredDocument>> {
        self.0.documents(tenant, kind, page).await
    }

    async fn delete_document(
        &self,
        tenant: &TenantId,
        kind: &str,
        name: &str,
        expected: Option<Version>,
    ) -> Result<()> {
        self.write_before(tenant, kind, name).await?;
        self.0.delete_document(tenant, kind, name, expected).await
    }
}

#[tokio::test]
async fn who_changes_a_subscription_after_somebody_else_is_told_so() {
    let server = with_broker(|gateway, store| EventBroker::new(gateway, Arc::new(Contended(store)))).await;
    let path = "/v1/subscriptions/s";
    let created = subscribe(&server, "s", json!({"functions": ["f"]})).await;
    for change in
        [server.request(Method::PUT, path).json(&json!({"functions": ["g"]})), server.request(Method::DELETE, path)]
    {
        problem(change.send().await.unwrap(), 409, "conflict").await;
        let kept = json_of(server.get(path).send().await.unwrap(), StatusCode::OK).await;
        assert_eq!(kept["spec"], created["spec"]);
    }
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
async fn an_event_that_leads_to_more_than_may_wait_is_refused() {
    let server = Server::with(with_config(|config| config.queue.max_per_function = 1)).await;
    server.create("f").await;
    subscribe(&server, "s", json!({"functions": ["f"]})).await;
    let first = published(binary(&server, "1", "{}")).await;
    let full = binary(&server, "2", "{}").send().await.unwrap();
    assert_eq!(header(&full, "retry-after"), "1");
    let full = problem(full, 429, "rate_limited").await;
    let context = &full["context"];
    assert_eq!((&context["limit"], &context["subscription"]), (&json!("max_per_function"), &json!("s")));
    // What was taken before needs no room.
    let again = published(binary(&server, "1", "{}")).await;
    assert_eq!((execution(&again), &again[0]["triggered"][0]["repeated"]), (execution(&first), &json!(true)));
}

/// One request for each operation on events and subscriptions.
fn operations(server: &Server) -> [RequestBuilder; 6] {
    let (path, spec) = ("/v1/subscriptions/s", json!({"functions": ["f"]}));
    [
        binary(server, "1", "{}"),
        server.post("/v1/subscriptions", &json!({"name": "s", "spec": spec})),
        server.get("/v1/subscriptions"),
        server.get(path),
        server.request(Method::PUT, path).json(&spec),
        server.request(Method::DELETE, path),
    ]
}

#[tokio::test]
async fn a_gateway_that_takes_no_events_says_so() {
    let server = Server::with(Setup { events: Box::new(|_, _| None), ..Setup::default() }).await;
    for request in operations(&server) {
        problem(request.send().await.unwrap(), 501, "unsupported").await;
    }
}

/// Documents that can't be kept or read now.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl DocumentStore for Broken {
    async fn put_document(&self, _: &StoredDocument, _: Option<Version>) -> Result<StoredDocument> {
        broken()
    }

    async fn document(&self, _: &TenantId, _: &str, _: &str) -> Result<Option<StoredDocument>> {
        broken()
    }

    async fn documents(&self, _: &TenantId, _: &str, _: &PageRequest) -> Result<Page<StoredDocument>> {
        broken()
    }

    async fn delete_document(&self, _: &TenantId, _: &str, _: &str, _: Option<Version>) -> Result<()> {
        broken()
    }
}

#[tokio::test]
async fn nothing_is_taken_while_subscriptions_can_not_be_read() {
    let server = with_broker(|gateway, _| EventBroker::new(gateway, Arc::new(Broken))).await;
    for request in operations(&server) {
        store_fails(request).await;
    }
}

#[tokio::test]
async fn an_event_that_is_too_large_or_does_not_come_is_refused() {
    let options = RestOptions::default().with_max_document_bytes(200).with_document_timeout(Duration::from_millis(50));
    let server = Server::with_options(options).await;
    let large = publish(&server).header("content-type", "application/cloudevents+json").body(" ".repeat(201));
    problem(large.send().await.unwrap(), 413, "payload_too_large").await;
    for (closes, expected, code) in [(false, "HTTP/1.1 408", "request_timeout"), (true, "HTTP/1.1 499", "cancelled")] {
        let late = server.send_half("POST", "/v1/events", "application/cloudevents+json", closes).await;
        assert!(late.starts_with(expected) && late.contains(code), "{late}");
    }
}
