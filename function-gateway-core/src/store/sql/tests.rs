//! What is seen only from inside.

use super::*;
use crate::{
    CustomWorkload, DriverRef, Function, FunctionSpec, InvocationState, PageRequest, Revision, RevisionReason,
};

fn function(name: &str, description: String) -> (Function, Revision) {
    let key = FunctionKey::new("acme".parse().unwrap(), name.parse().unwrap());
    let mut spec = FunctionSpec::new("local".parse().unwrap(), CustomWorkload::new("none", Vec::<u8>::new().into()));
    spec.description = description;
    let created = (Timestamp::now(), "ann".parse().unwrap());
    let reason = RevisionReason::Created;
    let revision = Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, reason);
    (Function::new(&revision, DriverRef::new("v1")), revision)
}

fn ended() -> Arc<InvocationRecord> {
    let (_, revision) = function("a", String::new());
    let mut record =
        InvocationRecord::new(InvocationId::generate(), &revision, "bob".parse().unwrap(), Timestamp::now());
    (record.state, record.finished_at) = (InvocationState::Succeeded, Some(Timestamp::now()));
    Arc::new(record)
}

async fn pragma(store: &SqlStore, text: &str) {
    let mut session = store.0.engine.transaction().await.unwrap();
    session.rows(store.0.engine.dialect().sql(text)).await.unwrap();
    session.commit().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_is_buffered_waits_for_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqlStore::open(&format!("sqlite:{}", folder.path().join("a.db").display())).await.unwrap();
    // The one connection that writes: to it, a file of so many pages is a full disk.
    pragma(&store, "PRAGMA max_page_count = 60").await;
    let mut names = Vec::new();
    let error = loop {
        let (function, revision) = function(&format!("f{}", names.len()), "x".repeat(4096));
        match store.create(&function, &revision).await {
            Ok(()) => names.push(function.key),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, crate::Retry::Transient));
    assert!(error.message().contains("no room"), "{error}");
    let kept: Vec<_> = (0..200).map(|_| ended()).collect();
    for record in &kept {
        store.finish(Arc::clone(record), Durability::Buffered).await.unwrap();
    }
    pragma(&store, "PRAGMA max_page_count = 60000").await;
    store.flush().await.unwrap();
    for record in &kept {
        assert!(InvocationStore::get(&store, &record.key.tenant, record.id).await.unwrap().is_some());
    }
    let tenant = &kept[0].key.tenant;
    let page = PageRequest::first(1000);
    let listed = FunctionStore::list(&store, tenant, &FunctionFilter::all(), &page).await.unwrap();
    assert_eq!(listed.items.len(), names.len(), "nothing of what was refused is there");
}

#[tokio::test]
async fn a_server_that_may_lose_commits_keeps_no_durable_records() {
    let mut store = SqlStore::open("sqlite::memory:").await.unwrap();
    Arc::get_mut(&mut store.0).unwrap().undurable = Some("fsync is off");
    let error = store.finish(ended(), Durability::Durable).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    store.finish(ended(), Durability::Buffered).await.unwrap();
    store.flush().await.unwrap();
}

#[test]
fn a_store_outside_of_a_runtime_asks_for_one() {
    assert_eq!(current_runtime().unwrap_err().kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn debug_output_shows_no_url() {
    let store = SqlStore::open("sqlite::memory:").await.unwrap();
    let text = format!("{store:?}");
    assert!(text.contains("sqlite") && !text.contains("memory"), "{text}");
}
