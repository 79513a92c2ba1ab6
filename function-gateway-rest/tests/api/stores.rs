//! Stores that fail, hang or panic: what clients are told, and what goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::store::{ApiKeyStore, Durability, FunctionStore, InvocationStore, Lease};
use function_gateway_core::{
    ApiKey, ApiKeyId, AuditEvent, AuditFilter, AuditLog, Function, FunctionFilter, FunctionId, FunctionKey,
    FunctionStatus, GatewayBuilder, GatewayId, Generation, InvocationId, InvocationRecord, Page, PageRequest,
    RecordFilter, Result, Retention, Revision, Statistics, StatisticsQuery, TenantId, Timestamp, Version,
};
use function_gateway_testkit::Handler;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::common::{Server, Setup, anonymous, broken, header, problem, spec, store_fails, until};

/// Functions, records, keys and audit events that can't be kept or read now.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl ApiKeyStore for Broken {
    async fn add_key(&self, _: &ApiKey) -> Result<()> {
        broken()
    }

    async fn find_key(&self, _: ApiKeyId) -> Result<Option<Arc<ApiKey>>> {
        broken()
    }

    async fn keys(&self, _: &TenantId, _: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        broken()
    }

    async fn revoke_key(&self, _: &TenantId, _: ApiKeyId, _: Timestamp) -> Result<Arc<ApiKey>> {
        broken()
    }
}

#[async_trait]
impl AuditLog for Broken {
    async fn append(&self, _: AuditEvent) -> Result<()> {
        broken()
    }

    async fn list(&self, _: &TenantId, _: &AuditFilter, _: &PageRequest) -> Result<Page<Arc<AuditEvent>>> {
        broken()
    }

    async fn retain(&self, _: &Retention, _: Timestamp, _: usize) -> Result<u64> {
        broken()
    }
}

#[async_trait]
impl InvocationStore for Broken {
    async fn begin(&self, _: Arc<InvocationRecord>) -> Result<()> {
        broken()
    }

    async fn finish(&self, _: Arc<InvocationRecord>, _: Durability) -> Result<()> {
        broken()
    }

    async fn flush(&self) -> Result<()> {
        broken()
    }

    async fn get(&self, _: &TenantId, _: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        broken()
    }

    async fn list(&self, _: &TenantId, _: &RecordFilter, _: &PageRequest) -> Result<Page<Arc<InvocationRecord>>> {
        broken()
    }

    async fn statistics(&self, _: &TenantId, _: &StatisticsQuery) -> Result<Statistics> {
        broken()
    }

    async fn retain(&self, _: &Retention, _: Timestamp, _: usize) -> Result<u64> {
        broken()
    }
}

#[async_trait]
impl FunctionStore for Broken {
    async fn gateway_id(&self) -> Result<GatewayId> {
        Ok(GatewayId::generate())
    }

    async fn create(&self, _: &Function, _: &Revision) -> Result<()> {
        broken()
    }

    async fn get(&self, _: &FunctionKey) -> Result<Option<Arc<Function>>> {
        broken()
    }

    async fn update(&self, _: &Function, _: Version, _: Option<&Revision>) -> Result<Arc<Function>> {
        broken()
    }

    async fn list(&self, _: &TenantId, _: &FunctionFilter, _: &PageRequest) -> Result<Page<Arc<Function>>> {
        broken()
    }

    async fn revision(&self, _: &TenantId, _: FunctionId, _: Generation) -> Result<Option<Arc<Revision>>> {
        broken()
    }

    async fn revisions(&self, _: &TenantId, _: FunctionId, _: &PageRequest) -> Result<Page<Arc<Revision>>> {
        broken()
    }

    async fn acquire_lease(&self, _: &FunctionKey, _: Duration) -> Result<Option<Lease>> {
        broken()
    }

    async fn renew_lease(&self, _: &Lease, _: Duration) -> Result<()> {
        broken()
    }

    async fn release_lease(&self, _: &Lease) -> Result<()> {
        broken()
    }

    async fn update_status(&self, _: &Lease, _: Version, _: &FunctionStatus) -> Result<Arc<Function>> {
        broken()
    }

    async fn delete(&self, _: &Lease, _: Version) -> Result<()> {
        broken()
    }

    async fn scan_due(&self, _: Timestamp, _: usize) -> Result<Vec<FunctionKey>> {
        broken()
    }

    async fn find(&self, _: FunctionId) -> Result<Option<Arc<Function>>> {
        broken()
    }

    async fn scan_all(&self, _: &PageRequest) -> Result<Page<Arc<Function>>> {
        broken()
    }
}

#[tokio::test]
async fn a_store_that_fails_is_a_problem_that_tells_nothing_of_it() {
    let failing = |builder: GatewayBuilder| {
        let broken = Arc::new(Broken);
        let builder = builder.api_key_store(broken.clone()).audit_log(broken.clone());
        let queue = Arc::new(MemoryStore::new(GatewayId::generate()));
        builder.function_store(broken.clone()).invocation_store(broken).queue(queue)
    };
    let setup = Setup {
        gateway: Box::new(failing),
        api: Box::new(|builder| builder.authenticator(anonymous())),
        keys: false,
        ..Setup::default()
    };
    let server = Server::with(setup).await;
    let without_body = [
        "GET /v1/audit",
        "GET /v1/executions",
        "GET /v1/executions/export",
        "GET /v1/executions/{id}",
        "GET /v1/executions/{id}?wait_ms=1",
        "GET /v1/executions/{id}/logs",
        "GET /v1/executions/{id}/result",
        "GET /v1/functions",
        "GET /v1/functions/echo",
        "DELETE /v1/functions/echo",
        "GET /v1/functions/echo/http/",
        "POST /v1/functions/echo/invocations",
        "GET /v1/functions/echo/logs",
        "GET /v1/functions/echo/revisions",
        "GET /v1/functions/echo/revisions/1",
        "POST /v1/functions/echo/rotate-secrets",
        "POST /v1/functions/echo/submit",
        "GET /v1/functions/echo/submit/http/",
        "POST /v1/functions/echo/validate",
        "GET /v1/keys",
        "GET /v1/keys/{id}",
        "DELETE /v1/keys/{id}",
        "GET /v1/statistics",
    ];
    let with_body = [
        ("POST /v1/functions", json!({"name": "echo", "spec": spec()})),
        ("PUT /v1/functions/echo", spec()),
        ("PATCH /v1/functions/echo", json!({"description": "another"})),
        ("POST /v1/functions/echo/rollback", json!({"generation": 1})),
        ("POST /v1/functions/echo/scale", json!({"instances": 1})),
        ("POST /v1/keys", json!({"scopes": ["read"]})),
    ];
    let request = |line: &str| {
        let (method, path) = line.split_once(' ').unwrap();
        let url = server.url(&path.replace("{id}", "0190a5e4-0000-7000-8000-000000000001"));
        server.client.request(method.parse().unwrap(), url)
    };
    for line in without_body {
        store_fails(request(line)).await;
    }
    for (line, body) in with_body {
        let content_type = if line.starts_with("PATCH") { "application/merge-patch+json" } else { "application/json" };
        store_fails(request(line).header("content-type", content_type).body(body.to_string())).await;
    }
    // A credential that can't be looked up is not taken for one that is not valid.
    let key = format!("fgk_{}_{}", "0".repeat(32), "A".repeat(43));
    let unknown = server.as_who(&key, Method::GET, "/v1/me").send().await.unwrap();
    problem(unknown, 503, "store").await;
}

/// What a store does to who reads in it.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Fails,
    Hangs,
    Panics,
}

/// With words that are for nobody.
fn panics<T>() -> T {
    panic!("the password is hunter2")
}

/// Records of executions that are kept as ever, and with the reading of which there is trouble when a test says so.
#[derive(Debug)]
struct Troubled {
    records: Arc<dyn InvocationStore>,
    /// After how many more reads, and which.
    trouble: Mutex<Option<(usize, Trouble)>>,
    /// How often there was trouble.
    met: AtomicUsize,
}

impl Troubled {
    fn trouble_after(&self, reads: usize, trouble: Trouble) {
        *self.trouble.lock().unwrap() = Some((reads, trouble));
    }

    fn heal(&self) {
        *self.trouble.lock().unwrap() = None;
    }

    fn next(&self) -> Option<Trouble> {
        match &mut *self.trouble.lock().unwrap() {
            Some((0, trouble)) => {
                self.met.fetch_add(1, Ordering::SeqCst);
                Some(*trouble)
            }
            Some((reads, _)) => {
                *reads -= 1;
                None
            }
            None => None,
        }
    }

    async fn read(&self) -> Result<()> {
        match self.next() {
            None => Ok(()),
            Some(Trouble::Fails) => broken(),
            Some(Trouble::Hangs) => std::future::pending().await,
            Some(Trouble::Panics) => panics(),
        }
    }
}

#[async_trait]
impl InvocationStore for Troubled {
    async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()> {
        self.records.begin(record).await
    }

    async fn finish(&self, record: Arc<InvocationRecord>, durability: Durability) -> Result<()> {
        self.records.finish(record, durability).await
    }

    async fn flush(&self) -> Result<()> {
        self.records.flush().await
    }

    async fn get(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        self.read().await?;
        self.records.get(tenant, id).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        self.read().await?;
        self.records.list(tenant, filter, page).await
    }

    async fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Result<Statistics> {
        self.read().await?;
        self.records.statistics(tenant, query).await
    }

    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        self.records.retain(retention, now, limit).await
    }
}

/// A server with the function `echo`, and its records.
async fn with_troubled() -> (Server, Arc<Troubled>) {
    let store = Arc::new(MemoryStore::new(GatewayId::generate()));
    let troubled =
        Arc::new(Troubled { records: store.clone(), trouble: Mutex::default(), met: AtomicUsize::default() });
    let records = Arc::clone(&troubled);
    let gateway = |builder: GatewayBuilder| builder.store(store.clone()).invocation_store(records).queue(store);
    let server = Server::with(Setup { gateway: Box::new(gateway), ..Setup::default() }).await;
    server.create("echo").await;
    (server, troubled)
}

#[tokio::test]
async fn a_gateway_is_not_ready_while_its_store_does_not_answer() {
    let (server, records) = with_troubled().await;
    let probe = async |path: &str| server.client.get(server.url(path)).send().await.unwrap();
    // What was found holds for a second.
    let becomes =
        async |status: StatusCode| until("it is noticed", async || probe("/readyz").await.status() == status).await;
    for (trouble, told) in [(Trouble::Fails, "the disk is full"), (Trouble::Hangs, "did not answer")] {
        records.trouble_after(0, trouble);
        becomes(StatusCode::SERVICE_UNAVAILABLE).await;
        let refused = probe("/readyz").await;
        assert_eq!(header(&refused, "retry-after"), "1");
        let refused = problem(refused, 503, "store").await;
        assert!(refused["detail"].as_str().unwrap().contains(told), "{refused}");
        assert!(!refused.to_string().contains("sda1"), "{refused}");
        assert_eq!(probe("/healthz").await.status(), StatusCode::OK, "it lives all the same");
        records.heal();
        becomes(StatusCode::OK).await;
    }
}

#[tokio::test]
async fn an_export_that_is_broken_off_does_not_look_whole() {
    let (server, records) = with_troubled().await;
    // One more than is read of the store at once.
    for _ in 0..257 {
        assert_eq!(server.invoke("echo", "").await.status(), StatusCode::OK);
    }
    let export = async || server.get("/v1/executions/export").send().await?.text().await;
    for trouble in [Trouble::Fails, Trouble::Panics] {
        records.trouble_after(1, trouble);
        assert!(export().await.is_err(), "{trouble:?}");
    }
    records.heal();
    assert_eq!(export().await.unwrap().lines().count(), 257);
}

#[tokio::test]
async fn a_log_is_followed_through_the_time_in_which_a_store_fails() {
    let (server, records) = with_troubled().await;
    let submit = server.request(Method::POST, "/v1/functions/echo/submit").header("x-function-delay-ms", "3600000");
    let id = header(&submit.send().await.unwrap(), "x-function-invocation-id").to_owned();
    let log = server.get(&format!("/v1/executions/{id}/logs?follow=true")).header("accept", "text/event-stream");
    let log = log.send().await.unwrap();
    records.trouble_after(0, Trouble::Fails);
    until("it has met with trouble twice", async || records.met.load(Ordering::SeqCst) >= 2).await;
    records.heal();
    let cancelled = server.request(Method::POST, &format!("/v1/executions/{id}/cancel")).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
    assert_eq!(log.text().await.unwrap(), "event: end\ndata: {}\n\n");
}

#[tokio::test]
async fn a_store_or_a_driver_that_panics_is_a_problem_and_the_connection_goes_on() {
    let (server, records) = with_troubled().await;
    records.trouble_after(0, Trouble::Panics);
    server.engine.on_invoke(Handler::new(async |_, _| panics()));
    server.engine.on_check(|_| panics());
    let key = &server.admin;
    let next = format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
    let (spec, new) = (spec().to_string(), json!({"name": "new", "spec": spec()}).to_string());
    for (line, more, body) in [
        ("GET /v1/executions", "", ""),
        ("GET /v1/executions/export", "", ""),
        ("GET /v1/executions/0190a5e4-0000-7000-8000-000000000001", "", ""),
        ("GET /v1/executions/0190a5e4-0000-7000-8000-000000000001/logs", "", ""),
        ("GET /v1/executions/0190a5e4-0000-7000-8000-000000000001/result", "", ""),
        ("GET /v1/statistics", "", ""),
        ("GET /v1/functions/echo/http/", "", ""),
        ("POST /v1/functions/echo/invocations", "", "x"),
        ("POST /v1/functions/echo/invocations", "idempotency-key: k\r\n", "x"),
        ("POST /v1/functions", "content-type: application/json\r\n", new.as_str()),
        ("PUT /v1/functions/echo", "content-type: application/json\r\n", spec.as_str()),
        ("POST /v1/validate", "content-type: application/json\r\n", spec.as_str()),
    ] {
        let length = body.len();
        let head =
            format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}content-length: {length}");
        let answers = server.raw(format!("{head}\r\n\r\n{body}{next}").as_bytes()).await;
        let (failed, me) = answers.split_at(answers.rfind("HTTP/1.1 ").unwrap());
        assert!(failed.starts_with("HTTP/1.1 500"), "{line}: {answers}");
        assert!(failed.contains("\r\ncontent-type: application/problem+json\r\n"), "{line}: {answers}");
        assert!(failed.contains("\"code\":\"internal\"") && !failed.contains("hunter2"), "{line}: {answers}");
        assert!(me.starts_with("HTTP/1.1 200") && me.contains("\"principal\":\"ada\""), "{line}: {answers}");
    }
}
