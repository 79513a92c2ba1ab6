//! When records are kept, and what happens until then.

use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::{
    CallContext, Durability, FunctionExecutor as _, FunctionManager as _, Gateway, InvocationRecord, InvocationStore,
    InvokeRequest, PageRequest, Principal, RecordFilter, Retention, Timestamp,
};
use function_gateway_core::{CustomWorkload, FunctionSpec};
use function_gateway_testkit::ScriptedDriver;
use futures_util::FutureExt as _;

use crate::common::{Database, ended, function, in_memory, open, options, running, tenant};

/// Never within a test.
const NEVER: Duration = Duration::from_secs(3600);

async fn get(store: &dyn InvocationStore, record: &InvocationRecord) -> Option<Arc<InvocationRecord>> {
    store.get(&tenant(), record.id).await.unwrap()
}

pub(crate) async fn a_commit_is_seen_by_another_process_when_it_answers(database: Database) {
    let (store, other) = (open(&database, options()).await, open(&database, options()).await);
    let revision = function("a").1;
    let begun = running(&revision);
    store.begin(begun.clone()).await.unwrap();
    assert_eq!(get(&other, &begun).await, Some(begun.clone()));
    let mut end = InvocationRecord::clone(&ended(&revision));
    (end.id, end.created_at) = (begun.id, begun.created_at);
    let end = Arc::new(end);
    // Another process may end what this one has begun.
    other.finish(end.clone(), Durability::Durable).await.unwrap();
    assert_eq!(get(&store, &begun).await, Some(end));
}

pub(crate) async fn what_is_buffered_is_written_when_a_gateway_shuts_down(database: Database) {
    let options = options().with_flush_interval(NEVER);
    let store = open(&database, options.clone()).await;
    let driver = ScriptedDriver::new();
    let gateway = Gateway::builder()
        .store(Arc::new(store))
        .driver("scripted".parse().unwrap(), Arc::new(driver))
        .build()
        .await
        .unwrap();
    let cx = CallContext::new(Principal::new(tenant(), "ann".parse().unwrap()));
    let spec = FunctionSpec::new("scripted".parse().unwrap(), CustomWorkload::new("scripted", serde_json::json!({})));
    gateway.create(&cx, &"a".parse().unwrap(), spec).await.unwrap();
    for _ in 0..5 {
        gateway.invoke(&cx, &"a".parse().unwrap(), InvokeRequest::new("x")).await.unwrap();
    }
    let other = open(&database, options).await;
    let count = async || {
        let (filter, page) = (RecordFilter::default(), PageRequest::default());
        InvocationStore::list(&other, &tenant(), &filter, &page).await.unwrap().items.len()
    };
    assert_eq!(count().await, 0);
    gateway.shutdown(Duration::from_secs(10)).await.unwrap();
    assert_eq!(count().await, 5);
}

pub(crate) async fn a_full_buffer_makes_calls_wait_and_loses_nothing(database: Database) {
    let options = options().with_max_buffered_records(4).with_flush_interval(NEVER);
    let store = open(&database, options).await;
    let revision = function("a").1;
    let lock = database.lock().await;
    let records: Vec<_> = (0..6).map(|_| ended(&revision)).collect();
    for record in &records[..4] {
        store.finish(record.clone(), Durability::Buffered).now_or_never().unwrap().unwrap();
    }
    let waiting = records[4..].iter().map(|record| store.finish(record.clone(), Durability::Buffered));
    let mut waiting = Box::pin(futures_util::future::join_all(waiting));
    assert!(waiting.as_mut().now_or_never().is_none(), "there is room for four");
    lock.release().await;
    for finished in waiting.await {
        finished.unwrap();
    }
    store.flush().await.unwrap();
    for record in &records {
        assert!(get(&store, record).await.is_some());
    }
}

#[tokio::test]
async fn bytes_that_are_kept_fill_the_buffer_too() {
    let database = Database::sqlite();
    let options = options().with_max_buffered_bytes(8 * 1024).with_flush_interval(NEVER);
    let store = open(&database, options).await;
    let revision = function("a").1;
    let large = || {
        let mut record = InvocationRecord::clone(&ended(&revision));
        record.payload = Some(function_gateway_core::KeptBytes::cut(vec![b'x'; 5000].into(), 10_000));
        Arc::new(record)
    };
    let lock = database.lock().await;
    store.finish(large(), Durability::Buffered).now_or_never().unwrap().unwrap();
    assert!(store.finish(large(), Durability::Buffered).now_or_never().is_none());
    store.finish(ended(&revision), Durability::Buffered).now_or_never().unwrap().unwrap();
    lock.release().await;
    store.flush().await.unwrap();
    // What is larger than the buffer gets into it alone.
    let mut huge = InvocationRecord::clone(&large());
    huge.payload = Some(function_gateway_core::KeptBytes::cut(vec![b'x'; 50_000].into(), 100_000));
    store.finish(Arc::new(huge.clone()), Durability::Buffered).await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(get(&store, &huge).await.as_deref(), Some(&huge));
}

#[tokio::test]
async fn a_buffer_that_stays_full_is_told_in_time() {
    let database = Database::sqlite();
    let options = options().with_max_buffered_records(1).with_operation_timeout(Duration::from_millis(300));
    let store = open(&database, options).await;
    let revision = function("a").1;
    let _lock = database.lock().await;
    store.finish(ended(&revision), Durability::Buffered).await.unwrap();
    let error = store.finish(ended(&revision), Durability::Buffered).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(error.message().contains("max_buffered_records"), "{error}");
    assert!(store.flush().await.is_err(), "nothing says that it is kept");
}

#[tokio::test]
async fn an_execution_whose_beginning_was_given_up_has_not_begun() {
    let database = Database::sqlite();
    let store = open(&database, options()).await;
    let revision = function("a").1;
    let lock = database.lock().await;
    let records: Vec<_> = (0..3).map(|_| running(&revision)).collect();
    for record in &records {
        assert!(store.begin(record.clone()).now_or_never().is_none());
    }
    lock.release().await;
    store.flush().await.unwrap();
    // What was written before anybody saw that nobody waits is taken back with the next batch.
    store.flush().await.unwrap();
    for record in &records {
        assert_eq!(get(&store, record).await, None);
    }
}

#[tokio::test]
async fn a_store_that_is_dropped_or_closed_writes_what_is_buffered() {
    for close in [true, false] {
        let database = Database::sqlite();
        let store = open(&database, options().with_flush_interval(NEVER)).await;
        let record = ended(&function("a").1);
        store.finish(record.clone(), Durability::Buffered).await.unwrap();
        match close {
            true => store.close().await,
            false => drop(store),
        }
        let other = open(&database, options()).await;
        while get(&other, &record).await.is_none() {
            assert!(!close, "closing waits until it is written");
            tokio::task::yield_now().await;
        }
    }
}

/// While much is deleted others write: not once all of it is gone.
pub(crate) async fn retention_lets_writers_have_their_turn(database: Database) {
    let store = open(&database, options()).await;
    let revision = function("a").1;
    for _ in 0..2_000 {
        store.finish(ended(&revision), Durability::Buffered).await.unwrap();
    }
    store.flush().await.unwrap();
    let retention = Retention::keep_all().with_max_age(Duration::from_secs(60));
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    let retaining = async {
        let mut batches = 0;
        // What is written meanwhile is old by then, too.
        while store.retain(&retention, later, 20).await.unwrap() == 20 {
            batches += 1;
        }
        batches
    };
    let mut written = 0;
    let writing = async {
        loop {
            store.finish(ended(&revision), Durability::Durable).await.unwrap();
            written += 1;
        }
    };
    let batches = tokio::select! {
        batches = retaining => batches,
        never = writing => never,
    };
    assert!(batches >= 100, "{batches}");
    assert!(written >= 10, "{written} in {batches} batches");
}

#[tokio::test]
async fn what_comes_after_the_end_is_refused_at_once() {
    let store = in_memory().await;
    store.close().await;
    let record = ended(&function("a").1);
    for durability in [Durability::Buffered, Durability::Durable] {
        let error = store.finish(record.clone(), durability).await.unwrap_err();
        assert!(error.message().contains("closed"), "{error}");
    }
    assert!(store.flush().await.unwrap_err().message().contains("closed"));
    store.close().await;
}

/// What is acknowledged while a store is closed is written, or it is not acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_the_last_batch_and_the_end() {
    for _ in 0..20 {
        let database = Database::sqlite();
        let store = open(&database, options().with_max_buffered_records(4)).await;
        let revision = Arc::new(function("a").1);
        let finishing = (0..16).map(|_| {
            let (store, revision) = (store.clone(), Arc::clone(&revision));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                loop {
                    let record = ended(&revision);
                    match store.finish(record.clone(), Durability::Buffered).await {
                        Ok(()) => acknowledged.push(record),
                        Err(_) => return acknowledged,
                    }
                }
            })
        });
        let finishing: Vec<_> = finishing.collect();
        while store.list(&tenant(), &RecordFilter::default(), &PageRequest::first(1)).await.unwrap().items.is_empty() {
            tokio::task::yield_now().await;
        }
        store.close().await;
        let other = open(&database, options()).await;
        for task in finishing {
            for record in task.await.unwrap() {
                assert_eq!(get(&other, &record).await, Some(record));
            }
        }
        other.close().await;
    }
}
