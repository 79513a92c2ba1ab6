//! What an [`InvocationStore`] promises.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::{
    Cursor, Delivery, Durability, ErrorClass, ErrorKind, Failure, FunctionId, FunctionKey, FunctionName, Generation,
    InvocationId, InvocationRecord, InvocationState, InvocationStore, KeptBytes, Origin, PageRequest, Quantiles,
    RecordFilter, Retention, Statistics, StatisticsQuery, TenantId, TimedPhase, Timestamp, TraceParent,
};
use tokio::task::JoinSet;

use super::{all_pages, function, key, principal, refused, tenant, valid};

type Store = Arc<dyn InvocationStore>;

/// How many records of each function the cases' retention by count leaves. No case needs more to stay.
pub const KEPT_PER_FUNCTION: u64 = 64;
/// How many tasks race.
const RACERS: usize = 16;

const STATES: [InvocationState; 5] = [
    InvocationState::Succeeded,
    InvocationState::Failed,
    InvocationState::TimedOut,
    InvocationState::Cancelled,
    InvocationState::Lost,
];

/// A time in the year 2023, which retention in no case reaches.
fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_040 + seconds) * 1_000_000)
}

/// A function of which there are executions: those of one name are of one function.
#[derive(Debug, Clone)]
struct Executed {
    key: FunctionKey,
    id: FunctionId,
}

impl Executed {
    fn new(tenant: &TenantId, name: &str) -> Self {
        Self { key: key(tenant, name), id: FunctionId::generate() }
    }

    fn running(&self, at: Timestamp) -> InvocationRecord {
        let (_, mut revision) = function(&self.key);
        revision.function = self.id;
        let mut record = InvocationRecord::new(InvocationId::generate(), &revision, principal("caller"), at);
        record.started_at = Some(at);
        record
    }

    fn ended(&self, at: Timestamp) -> InvocationRecord {
        end(self.running(at), InvocationState::Succeeded)
    }
}

/// The same execution after one second.
fn end(mut record: InvocationRecord, state: InvocationState) -> InvocationRecord {
    record.state = state;
    record.attempts = 1;
    record.finished_at = Some(record.created_at.plus(Duration::from_secs(1)));
    if state != InvocationState::Succeeded {
        let class = match state {
            InvocationState::TimedOut => ErrorClass::Timeout,
            InvocationState::Cancelled => ErrorClass::Cancelled,
            InvocationState::Lost => ErrorClass::Gateway,
            _ => ErrorClass::Function,
        };
        record.failure = Some(Failure::new(class, "function_failed", "it failed", Delivery::Executed));
    }
    record
}

async fn begin(store: &Store, record: &InvocationRecord) {
    store.begin(Arc::new(record.clone())).await.expect("the execution begins");
}

async fn finish(store: &Store, record: &InvocationRecord) {
    store.finish(Arc::new(record.clone()), Durability::Durable).await.expect("the execution ends");
}

/// Finishes many, as cheaply as the store can.
async fn finish_all(store: &Store, records: &[InvocationRecord]) {
    for record in records {
        store.finish(Arc::new(record.clone()), Durability::Buffered).await.expect("the execution ends");
    }
    store.flush().await.expect("the store is flushed");
}

async fn get(store: &Store, record: &InvocationRecord) -> Option<Arc<InvocationRecord>> {
    store.get(&record.key.tenant, record.id).await.expect("a record is read")
}

async fn ids(store: &Store, tenant: &TenantId, filter: &RecordFilter, limit: usize) -> Vec<InvocationId> {
    let records = all_pages(limit, async |page| store.list(tenant, filter, &page).await.expect("a page is read")).await;
    records.iter().map(|record| record.id).collect()
}

/// The ids of records that come oldest first, newest first.
fn newest_first<'a>(records: impl DoubleEndedIterator<Item = &'a InvocationRecord>) -> Vec<InvocationId> {
    records.rev().map(|record| record.id).collect()
}

async fn statistics(store: &Store, tenant: &TenantId, from: Timestamp, until: Timestamp) -> Statistics {
    store.statistics(tenant, &StatisticsQuery::new(from, until)).await.expect("statistics are read")
}

/// A record is read as it was begun, then as it was finished, with everything that it holds.
pub async fn a_record_reads_back_as_it_was_begun_and_finished(store: Store) {
    let mut record = Executed::new(&tenant(), "a").running(time(0));
    record.origin = Origin::Event;
    record.caller = principal("grüß \"dich\"'\\ %_\u{1F600} ");
    record.trace = Some(valid("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse::<TraceParent>()));
    record.generation = valid(Generation::new(7).ok_or("0"));
    record.request_bytes = Some(5);
    record.state = InvocationState::Queued;
    record.started_at = None;
    begin(&store, &record).await;
    assert_eq!(get(&store, &record).await.as_deref(), Some(&record));

    let mut ended = end(record, InvocationState::Failed);
    ended.started_at = Some(time(0).plus(Duration::from_micros(1)));
    ended.status = Some(503);
    ended.attempts = 3;
    ended.response_bytes = u64::from(u32::MAX) + 1;
    for (phase, micros) in TimedPhase::ALL.into_iter().zip([0, 1, 999, 1_000_001, 86_400_000_000]) {
        ended.timings.set(phase, Duration::from_micros(micros));
    }
    let mut payload = KeptBytes::cut(vec![0, 0xff, 1].into(), 2);
    payload.content_type = Some("application/octet-stream".into());
    ended.payload = Some(payload);
    ended.result = Some(KeptBytes::cut("{\"a\": \"ü\"}\0\n".into(), 100));
    ended.logs = Some(KeptBytes::cut("".into(), 100));
    finish(&store, &ended).await;
    assert_eq!(get(&store, &ended).await.as_deref(), Some(&ended));
}

/// A record that was not begun can be finished, and is read like any other.
pub async fn an_execution_can_finish_without_having_begun(store: Store) {
    let record = Executed::new(&tenant(), "a").ended(time(0));
    assert_eq!(get(&store, &record).await, None);
    finish(&store, &record).await;
    assert_eq!(get(&store, &record).await.as_deref(), Some(&record));
    assert_eq!(ids(&store, &record.key.tenant, &RecordFilter::default(), 10).await, [record.id]);
}

/// Many that come together are kept as they are, however much or little they have in common.
pub async fn records_that_come_together_are_kept_as_they_are(store: Store) {
    const ALIKE: i64 = 17;
    let (one, two) = (tenant(), tenant());
    let mut records = Vec::new();
    let first = Executed::new(&one, "a");
    for function in [&first, &Executed::new(&one, "b"), &Executed::new(&two, "a")] {
        for number in 0..ALIKE {
            let [ended, mut other_caller, mut kept, mut labelled] = [(); 4].map(|()| function.ended(time(number)));
            let [failed, late] = [InvocationState::Failed, InvocationState::TimedOut]
                .map(|state| end(function.running(time(number)), state));
            other_caller.caller = principal("other");
            records.extend([ended, other_caller, failed]);
            if number < 4 {
                kept.payload = Some(KeptBytes::cut(number.to_string().into(), 10));
                kept.logs = Some(KeptBytes::cut("".into(), 10));
                labelled.labels.insert("number".to_owned(), number.to_string());
                records.extend([kept, labelled, late]);
            }
        }
    }
    // Together come those of one kind, then the others of that function, then those of all others.
    let is_plain = |record: &InvocationRecord| {
        record.caller == principal("caller") && record.state == InvocationState::Succeeded && record.payload.is_none()
    };
    let portion = |record: &InvocationRecord| match (record.key == first.key, is_plain(record)) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    };
    for number in 0..3 {
        let together: Vec<_> = records.iter().filter(|record| portion(record) == number).cloned().collect();
        finish_all(&store, &together).await;
    }
    for record in &records {
        assert_eq!(get(&store, record).await.as_deref(), Some(record));
    }
    for tenant in [&one, &two] {
        let own = || records.iter().filter(|record| record.key.tenant == *tenant);
        let mut listed = ids(&store, tenant, &RecordFilter::default(), 100).await;
        let mut expected: Vec<_> = own().map(|record| record.id).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        let counted = statistics(&store, tenant, time(0), time(ALIKE + 60)).await;
        assert_eq!(counted.count, own().count() as u64);
    }
}

/// An id begins once: not again in any tenant, whether its execution runs or has ended.
pub async fn an_id_begins_once_in_all_tenants(store: Store) {
    let record = Executed::new(&tenant(), "a").running(time(0));
    let mut foreign = Executed::new(&tenant(), "a").running(time(0));
    foreign.id = record.id;
    begin(&store, &record).await;
    for copy in [&record, &foreign] {
        assert_eq!(refused(store.begin(Arc::new(copy.clone())).await), ErrorKind::AlreadyExists);
    }
    let ended = end(record.clone(), InvocationState::Succeeded);
    finish(&store, &ended).await;
    for copy in [&record, &foreign] {
        assert_eq!(refused(store.begin(Arc::new(copy.clone())).await), ErrorKind::AlreadyExists);
    }
    assert_eq!(get(&store, &record).await.as_deref(), Some(&ended));
    assert_eq!(get(&store, &foreign).await, None);
}

/// What has ended can't end again, in no other way and not in the same.
pub async fn a_final_record_never_changes(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    for state in STATES {
        let record = end(executed.running(time(0)), state);
        finish(&store, &record).await;
        for other in STATES {
            let result = store.finish(Arc::new(end(record.clone(), other)), Durability::Durable).await;
            assert_eq!(refused(result), ErrorKind::Conflict);
        }
        assert_eq!(get(&store, &record).await.as_deref(), Some(&record));
    }
    let seen = statistics(&store, &executed.key.tenant, time(0), time(60)).await;
    assert_eq!(seen.count, 5, "what was refused does not count");
}

/// An end with the id of another function's execution is refused, in the same tenant and in another.
pub async fn a_record_of_another_function_is_not_overwritten(store: Store) {
    let mine = tenant();
    let record = Executed::new(&mine, "a").running(time(0));
    begin(&store, &record).await;
    let others = [Executed::new(&tenant(), "a"), Executed::new(&mine, "b"), Executed::new(&mine, "a")];
    for other in &others {
        let mut end = other.ended(time(0));
        end.id = record.id;
        let result = store.finish(Arc::new(end), Durability::Durable).await;
        assert_eq!(refused(result), ErrorKind::Conflict, "{other:?}");
    }
    // Nor by another call of the same function that brings the same id.
    let mut later = end(record.clone(), InvocationState::Failed);
    later.created_at = time(1);
    let mut by_another = end(record.clone(), InvocationState::Failed);
    by_another.caller = principal("somebody else");
    for again in [later, by_another] {
        assert_eq!(refused(store.finish(Arc::new(again), Durability::Durable).await), ErrorKind::Conflict);
    }
    assert_eq!(get(&store, &record).await.as_deref(), Some(&record));
    assert_eq!(statistics(&store, &mine, time(0), time(60)).await, Statistics::default());
}

/// An execution begins in a state that is not final, and ends in one that is, at a time.
pub async fn states_are_checked(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let record = executed.running(time(0));
    for state in STATES {
        let result = store.begin(Arc::new(end(record.clone(), state))).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{state}");
    }
    let mut endless = end(record.clone(), InvocationState::Succeeded);
    endless.finished_at = None;
    for state in [InvocationState::Queued, InvocationState::Running] {
        let result = store.finish(Arc::new(end(record.clone(), state)), Durability::Durable).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{state}");
    }
    let result = store.finish(Arc::new(endless), Durability::Durable).await;
    assert_eq!(refused(result), ErrorKind::InvalidArgument);
    assert_eq!(get(&store, &record).await, None);
}

/// No read gives anything of another tenant's.
pub async fn tenants_do_not_see_each_others_records(store: Store) {
    let (mine, foreign) = (tenant(), tenant());
    let executed = Executed::new(&mine, "a");
    let record = executed.ended(time(0));
    finish(&store, &record).await;
    assert_eq!(store.get(&foreign, record.id).await.expect("a record is read"), None);
    let mut by_id = RecordFilter::default();
    by_id.function = Some(executed.id);
    for filter in [RecordFilter::default(), RecordFilter::of(executed.key.name.clone()), by_id] {
        assert_eq!(ids(&store, &mine, &filter, 10).await, [record.id]);
        assert_eq!(ids(&store, &foreign, &filter, 10).await, []);
    }
    let seen = statistics(&store, &foreign, time(0), time(60)).await;
    assert_eq!(seen, Statistics::default());
    let upper = valid(TenantId::new(mine.as_str().to_uppercase()));
    assert_eq!(ids(&store, &upper, &RecordFilter::default(), 10).await, []);
}

/// A list goes by `created_at` and then by id, newest first, whatever ids the callers brought and whatever has ended.
pub async fn records_are_listed_newest_first(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let mut expected = Vec::new();
    for second in 0..6_u8 {
        // The later, the smaller the id; two at each time.
        for number in [1, 2] {
            let mut record = executed.running(time(second.into()));
            let mut id = *FunctionId::generate().as_bytes();
            id.rotate_left(8);
            let [first, .., last] = &mut id;
            (*first, *last) = (0xf0 - second * 16 + number, 7);
            record.id = InvocationId::from_bytes(id);
            expected.push(record);
        }
    }
    for record in &expected {
        begin(&store, record).await;
    }
    let expected_ids = newest_first(expected.iter());
    let tenant = &executed.key.tenant;
    assert_eq!(ids(&store, tenant, &RecordFilter::default(), 5).await, expected_ids);
    for record in expected.iter().step_by(3) {
        finish(&store, &end(record.clone(), InvocationState::Failed)).await;
    }
    for limit in [1, 5, 12, 1000] {
        assert_eq!(ids(&store, tenant, &RecordFilter::default(), limit).await, expected_ids);
    }
}

/// While a list is read page by page and executions begin and end, those that were there at first appear once each, and
/// none appears twice.
pub async fn a_list_of_records_stays_whole_while_more_come_in(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let mut running: Vec<_> = (0..20).map(|second| executed.running(time(second))).collect();
    for record in &running {
        begin(&store, record).await;
    }
    let first: BTreeSet<_> = running.iter().map(|record| record.id).collect();
    let mut added = 0;
    let seen = all_pages(3, async |page| {
        let filter = RecordFilter::default();
        let page = store.list(&executed.key.tenant, &filter, &page).await.expect("a page is read");
        added += 1;
        finish(&store, &executed.ended(time(100 + added))).await;
        finish(&store, &executed.ended(time(20 - added))).await;
        if let Some(record) = running.pop() {
            finish(&store, &end(record, InvocationState::Succeeded)).await;
        }
        page
    });
    let seen: Vec<_> = seen.await.iter().map(|record| record.id).collect();
    let once: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "a record appears twice");
    assert!(first.is_subset(&once), "a record is lost");
}

/// Each filter by itself gives what it names and nothing else. A range of time has its start, but not its end.
pub async fn every_record_filter_holds(store: Store) {
    let tenant = tenant();
    let (a, former_a, b) = (Executed::new(&tenant, "a"), Executed::new(&tenant, "a"), Executed::new(&tenant, "b"));
    let mut by_ann = b.ended(time(3));
    by_ann.caller = principal("ann \"%_'\\");
    let plain = former_a.ended(time(0));
    let failed = end(a.running(time(1)), InvocationState::Failed);
    let timed_out = end(a.running(time(2)), InvocationState::TimedOut);
    let running = b.running(time(4));
    for record in [&plain, &failed, &timed_out, &by_ann] {
        finish(&store, record).await;
    }
    begin(&store, &running).await;

    let filter = |set: &dyn Fn(&mut RecordFilter)| {
        let mut filter = RecordFilter::default();
        set(&mut filter);
        filter
    };
    let cases = [
        (filter(&|f| f.name = Some(a.key.name.clone())), vec![&plain, &failed, &timed_out]),
        (filter(&|f| f.function = Some(a.id)), vec![&failed, &timed_out]),
        (filter(&|f| f.function = Some(FunctionId::generate())), vec![]),
        (filter(&|f| (f.function, f.name) = (Some(a.id), Some(b.key.name.clone()))), vec![]),
        (filter(&|f| f.state = Some(InvocationState::Running)), vec![&running]),
        (filter(&|f| f.state = Some(InvocationState::Succeeded)), vec![&plain, &by_ann]),
        (filter(&|f| f.class = Some(ErrorClass::Timeout)), vec![&timed_out]),
        (filter(&|f| f.class = Some(ErrorClass::Engine)), vec![]),
        (filter(&|f| f.caller = Some(by_ann.caller.clone())), vec![&by_ann]),
        (filter(&|f| f.from = Some(time(3))), vec![&by_ann, &running]),
        (filter(&|f| f.until = Some(time(1))), vec![&plain]),
        (filter(&|f| (f.from, f.until) = (Some(time(1)), Some(time(3)))), vec![&failed, &timed_out]),
        (filter(&|f| (f.from, f.until) = (Some(time(1)), Some(time(1)))), vec![]),
        (filter(&|f| (f.from, f.until) = (Some(time(3)), Some(time(1)))), vec![]),
    ];
    for (filter, expected) in cases {
        for limit in [1, 10] {
            let expected = newest_first(expected.iter().copied());
            assert_eq!(ids(&store, &tenant, &filter, limit).await, expected, "{filter:?}");
        }
    }
}

/// All filters together hold on every page, and the last page says so also where records follow that are not meant.
pub async fn record_filters_hold_together_over_pages(store: Store) {
    let tenant = tenant();
    let (a, b) = (Executed::new(&tenant, "a"), Executed::new(&tenant, "b"));
    let mut expected = Vec::new();
    for second in 0..30_u8 {
        let (is_a, has_failed) = (second % 2 == 0, second % 3 == 0);
        let state = if has_failed { InvocationState::Failed } else { InvocationState::Succeeded };
        let record = end(if is_a { &a } else { &b }.running(time(second.into())), state);
        finish(&store, &record).await;
        if is_a && has_failed && (3..24).contains(&second) {
            expected.push(record);
        }
    }
    let mut filter = RecordFilter::of(a.key.name.clone());
    filter.function = Some(a.id);
    filter.state = Some(InvocationState::Failed);
    filter.class = Some(ErrorClass::Function);
    filter.caller = Some(principal("caller"));
    (filter.from, filter.until) = (Some(time(3)), Some(time(24)));
    for limit in [1, 2, 3, 100] {
        assert_eq!(ids(&store, &tenant, &filter, limit).await, newest_first(expected.iter()));
    }
    let exact = store.list(&tenant, &filter, &PageRequest::first(3)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (3, None));
}

/// A filter by labels gives the records of functions that had all of them when they were called, over many pages, and
/// those that run as well.
pub async fn records_are_found_by_the_labels_of_their_functions(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let mut expected = Vec::new();
    for second in 0..20_u8 {
        let mut record = executed.running(time(second.into()));
        let label = |record: &mut InvocationRecord, key: &str, value: &str| {
            record.labels.insert(key.to_owned(), value.to_owned());
        };
        label(&mut record, "all", "Grüße \u{0} '%_");
        if second % 2 == 0 {
            label(&mut record, "even", "yes");
        }
        if second % 3 == 0 {
            begin(&store, &record).await;
        }
        if second % 3 != 0 || second % 4 == 0 {
            finish(&store, &end(record.clone(), InvocationState::Succeeded)).await;
        }
        expected.push(record);
    }
    let tenant = &executed.key.tenant;
    let all = RecordFilter::default().with_label("all", "Grüße \u{0} '%_");
    assert_eq!(ids(&store, tenant, &all, 7).await, newest_first(expected.iter()));
    let mut both = all.with_label("even", "yes");
    assert_eq!(ids(&store, tenant, &both, 3).await, newest_first(expected.iter().step_by(2)));
    both.state = Some(InvocationState::Running);
    (both.from, both.until) = (Some(time(1)), Some(time(19)));
    let running = expected.iter().skip(6).step_by(12);
    assert_eq!(ids(&store, tenant, &both, 1).await, newest_first(running));
    for (key, value) in [("even", "no"), ("even", "Yes"), ("odd", "yes"), ("all", "")] {
        let none = RecordFilter::default().with_label(key, value);
        assert_eq!(ids(&store, tenant, &none, 10).await, []);
    }
    let foreign = RecordFilter::default().with_label("even", "yes");
    assert_eq!(ids(&store, &super::tenant(), &foreign, 10).await, []);
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_give_no_records(store: Store) {
    let record = Executed::new(&tenant(), "a").ended(time(0));
    finish(&store, &record).await;
    let of_kinds = super::CURSORS.map(|kind| Cursor::after(kind, "neither time nor id"));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(Cursor::from_text);
    for cursor in of_kinds.into_iter().chain(garbage) {
        let page = PageRequest::default().after(cursor);
        let result = store.list(&record.key.tenant, &RecordFilter::default(), &page).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
    }
}

/// Executions that end at the same time, with and without having begun, are all there once, in lists and statistics.
pub async fn many_executions_finish_at_once(store: Store) {
    let tenant = tenant();
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        let (store, executed) = (store.clone(), Executed::new(&tenant, &format!("f{}", racer % 4)));
        race.spawn(async move {
            let mut ended = Vec::new();
            for second in 0..10 {
                let record = executed.running(time(second));
                if racer % 2 == 0 {
                    begin(&store, &record).await;
                }
                let durability = if racer % 4 < 2 { Durability::Durable } else { Durability::Buffered };
                let record = end(record, InvocationState::Succeeded);
                store.finish(Arc::new(record.clone()), durability).await.expect("the execution ends");
                ended.push(record.id);
            }
            ended
        });
    }
    let expected: BTreeSet<_> = race.join_all().await.into_iter().flatten().collect();
    store.flush().await.expect("the store is flushed");
    let seen = ids(&store, &tenant, &RecordFilter::default(), 7).await;
    assert_eq!(seen.len(), expected.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    let counted = statistics(&store, &tenant, time(0), time(60)).await.count;
    assert_eq!(usize::try_from(counted).ok(), Some(expected.len()));
    let name: FunctionName = valid("f1".parse());
    let of_one = ids(&store, &tenant, &RecordFilter::of(name), 1000).await;
    assert_eq!(of_one.len(), RACERS / 4 * 10);
}

/// Of many that end one execution at the same time, one wins; what it wrote stays, and counts.
pub async fn one_of_many_racing_ends_wins(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    for has_begun in [true, false].repeat(5) {
        let record = executed.running(time(0));
        if has_begun {
            begin(&store, &record).await;
        }
        let mut race = JoinSet::new();
        for state in STATES.into_iter().cycle().take(RACERS) {
            let (store, end) = (store.clone(), end(record.clone(), state));
            race.spawn(async move { store.finish(Arc::new(end), Durability::Durable).await.map(|()| state) });
        }
        let mut winners = Vec::new();
        for result in race.join_all().await {
            match result {
                Ok(state) => winners.push(state),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
        let kept = get(&store, &record).await.expect("the record is there");
        assert_eq!(winners, [kept.state]);
    }
    assert_eq!(statistics(&store, &executed.key.tenant, time(0), time(60)).await.count, 10);
}

/// What was buffered before a flush is read after it.
pub async fn what_is_flushed_is_kept(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    store.flush().await.expect("an idle store is flushed");
    let begun = executed.running(time(0));
    begin(&store, &begun).await;
    let records = [end(begun, InvocationState::Lost), executed.ended(time(1)), executed.ended(time(2))];
    finish_all(&store, &records).await;
    for record in &records {
        assert_eq!(get(&store, record).await.as_deref(), Some(record));
    }
    let tenant = &executed.key.tenant;
    assert_eq!(ids(&store, tenant, &RecordFilter::default(), 2).await, newest_first(records.iter()));
    assert_eq!(statistics(&store, tenant, time(0), time(60)).await.count, 3);
}

/// Statistics count each execution that has ended once, by state, class and phase.
pub async fn statistics_count_each_execution_once(store: Store) {
    let tenant = tenant();
    let (a, b) = (Executed::new(&tenant, "a"), Executed::new(&tenant, "b"));
    begin(&store, &a.running(time(0))).await;
    let mut first = a.running(time(0));
    begin(&store, &first).await;
    first = end(first, InvocationState::Succeeded);
    first.timings.set(TimedPhase::Total, Duration::from_micros(20));
    first.timings.set(TimedPhase::Driver, Duration::from_micros(10));
    finish(&store, &first).await;
    let mut queued = a.ended(time(1));
    queued.timings.set(TimedPhase::Queue, Duration::ZERO);
    queued.timings.set(TimedPhase::Total, Duration::from_micros(30));
    finish(&store, &queued).await;
    for state in [InvocationState::Failed, InvocationState::Failed, InvocationState::TimedOut] {
        finish(&store, &end(b.running(time(2)), state)).await;
    }
    // The function may say no without the execution counting as failed.
    let mut rejected = b.ended(time(3));
    rejected.failure = Some(Failure::new(ErrorClass::Rejected, "function_rejected", "no", Delivery::Executed));
    finish(&store, &rejected).await;

    let all = statistics(&store, &tenant, time(0), time(60)).await;
    assert_eq!(all.count, 6);
    let by_state = [(InvocationState::Succeeded, 3), (InvocationState::Failed, 2), (InvocationState::TimedOut, 1)];
    assert_eq!(all.by_state, by_state.into());
    let by_class = [(ErrorClass::Rejected, 1), (ErrorClass::Function, 2), (ErrorClass::Timeout, 1)];
    assert_eq!(all.by_class, by_class.into());
    assert!((all.error_rate() - 0.5).abs() < 1e-9);
    assert!((all.class_rate(ErrorClass::Function) - 2.0 / 6.0).abs() < 1e-9);
    let exactly = |count, micros| {
        let micros = Duration::from_micros(micros);
        Quantiles::new(count, micros, micros, micros)
    };
    let phases: Vec<_> = all.phases.keys().copied().collect();
    assert_eq!(phases, [TimedPhase::Queue, TimedPhase::Driver, TimedPhase::Total]);
    assert_eq!(all.phases.get(&TimedPhase::Queue), Some(&exactly(1, 0)));
    assert_close(all.phases.get(&TimedPhase::Driver), &exactly(1, 10));
    let total = Quantiles::new(2, Duration::from_micros(20), Duration::from_micros(30), Duration::from_micros(30));
    assert_close(all.phases.get(&TimedPhase::Total), &total);

    let of_a = StatisticsQuery::new(time(0), time(60)).of(a.key.name);
    let of_a = store.statistics(&tenant, &of_a).await.expect("statistics are read");
    assert_eq!((of_a.count, of_a.by_state), (2, [(InvocationState::Succeeded, 2)].into()));
    let of_none = StatisticsQuery::new(time(0), time(60)).of(valid("c".parse()));
    assert_eq!(store.statistics(&tenant, &of_none).await.expect("statistics are read"), Statistics::default());
}

/// Quantiles are off by at most 5 %; counts are exact.
fn assert_close(seen: Option<&Quantiles>, exact: &Quantiles) {
    let seen = seen.expect("the phase occurred");
    assert_eq!(seen.count, exact.count);
    for (seen, exact) in [(seen.p50, exact.p50), (seen.p95, exact.p95), (seen.p99, exact.p99)] {
        assert!(seen.abs_diff(exact) * 20 <= exact, "{seen:?} is more than 5 % off {exact:?}");
    }
}

/// An execution counts at the minute in which it ended; a query is widened to whole minutes.
pub async fn statistics_go_by_whole_minutes(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    // They end at the first and the last moment of a minute, the next one, and the one after that.
    for (created, ended) in [(-60, 0_i64), (-60, 59_999_999), (59, 60_000_000), (59, 120_000_000)] {
        let mut record = executed.ended(time(created));
        record.finished_at = Some(Timestamp::from_micros(time(0).as_micros() + ended));
        finish(&store, &record).await;
    }
    let cases = [
        ((-60, 0), 0),
        ((0, 60), 2),
        ((59, 60), 2),
        ((0, 1), 2),
        ((0, 61), 3),
        ((60, 120), 1),
        ((0, 180), 4),
        ((120, 121), 1),
        ((180, 240), 0),
        ((60, 0), 0),
    ];
    for ((from, until), count) in cases {
        let seen = statistics(&store, &executed.key.tenant, time(from), time(until)).await;
        assert_eq!(seen.count, count, "from {from} until {until}");
    }
}

/// Quantiles over many executions in many minutes are off by at most 5 %.
pub async fn quantiles_are_within_5_percent(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    // From 1 µs to some minutes, each a bit longer than the one before, in an order that mixes them.
    let mut durations: Vec<u64> = Vec::new();
    let mut next = 1;
    while durations.len() < 300 {
        durations.push(next);
        next += 1 + next / 16;
    }
    let records: Vec<_> = (0..300_usize)
        .map(|number| {
            let micros = durations.iter().cycle().nth(number * 77).copied().unwrap_or_default();
            let minute = i64::try_from(number % 5).unwrap_or_default();
            let mut record = executed.ended(time(60 * minute));
            record.timings.set(TimedPhase::Total, Duration::from_micros(micros));
            record
        })
        .collect();
    finish_all(&store, &records).await;
    let seen = statistics(&store, &executed.key.tenant, time(0), time(300)).await;
    // The nearest rank: of 300, the 150th, the 285th and the 297th.
    let exact = |rank: usize| Duration::from_micros(durations.get(rank - 1).copied().unwrap_or_default());
    assert_close(seen.phases.get(&TimedPhase::Total), &Quantiles::new(300, exact(150), exact(285), exact(297)));
}

/// Deletes until nothing is left to delete, a few at a time.
async fn retain(store: &Store, retention: &Retention, now: Timestamp, limit: usize) {
    for _ in 0..10_000 {
        let deleted = store.retain(retention, now, limit).await.expect("records are deleted");
        let deleted = usize::try_from(deleted).unwrap_or(usize::MAX);
        assert!(deleted <= limit, "{deleted} are more than {limit}");
        if deleted < limit {
            return;
        }
    }
    panic!("retention comes to no end");
}

/// Statistics stay when retention deletes the records they are of.
pub async fn statistics_outlive_records(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let at = Timestamp::from_micros(60_000_000);
    let mut records = [executed.ended(at), executed.ended(at), end(executed.running(at), InvocationState::Failed)];
    for record in &mut records {
        record.timings.set(TimedPhase::Total, Duration::from_millis(1));
        finish(&store, record).await;
    }
    let (tenant, until) = (&executed.key.tenant, at.plus(Duration::from_secs(60)));
    let before = statistics(&store, tenant, at, until).await;
    assert_eq!(before.count, 3);
    retain(&store, &Retention::keep_all().with_max_age(Duration::ZERO), until, 100).await;
    assert_eq!(ids(&store, tenant, &RecordFilter::default(), 10).await, []);
    assert_eq!(statistics(&store, tenant, at, until).await, before);
}

/// Retention by age deletes what ended longer ago, whenever it began, and nothing that still runs.
pub async fn retention_goes_by_age(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let second = |second: i64| Timestamp::from_micros(second * 1_000_000);
    let max_age = Duration::from_secs(1000);
    let oldest = second(2000).minus(max_age);
    let mut kept = Vec::new();
    let mut old = Vec::new();
    for number in 0..12 {
        let mut record = executed.ended(second(number));
        let is_old = number % 4 != 0;
        record.finished_at = Some(if is_old { oldest.minus(Duration::from_micros(1)) } else { oldest });
        finish(&store, &record).await;
        if is_old { old.push(record) } else { kept.push(record) }
    }
    let running = executed.running(second(20));
    begin(&store, &running).await;
    kept.push(running);
    retain(&store, &Retention::keep_all().with_max_age(max_age), second(2000), 4).await;
    for record in &old {
        assert_eq!(get(&store, record).await, None);
    }
    let left = ids(&store, &executed.key.tenant, &RecordFilter::default(), 10).await;
    assert_eq!(left, newest_first(kept.iter()));

    // An id whose record was deleted is free again.
    if let Some(record) = old.first() {
        finish(&store, record).await;
    }
}

/// Retention by count keeps the newest records of each function that have ended, and all that run.
pub async fn retention_goes_by_count(store: Store) {
    let tenant = tenant();
    let (many, few) = (Executed::new(&tenant, "many"), Executed::new(&tenant, "few"));
    // A function of the same name is another one.
    let namesake = Executed { key: many.key.clone(), id: FunctionId::generate() };
    let kept = i64::try_from(KEPT_PER_FUNCTION).unwrap_or(i64::MAX);
    let of_many: Vec<_> = (0..kept + 9).map(|second| many.ended(time(second))).collect();
    let others = [few.ended(time(0)), namesake.ended(time(1))];
    let running: Vec<_> = (0..3).map(|second| many.running(time(second))).collect();
    finish_all(&store, &of_many).await;
    finish_all(&store, &others).await;
    for record in &running {
        begin(&store, record).await;
    }
    retain(&store, &Retention::keep_all().with_max_per_function(KEPT_PER_FUNCTION), time(10), 4).await;

    let mut filter = RecordFilter::default();
    filter.function = Some(many.id);
    filter.state = Some(InvocationState::Succeeded);
    assert_eq!(ids(&store, &tenant, &filter, 50).await, newest_first(of_many.iter().skip(9)));
    for record in others.iter().chain(&running) {
        assert_eq!(get(&store, record).await.as_deref(), Some(record));
    }
}

/// A retention that keeps everything, or a limit of 0, deletes nothing.
pub async fn no_retention_deletes_nothing(store: Store) {
    let record = Executed::new(&tenant(), "a").ended(time(0));
    finish(&store, &record).await;
    let deleted = store.retain(&Retention::keep_all(), time(i64::from(i32::MAX)), 100).await;
    assert_eq!(deleted.expect("nothing is deleted"), 0);
    let all = Retention::keep_all().with_max_age(Duration::ZERO).with_max_per_function(0);
    let all = all.with_max_statistics_age(Duration::ZERO);
    assert_eq!(store.retain(&all, time(60), 0).await.expect("nothing is deleted"), 0);
    assert_eq!(get(&store, &record).await.as_deref(), Some(&record));
}

/// Figures of minutes that are too old are deleted; those of later ones stay, and all records do.
pub async fn figures_go_by_their_age(store: Store) {
    let executed = Executed::new(&tenant(), "a");
    let minute = |minute: i64| Timestamp::from_micros((100_000 + minute) * 60_000_000);
    let mut records = Vec::new();
    for number in 0..6 {
        let record = executed.ended(minute(number));
        finish(&store, &record).await;
        records.push(record);
    }
    let retention = Retention::keep_all().with_max_statistics_age(Duration::from_secs(180));
    for _ in 0..3 {
        store.retain(&retention, minute(6), 2).await.expect("figures are deleted");
    }
    let tenant = &executed.key.tenant;
    assert_eq!(statistics(&store, tenant, minute(0), minute(6)).await.count, 3);
    assert_eq!(statistics(&store, tenant, minute(0), minute(3)).await.count, 0);
    assert_eq!(ids(&store, tenant, &RecordFilter::default(), 10).await, newest_first(records.iter()));
}
