//! API keys and the audit log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    AccessManager as _, Action, ApiKey, ApiKeyId, ApiKeyState, ApiKeyStore, AuditEvent, AuditFilter, AuditLog,
    CallContext, Clock as _, ErrorKind, FunctionManager as _, Gateway, GatewayConfig, NewApiKey, Page, PageRequest,
    Result, Retention, ScopeAuthorizer, TenantId, Timestamp,
};
use function_gateway_testkit::{Engine, Gate, ManualClock};

use crate::common::{Setup, cx, gateway, gateway_with, name, over, principal, soon, spec, store};

/// A caller of the tenant `acme` with scopes.
fn caller(id: &str, scopes: &[&str]) -> CallContext {
    let principal = scopes.iter().fold(principal("acme", id), |principal, scope| principal.with_scope(*scope));
    CallContext::new(principal)
}

fn admin() -> CallContext {
    caller("ann", &["admin"])
}

fn new_key() -> NewApiKey {
    NewApiKey::new(ApiKeyId::generate(), [7; 32])
}

async fn guarded() -> Setup {
    gateway_with(|builder| builder.authorizer(Arc::new(ScopeAuthorizer))).await
}

/// What was done or refused, newest first.
async fn audited(gateway: &Gateway) -> Vec<(Action, Option<ApiKeyId>, bool)> {
    let page = gateway.audit_events(&admin(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    page.items.iter().map(|event| (event.action, event.key, event.allowed)).collect()
}

#[tokio::test]
async fn a_key_is_created_found_listed_and_revoked() {
    let clock = ManualClock::default();
    let at = clock.now();
    let expires_at = at.plus(Duration::from_secs(60));
    let setup = gateway_with(|builder| builder.clock(Arc::new(clock.clone()))).await;
    let gateway = &setup.gateway;
    assert_eq!(gateway.now(), at);
    let mine = gateway.create_api_key(&cx(), new_key()).await.unwrap();
    assert_eq!((mine.principal.as_str(), mine.created_by.as_str(), mine.created_at), ("ada", "ada", at));
    assert_eq!((&mine.scopes, &*mine.description, mine.expires_at), (&BTreeSet::new(), "", None));
    clock.advance(Duration::from_secs(1));
    let new = new_key()
        .with_principal("bob".parse().unwrap())
        .with_scope("read")
        .with_description("for the nightly job")
        .with_expires_at(expires_at);
    let bobs = gateway.create_api_key(&cx(), new).await.unwrap();
    assert_eq!((bobs.tenant.as_str(), bobs.principal.as_str(), bobs.created_by.as_str()), ("acme", "bob", "ada"));
    assert_eq!((bobs.hash, bobs.state(gateway.now())), ([7; 32], ApiKeyState::Active));

    let page = gateway.api_keys(&cx(), &PageRequest::first(1)).await.unwrap();
    assert_eq!(page.items, std::slice::from_ref(&bobs));
    let page = gateway.api_keys(&cx(), &PageRequest::first(1).after(page.next.unwrap())).await.unwrap();
    assert_eq!((page.items, page.next), (vec![mine.clone()], None));
    assert_eq!(gateway.api_key(&cx(), mine.id).await.unwrap(), mine);
    assert_eq!(gateway.find_api_key(bobs.id).await.unwrap(), Some(bobs.clone()));
    assert_eq!(gateway.find_api_key(ApiKeyId::generate()).await.unwrap(), None);

    clock.advance(Duration::from_secs(1));
    let revoked = gateway.revoke_api_key(&cx(), bobs.id).await.unwrap();
    assert_eq!((revoked.revoked_at, revoked.state(at)), (Some(gateway.now()), ApiKeyState::Revoked));
    clock.advance(Duration::from_secs(1));
    assert_eq!(gateway.revoke_api_key(&cx(), bobs.id).await.unwrap(), revoked);
    assert_eq!(gateway.find_api_key(bobs.id).await.unwrap(), Some(revoked));
    let expected = [
        (Action::RevokeKey, Some(bobs.id), true),
        (Action::CreateKey, Some(bobs.id), true),
        (Action::CreateKey, Some(mine.id), true),
    ];
    assert_eq!(audited(gateway).await, expected, "to revoke once more changed nothing");
}

#[tokio::test]
async fn a_foreign_tenants_key_does_not_exist() {
    let setup = gateway().await;
    let gateway = &setup.gateway;
    let key = gateway.create_api_key(&cx(), new_key()).await.unwrap();
    let other = CallContext::new(principal("other", "bob"));
    let errors = [gateway.api_key(&other, key.id).await.err(), gateway.revoke_api_key(&other, key.id).await.err()];
    for error in errors {
        assert_eq!(error.unwrap().kind(), ErrorKind::NotFound);
    }
    assert_eq!(gateway.api_keys(&other, &PageRequest::default()).await.unwrap().items, []);
    let events = gateway.audit_events(&other, &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    assert_eq!(events.items, []);
    assert_eq!(gateway.api_key(&cx(), key.id).await.unwrap(), key);
    let mut again = new_key();
    again.id = key.id;
    let error = gateway.create_api_key(&other, again).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(!error.to_string().contains("acme"), "{error}");
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_key_is_told_at_once() {
    let clock = ManualClock::default();
    let setup =
        gateway_with(|builder| builder.clock(Arc::new(clock.clone())).authorizer(Arc::new(ScopeAuthorizer))).await;
    let bad = new_key()
        .with_scope("owner")
        .with_scope("read")
        .with_description("x".repeat(1025))
        .with_expires_at(clock.now());
    let too_long = new_key().with_scope("a").with_scope("x".repeat(257));
    let mut too_many = new_key();
    too_many.scopes = (0..65).map(|number| format!("read:f{number}")).collect();
    for (new, expected) in [
        (bad, vec!["/description", "/expires_at", "/scopes/0"]),
        (too_long, vec!["/scopes/1"]),
        (too_many, vec!["/scopes"]),
    ] {
        let error = setup.gateway.create_api_key(&admin(), new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let pointers: Vec<_> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(pointers, expected, "{error}");
    }
    assert_eq!(setup.gateway.api_keys(&admin(), &PageRequest::default()).await.unwrap().items, []);
    let largest = new_key()
        .with_scope(format!("read:{}", "x".repeat(63)))
        .with_description("x".repeat(1024))
        .with_expires_at(clock.now().plus(Duration::from_micros(1)));
    setup.gateway.create_api_key(&admin(), largest).await.unwrap();
}

#[tokio::test]
async fn nobody_gets_more_by_a_key_than_its_creator_has_and_the_attempt_is_audited() {
    let setup = guarded().await;
    let gateway = &setup.gateway;
    let refused = new_key().with_scope("metrics").with_scope("write");
    let id = refused.id;
    let error = gateway.create_api_key(&admin(), refused).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.violations().len(), 1);
    assert_eq!(error.violations()[0].pointer, "/scopes/0");
    assert_eq!(gateway.find_api_key(id).await.unwrap(), None);
    assert_eq!(audited(gateway).await, [(Action::CreateKey, Some(id), false)]);
    let both = caller("ann", &["admin", "metrics"]);
    gateway.create_api_key(&both, new_key().with_scope("metrics").with_scope("admin")).await.unwrap();
}

#[tokio::test]
async fn the_authorizer_guards_keys_audit_log_and_metrics_and_refused_changes_are_audited() {
    let setup = guarded().await;
    let gateway = &setup.gateway;
    let key = gateway.create_api_key(&admin(), new_key()).await.unwrap();
    let page = PageRequest::default();
    // Nobody of these has a right on the tenant's access, or on what is about all tenants.
    for scopes in [&[][..], &["read", "write", "invoke"], &["admin:*", "admin:f"]] {
        let cx = caller("bob", scopes);
        let tried = new_key();
        let id = tried.id;
        let unknown = ApiKeyId::generate();
        let errors = [
            gateway.create_api_key(&cx, tried).await.err(),
            gateway.api_keys(&cx, &page).await.err(),
            gateway.api_key(&cx, key.id).await.err(),
            gateway.revoke_api_key(&cx, key.id).await.err(),
            gateway.revoke_api_key(&cx, unknown).await.err(),
            gateway.audit_events(&cx, &AuditFilter::all(), &page).await.err(),
            gateway.may_read_metrics(&cx).await.err(),
        ];
        for (index, error) in errors.into_iter().enumerate() {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::PermissionDenied), "operation {index}");
        }
        let expected = [
            (Action::RevokeKey, Some(unknown), false),
            (Action::RevokeKey, Some(key.id), false),
            (Action::CreateKey, Some(id), false),
        ];
        assert_eq!(audited(gateway).await[..3], expected);
    }
    assert_eq!(gateway.api_key(&admin(), key.id).await.unwrap(), key);
    assert_eq!(gateway.may_read_metrics(&admin()).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    gateway.may_read_metrics(&caller("bob", &["metrics"])).await.unwrap();
}

#[tokio::test]
async fn without_an_authorizer_nobody_reads_what_is_about_all_tenants() {
    let setup = gateway().await;
    let error = setup.gateway.may_read_metrics(&cx()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.message().contains("read_metrics"), "{error}");
}

#[tokio::test]
async fn a_gateway_without_a_store_for_keys_says_so_and_audits_in_memory() {
    let (store, id) = (store(), ApiKeyId::generate());
    let gateway = Gateway::builder()
        .function_store(Arc::clone(&store) as _)
        .invocation_store(Arc::clone(&store) as _)
        .driver("scripted".parse().unwrap(), Arc::new(crate::common::driver(&Engine::new())))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let errors = [
        gateway.create_api_key(&cx(), new_key()).await.err(),
        gateway.api_keys(&cx(), &PageRequest::default()).await.err(),
        gateway.api_key(&cx(), id).await.err(),
        gateway.revoke_api_key(&cx(), id).await.err(),
        gateway.find_api_key(id).await.err(),
    ];
    for (index, error) in errors.into_iter().enumerate() {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "operation {index}");
        assert!(error.message().contains("keeps no API keys"), "{error}");
    }
    gateway.create(&cx(), &name("echo"), spec()).await.unwrap();
    assert_eq!(audited(&gateway).await, [(Action::Create, None, true)]);
    let events = AuditLog::list(&*store, cx().tenant(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    assert_eq!(events.items, [], "the store was not given for that");
}

#[tokio::test]
async fn keys_and_audit_log_can_be_in_stores_of_their_own() {
    let (keys, log) = (store(), store());
    let setup =
        gateway_with(|builder| builder.api_key_store(Arc::clone(&keys) as _).audit_log(Arc::clone(&log) as _)).await;
    let key = setup.gateway.create_api_key(&cx(), new_key()).await.unwrap();
    assert_eq!(keys.find_key(key.id).await.unwrap(), Some(key.clone()));
    assert_eq!(setup.store.find_key(key.id).await.unwrap(), None);
    let page = PageRequest::default();
    let events = AuditLog::list(&*log, cx().tenant(), &AuditFilter::all(), &page).await.unwrap();
    assert_eq!(events.items.len(), 1);
    let none = AuditLog::list(&*setup.store, cx().tenant(), &AuditFilter::all(), &page).await.unwrap();
    assert_eq!(none.items, []);
}

#[tokio::test]
async fn audit_events_are_filtered_and_paged() {
    let setup = guarded().await;
    let gateway = &setup.gateway;
    for function in ["a", "b"] {
        gateway.create(&admin(), &name(function), spec()).await.unwrap();
    }
    gateway.scale(&admin(), &name("a"), 2).await.unwrap();
    let reader = caller("bob", &["read"]);
    gateway.scale(&reader, &name("a"), 3).await.unwrap_err();
    let events = async |filter: AuditFilter| {
        let page = gateway.audit_events(&admin(), &filter, &PageRequest::default()).await.unwrap();
        page.items.iter().map(|event| (event.action, event.generation.is_some(), event.allowed)).collect::<Vec<_>>()
    };
    let scaled = (Action::Update, false, true);
    assert_eq!(
        events(AuditFilter::all().with_function(name("a"))).await,
        [(Action::Update, false, false), scaled, (Action::Create, true, true)]
    );
    assert_eq!(
        events(AuditFilter::all().with_principal("bob".parse().unwrap())).await,
        [(Action::Update, false, false)]
    );
    assert_eq!(events(AuditFilter::all().with_action(Action::Create)).await.len(), 2);
    let first = gateway.audit_events(&admin(), &AuditFilter::all(), &PageRequest::first(3)).await.unwrap();
    let rest = PageRequest::first(3).after(first.next.unwrap());
    let rest = gateway.audit_events(&admin(), &AuditFilter::all(), &rest).await.unwrap();
    assert_eq!((first.items.len(), rest.items.len(), rest.next), (3, 1, None));
}

#[tokio::test]
async fn retention_deletes_audit_events_by_their_age() {
    let clock = ManualClock::default();
    let mut config = GatewayConfig::default();
    config.retention = Retention::keep_all().with_max_audit_age(Duration::from_secs(60));
    let setup = gateway_with(|builder| builder.clock(Arc::new(clock.clone())).config(config)).await;
    let gateway = &setup.gateway;
    for _ in 0..3 {
        gateway.create_api_key(&cx(), new_key()).await.unwrap();
        clock.advance(Duration::from_secs(30));
    }
    assert_eq!(gateway.apply_retention().await.unwrap(), 1);
    assert_eq!(audited(gateway).await.len(), 2);
}

/// A store whose next key waits.
#[derive(Debug)]
struct SlowKeys(Arc<MemoryStore>, Gate);

#[async_trait]
impl ApiKeyStore for SlowKeys {
    async fn add_key(&self, key: &ApiKey) -> Result<()> {
        self.1.pass().await;
        self.0.add_key(key).await
    }

    async fn find_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>> {
        self.0.find_key(id).await
    }

    async fn keys(&self, tenant: &TenantId, page: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        self.0.keys(tenant, page).await
    }

    async fn revoke_key(&self, tenant: &TenantId, id: ApiKeyId, at: Timestamp) -> Result<Arc<ApiKey>> {
        self.0.revoke_key(tenant, id, at).await
    }
}

#[tokio::test]
async fn a_change_whose_caller_goes_away_is_carried_out_and_audited() {
    let (keys, gate) = (store(), Gate::new());
    let slow = SlowKeys(Arc::clone(&keys), gate.clone());
    let setup = gateway_with(|builder| builder.api_key_store(Arc::new(slow))).await;
    let new = new_key();
    let id = new.id;
    let gateway = setup.gateway.clone();
    let caller = tokio::spawn(async move { gateway.create_api_key(&cx(), new).await });
    soon(gate.reached_by(1)).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    gate.open();
    soon(setup.gateway.shutdown(Duration::from_secs(60))).await.unwrap();
    assert!(keys.find_key(id).await.unwrap().is_some());
    let events: Page<Arc<AuditEvent>> =
        AuditLog::list(&*setup.store, cx().tenant(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    assert_eq!(events.items.iter().map(|event| event.key).collect::<Vec<_>>(), [Some(id)]);
}

#[tokio::test]
async fn a_gateway_that_is_shut_down_changes_no_keys() {
    let setup = gateway().await;
    let key = setup.gateway.create_api_key(&cx(), new_key()).await.unwrap();
    setup.gateway.shutdown(Duration::from_secs(1)).await.unwrap();
    let errors = [
        setup.gateway.create_api_key(&cx(), new_key()).await.err(),
        setup.gateway.revoke_api_key(&cx(), key.id).await.err(),
    ];
    for error in errors {
        assert_eq!(error.unwrap().kind(), ErrorKind::ShuttingDown);
    }
    let gateway = over(&setup.store, &setup.engine).build().await.unwrap();
    assert_eq!(gateway.api_key(&cx(), key.id).await.unwrap(), key);
}
