//! The databases that the benchmark `sql` measures hold what it takes for granted.

#![allow(clippy::unwrap_used, reason = "test code fails by panicking")]

use function_gateway_benches::caller;
use function_gateway_benches::sql::{MINUTES, Size, filled, key, time};
use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    FunctionFilter, FunctionStore, InvocationState, InvocationStore, PageRequest, RecordFilter, StatisticsQuery,
};

async fn count(store: &SqlStore, filter: &RecordFilter) -> usize {
    let (mut count, mut request) = (0, PageRequest::first(1000));
    loop {
        let page = InvocationStore::list(store, caller().tenant(), filter, &request).await.unwrap();
        assert_eq!(page.unreadable, []);
        count += page.items.len();
        let Some(next) = page.next else { return count };
        request = request.after(next);
    }
}

#[tokio::test]
async fn a_database_is_filled_as_far_as_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("filled.db").display());
    let size = Size { functions: 2000, records: 4000 };
    let store = filled(&url, size).await.unwrap();
    let function = FunctionStore::get(&store, &key(1234)).await.unwrap().unwrap();
    assert_eq!((function.key.clone(), function.owner.as_str()), (key(1234), "owner-0"));
    assert!(store.find(function.id).await.unwrap().is_some());
    let filter = FunctionFilter::all().with_label("team", "team-1").with_owner("owner-1".parse().unwrap());
    let page = FunctionStore::list(&store, caller().tenant(), &filter, &PageRequest::first(1000)).await.unwrap();
    assert_eq!((page.items.len(), page.next, page.unreadable.len()), (1000, None, 0));

    // Two are what was multiplied.
    assert_eq!(count(&store, &RecordFilter::default()).await, 4002);
    let mut failed = RecordFilter::default();
    (failed.state, failed.until) = (Some(InvocationState::Failed), Some(time(4001)));
    assert_eq!(count(&store, &failed).await, 80);
    assert_eq!(count(&store, &RecordFilter::default().with_label("team", "team-1")).await, 200);
    let one = RecordFilter::of(key(7).name);
    let page = InvocationStore::list(&store, caller().tenant(), &one, &PageRequest::first(10)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    assert!(page.items.iter().all(|record| record.key == key(7)));

    let day = StatisticsQuery::new(time(0), time(1_000_000_000)).of(key(1).name);
    let day = store.statistics(caller().tenant(), &day).await.unwrap();
    assert_eq!(i64::try_from(day.count).unwrap() % MINUTES, 0);
    assert!(day.count > 0);
}
