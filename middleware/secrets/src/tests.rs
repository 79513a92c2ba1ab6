use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use function_gateway_core::{
    FunctionId, FunctionKey, Generation, MemorySecrets, Principal, ProcessWorkload, ProvidedSecret, Retry,
    RevisionReason, SecretProvider, Timestamp,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::advance;

use super::*;

const CANARY: &str = "canary-3f9a1c";
const TTL: Duration = Duration::from_secs(30);

/// Counts what it is asked, and answers when the gate lets it.
#[derive(Debug)]
struct Vault {
    values: MemorySecrets,
    asked: AtomicUsize,
    outage: Mutex<Option<Error>>,
    gate: Semaphore,
}

impl Vault {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            values: MemorySecrets::new(),
            asked: AtomicUsize::new(0),
            outage: Mutex::new(None),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    fn with(values: &[(&str, &str, &str)]) -> Arc<Self> {
        let vault = Self::new();
        for (tenant, secret, value) in values {
            vault.set(tenant, secret, value);
        }
        vault
    }

    fn set(&self, tenant: &str, secret: &str, value: &str) {
        self.values.set(tenant.parse().unwrap(), name(secret), Secret::new(value));
    }

    fn break_with(&self, error: Error) {
        *self.outage.lock().unwrap() = Some(error);
    }

    fn repair(&self) {
        *self.outage.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl SecretProvider for Vault {
    async fn get(&self, cx: &CallContext, tenant: &TenantId, secret: &SecretRef) -> Result<Option<ProvidedSecret>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.values.get(cx, tenant, secret).await;
        self.gate.acquire().await.unwrap().forget();
        self.gate.add_permits(1);
        match self.outage.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => answer,
        }
    }
}

fn name(secret: &str) -> SecretRef {
    secret.parse().unwrap()
}

fn cx(tenant: &str) -> CallContext {
    CallContext::new(Principal::new(tenant.parse().unwrap(), "ada".parse().unwrap()))
}

fn secrets(vault: &Arc<Vault>) -> Secrets {
    Secrets::new(SecretChain::new(vec![Arc::clone(vault) as _]), SecretsOptions::new().with_ttl(TTL))
}

fn needs(names: &[&str]) -> Needed {
    let bindings: Vec<_> = names.iter().map(|secret| SecretBinding::env(name(secret), secret.to_uppercase())).collect();
    Needed::new(&bindings)
}

fn shown(resolved: Vec<(SecretRef, Secret)>) -> Vec<(String, String)> {
    resolved
        .into_iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.expose_str().unwrap().to_owned()))
        .collect()
}

async fn resolve(secrets: &Secrets, tenant: &str, names: &[&str]) -> Result<Vec<(String, String)>> {
    needs(names).resolve(&secrets.0, &cx(tenant), None).await.map(shown)
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn down() -> Error {
    Error::new(ErrorKind::DependencyUnavailable, "the vault is out of reach")
}

#[tokio::test(start_paused = true)]
async fn exactly_what_is_listed_comes_in_the_order_of_the_specification() {
    let vault = Vault::with(&[("acme", "b", "2"), ("acme", "a", "1"), ("acme", "other", "3")]);
    let resolved = resolve(&secrets(&vault), "acme", &["b", "a"]).await.unwrap();
    assert_eq!(resolved, pairs(&[("b", "2"), ("a", "1")]));
    assert_eq!(vault.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_delivered_twice_is_resolved_once() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let bindings = [SecretBinding::envelope(name("a"), "a"), SecretBinding::env(name("a"), "A")];
    let needed = Needed::new(&bindings);
    assert_eq!(needed.0, [(name("a"), true)]);
    let resolved = needed.resolve(&secrets(&vault).0, &cx("acme"), None).await.unwrap();
    assert_eq!(shown(resolved), pairs(&[("a", "1")]));
}

#[tokio::test(start_paused = true)]
async fn a_call_narrows_what_it_gets() {
    let vault = Vault::with(&[("acme", "a", "1"), ("acme", "b", "2")]);
    let secrets = secrets(&vault);
    let narrowed = BTreeSet::from([name("b")]);
    let resolved = needs(&["a", "b"]).resolve(&secrets.0, &cx("acme"), Some(&narrowed)).await.unwrap();
    assert_eq!(shown(resolved), pairs(&[("b", "2")]));
    let resolved = needs(&["a", "b"]).resolve(&secrets.0, &cx("acme"), Some(&BTreeSet::new())).await.unwrap();
    assert!(resolved.is_empty());
    assert_eq!(vault.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_not_listed_is_refused_before_a_provider_is_asked() {
    let vault = Vault::with(&[("acme", "a", "1"), ("acme", "b", "2")]);
    let narrowed = BTreeSet::from([name("a"), name("b")]);
    let error = needs(&["a"]).resolve(&secrets(&vault).0, &cx("acme"), Some(&narrowed)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.context_value("secret"), Some("b"));
    assert_eq!(vault.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_is_the_functions_configuration_and_is_looked_for_again() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let secrets = secrets(&vault);
    let error = resolve(&secrets, "acme", &["a", "b"]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Misconfigured, Retry::Never));
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert_eq!(error.context_value("secret"), Some("b"));
    vault.set("acme", "b", "2");
    assert_eq!(resolve(&secrets, "acme", &["b"]).await.unwrap(), pairs(&[("b", "2")]));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_down_is_a_transient_error_until_it_is_up() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let secrets = secrets(&vault);
    vault.break_with(down());
    let error = resolve(&secrets, "acme", &["a"]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::DependencyUnavailable, Retry::Transient));
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert_eq!(error.message(), "the vault is out of reach");
    vault.repair();
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "1")]));
}

#[tokio::test(start_paused = true)]
async fn another_error_of_a_provider_passes_but_says_that_nothing_was_sent() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    vault.break_with(Error::new(ErrorKind::Internal, "the vault answered nonsense"));
    let error = resolve(&secrets(&vault), "acme", &["a"]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Internal, Retry::Never));
    assert_eq!(error.message(), "the vault answered nonsense");
    assert_eq!(error.delivery(), Delivery::NotSent);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_kept_for_its_time_and_no_longer() {
    let vault = Vault::with(&[("acme", "a", "old")]);
    let secrets = secrets(&vault);
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "old")]));
    vault.set("acme", "a", "new");
    advance(TTL - Duration::from_millis(1)).await;
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "old")]));
    assert_eq!(vault.asked(), 1);
    advance(Duration::from_millis(1)).await;
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "new")]));
    assert_eq!(vault.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_bring_an_expired_value_back() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let secrets = secrets(&vault);
    resolve(&secrets, "acme", &["a"]).await.unwrap();
    vault.break_with(down());
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "1")]));
    advance(TTL).await;
    let error = resolve(&secrets, "acme", &["a"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DependencyUnavailable);
}

#[tokio::test(start_paused = true)]
async fn without_a_time_to_live_each_call_asks() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let chain = SecretChain::new(vec![Arc::clone(&vault) as _]);
    let secrets = Secrets::new(chain, SecretsOptions::new().with_ttl(Duration::ZERO));
    for expected in 1..=3 {
        advance(Duration::from_nanos(1)).await;
        resolve(&secrets, "acme", &["a"]).await.unwrap();
        assert_eq!(vault.asked(), expected);
    }
}

/// Starts as many calls as the gate then lets through, and gives what they got.
async fn at_once(vault: &Arc<Vault>, secrets: &Secrets, calls: usize) -> Vec<Result<Vec<(String, String)>>> {
    vault.gate.forget_permits(Semaphore::MAX_PERMITS);
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let secrets = secrets.clone();
            tokio::spawn(async move { resolve(&secrets, "acme", &["a"]).await })
        })
        .collect();
    // One turn of the only thread lets every call come as far as the gate, or to wait for the one that did.
    for _ in 0..calls {
        tokio::task::yield_now().await;
    }
    vault.gate.add_permits(1);
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn calls_at_once_ask_once_at_first_and_after_expiry() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let secrets = secrets(&vault);
    for asked in 1..=2 {
        for answer in at_once(&vault, &secrets, 64).await {
            assert_eq!(answer.unwrap(), pairs(&[("a", "1")]));
        }
        assert_eq!(vault.asked(), asked);
        advance(TTL).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_at_once_share_one_failure() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    vault.break_with(down());
    for answer in at_once(&vault, &secrets(&vault), 64).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::DependencyUnavailable);
    }
    assert_eq!(vault.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_leaves_the_question_to_those_that_wait() {
    let vault = Vault::with(&[("acme", "a", "1")]);
    let secrets = secrets(&vault);
    vault.gate.forget_permits(Semaphore::MAX_PERMITS);
    let call = || {
        let secrets = secrets.clone();
        tokio::spawn(async move { resolve(&secrets, "acme", &["a"]).await })
    };
    let first = call();
    tokio::task::yield_now().await;
    let second = call();
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    vault.gate.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap(), pairs(&[("a", "1")]));
    assert_eq!(vault.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn tenants_never_share_a_value() {
    let vault = Vault::with(&[("acme", "a", "of acme"), ("globex", "a", "of globex")]);
    let secrets = secrets(&vault);
    assert_eq!(resolve(&secrets, "acme", &["a"]).await.unwrap(), pairs(&[("a", "of acme")]));
    assert_eq!(resolve(&secrets, "globex", &["a"]).await.unwrap(), pairs(&[("a", "of globex")]));
    let error = resolve(&secrets, "initech", &["a"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_value_is_asked_for_again() {
    let vault = Vault::with(&[("acme", "a", "old"), ("acme", "b", "1")]);
    let secrets = secrets(&vault);
    resolve(&secrets, "acme", &["a", "b"]).await.unwrap();
    vault.set("acme", "a", "new");
    secrets.invalidate(&"acme".parse().unwrap(), &name("a")).await;
    advance(Duration::from_nanos(1)).await;
    assert_eq!(resolve(&secrets, "acme", &["a", "b"]).await.unwrap(), pairs(&[("a", "new"), ("b", "1")]));
    assert_eq!(vault.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_on_its_way_when_its_value_was_invalidated_is_not_kept() {
    let vault = Vault::with(&[("acme", "a", "old")]);
    let secrets = secrets(&vault);
    vault.gate.forget_permits(Semaphore::MAX_PERMITS);
    let early = tokio::spawn({
        let secrets = secrets.clone();
        async move { resolve(&secrets, "acme", &["a"]).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(vault.asked(), 1);
    advance(Duration::from_nanos(1)).await;
    vault.set("acme", "a", "new");
    secrets.invalidate(&"acme".parse().unwrap(), &name("a")).await;
    advance(Duration::from_nanos(1)).await;
    let late = tokio::spawn({
        let secrets = secrets.clone();
        async move { resolve(&secrets, "acme", &["a"]).await }
    });
    tokio::task::yield_now().await;
    vault.gate.add_permits(1);
    assert_eq!(early.await.unwrap().unwrap(), pairs(&[("a", "old")]));
    assert_eq!(late.await.unwrap().unwrap(), pairs(&[("a", "new")]));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_no_environment_can_hold_is_refused_for_the_environment_only() {
    let vault = Vault::with(&[("acme", "a", "canary-3f9a1c\0")]);
    let secrets = secrets(&vault);
    let error = resolve(&secrets, "acme", &["a"]).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Misconfigured, Delivery::NotSent));
    assert_eq!(error.context_value("secret"), Some("a"));
    assert!(!format!("{error} {error:?}").contains(CANARY));
    let in_envelope = Needed::new(&[SecretBinding::envelope(name("a"), "a")]);
    assert!(in_envelope.resolve(&secrets.0, &cx("acme"), None).await.is_ok());
}

fn revision(secrets: Vec<SecretBinding>) -> Arc<Revision> {
    let mut spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat"));
    spec.secrets = secrets;
    let key = FunctionKey::new("acme".parse().unwrap(), "f".parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let generation = Generation::new(1).unwrap();
    Arc::new(Revision::new(key, FunctionId::generate(), generation, spec, created, RevisionReason::Created))
}

#[tokio::test(start_paused = true)]
async fn nothing_that_can_be_printed_shows_a_value() {
    let vault = Vault::with(&[("acme", "a", CANARY)]);
    let secrets = secrets(&vault);
    let built = secrets.build(&revision(vec![SecretBinding::env(name("a"), "A")]), &Value::Null).unwrap().unwrap();
    let resolved = needs(&["a"]).resolve(&secrets.0, &cx("acme"), None).await.unwrap();
    assert_eq!(resolved[0].1.expose(), CANARY.as_bytes());
    let printed = format!("{secrets:?} {secrets:#?} {built:?} {resolved:?}");
    assert!(!printed.contains(CANARY), "{printed}");
}

#[test]
fn only_a_revision_that_lists_secrets_has_use_for_it() {
    let secrets = secrets(&Vault::new());
    assert!(secrets.build(&revision(Vec::new()), &Value::Null).unwrap().is_none());
    let built = secrets.build(&revision(vec![SecretBinding::env(name("a"), "A")]), &Value::Null).unwrap().unwrap();
    assert_eq!((built.name(), built.stage()), (secrets.name(), secrets.stage()));
    assert_eq!(built.claims(), [SpecField::Secrets]);
}

#[test]
fn settings_that_nobody_reads_are_refused() {
    let secrets = secrets(&Vault::new());
    let spec = &revision(Vec::new()).spec;
    assert!(secrets.admit(spec, &Settings::none()).is_empty());
    let settings = json!({"ttl": 1});
    let violations = secrets.admit(spec, &Settings::chosen(&settings, 2));
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].pointer, "/middleware/2/settings");
}
