//! What an [`AuditLog`] promises.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::{
    Action, ApiKeyId, AuditEvent, AuditEventId, AuditFilter, AuditLog, CallContext, Cursor, CursorKind, ErrorKind,
    Generation, PageRequest, Principal, Retention, TenantId, Timestamp,
};
use tokio::task::JoinSet;

use super::{all_pages, principal, refused, tenant, valid};

type Log = Arc<dyn AuditLog>;

/// How many tasks race.
const RACERS: usize = 16;

/// A time in the year 2023, which retention in no case reaches.
fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_000 + seconds) * 1_000_000)
}

fn event(tenant: &TenantId, at: Timestamp) -> AuditEvent {
    let cx = CallContext::new(Principal::new(tenant.clone(), principal("ann")));
    AuditEvent::new(at, &cx, Action::Update, true)
}

async fn append(log: &Log, event: &AuditEvent) {
    log.append(event.clone()).await.expect("the event is kept");
}

async fn list(log: &Log, tenant: &TenantId, filter: &AuditFilter, limit: usize) -> Vec<Arc<AuditEvent>> {
    all_pages(limit, async |page| log.list(tenant, filter, &page).await.expect("a page is read")).await
}

async fn ids(log: &Log, tenant: &TenantId, filter: &AuditFilter, limit: usize) -> Vec<AuditEventId> {
    list(log, tenant, filter, limit).await.iter().map(|event| event.id).collect()
}

/// The ids of events that come oldest first, newest first.
fn newest_first<'a>(events: impl DoubleEndedIterator<Item = &'a AuditEvent>) -> Vec<AuditEventId> {
    events.rev().map(|event| event.id).collect()
}

/// An event is read as it was appended, with everything that it holds, whatever its action.
pub async fn an_event_reads_back_as_it_was_appended(log: Log) {
    let tenant = tenant();
    let actions = [
        Action::Create,
        Action::Validate,
        Action::Cancel,
        Action::Redrive,
        Action::Purge,
        Action::Publish,
        Action::ReadSubscriptions,
        Action::WriteSubscriptions,
        Action::Read,
        Action::Update,
        Action::Delete,
        Action::List,
        Action::Invoke,
        Action::ReadExecutions,
        Action::ReadAudit,
        Action::ReadKeys,
        Action::CreateKey,
        Action::RevokeKey,
        Action::ReadMetrics,
    ];
    let mut expected = Vec::new();
    for (second, action) in (0..).zip(actions) {
        let mut event = event(&tenant, Timestamp::from_micros(time(second).as_micros() + 1));
        event.action = action;
        event.allowed = second % 2 == 0;
        if second % 3 == 0 {
            event = event.on(&valid("f".parse()), Generation::new(7));
        }
        if second % 4 == 0 {
            event = event.on_key(ApiKeyId::generate());
            event.principal = principal("grüß \"dich\"'\\ %_\u{1F600} ");
        }
        append(&log, &event).await;
        expected.insert(0, Arc::new(event));
    }
    assert_eq!(list(&log, &tenant, &AuditFilter::all(), 5).await, expected);
}

/// The second event of an id is refused and changes nothing, in the same tenant and in another.
pub async fn an_id_is_of_one_event_in_all_tenants(log: Log) {
    let (mine, foreign) = (tenant(), tenant());
    let first = event(&mine, time(0));
    append(&log, &first).await;
    for tenant in [&mine, &foreign] {
        let mut second = event(tenant, time(1));
        (second.id, second.allowed) = (first.id, false);
        assert_eq!(refused(log.append(second).await), ErrorKind::AlreadyExists);
    }
    assert_eq!(list(&log, &mine, &AuditFilter::all(), 10).await, [Arc::new(first)]);
    assert_eq!(ids(&log, &foreign, &AuditFilter::all(), 10).await, []);
}

/// A list goes by `at` and then by id, newest first, whatever the size of its pages and in whichever order events came.
pub async fn events_are_listed_newest_first(log: Log) {
    let tenant = tenant();
    let mut expected = Vec::new();
    for second in 0..6_u8 {
        // The later, the smaller the id; two at each time.
        for number in [1, 2] {
            let mut event = event(&tenant, time(second.into()));
            let mut id = *event.id.as_bytes();
            id.rotate_left(8);
            let [first, ..] = &mut id;
            *first = 0xf0 - second * 16 + number;
            event.id = AuditEventId::from_bytes(id);
            expected.push(event);
        }
    }
    for event in expected.iter().step_by(2).chain(expected.iter().skip(1).step_by(2)) {
        append(&log, event).await;
    }
    for limit in [1, 5, 12, 1000] {
        assert_eq!(ids(&log, &tenant, &AuditFilter::all(), limit).await, newest_first(expected.iter()));
    }
    let exact = log.list(&tenant, &AuditFilter::all(), &PageRequest::first(12)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (12, None));
}

/// While a list is read page by page and events come in, those that were there at first appear once each, and none appears
/// twice.
pub async fn a_list_of_events_stays_whole_while_more_come_in(log: Log) {
    let tenant = tenant();
    let mut first = BTreeSet::new();
    for second in 0..20 {
        let event = event(&tenant, time(second));
        append(&log, &event).await;
        first.insert(event.id);
    }
    let mut added = 0;
    let seen = all_pages(3, async |page| {
        let page = log.list(&tenant, &AuditFilter::all(), &page).await.expect("a page is read");
        added += 1;
        append(&log, &event(&tenant, time(100 + added))).await;
        append(&log, &event(&tenant, time(20 - added))).await;
        page
    });
    let seen: Vec<_> = seen.await.iter().map(|event| event.id).collect();
    let once: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "an event appears twice");
    assert!(first.is_subset(&once), "an event is lost");
}

/// A list gives nothing of another tenant's.
pub async fn tenants_do_not_see_each_others_events(log: Log) {
    let mine = tenant();
    let event = event(&mine, time(0)).on(&valid("f".parse()), None);
    append(&log, &event).await;
    let upper = valid(TenantId::new(mine.as_str().to_uppercase()));
    for foreign in [tenant(), upper] {
        for filter in [
            AuditFilter::all(),
            AuditFilter::all().with_function(valid("f".parse())),
            AuditFilter::all().with_principal(event.principal.clone()),
            AuditFilter::all().with_action(event.action),
        ] {
            assert_eq!(ids(&log, &mine, &filter, 10).await, [event.id]);
            assert_eq!(ids(&log, &foreign, &filter, 10).await, []);
        }
    }
}

/// Each filter by itself gives what it names and nothing else. A range of time has its start, but not its end.
pub async fn every_audit_filter_holds(log: Log) {
    let tenant = tenant();
    let plain = event(&tenant, time(0));
    let on_a = event(&tenant, time(1)).on(&valid("a".parse()), None);
    let on_b = event(&tenant, time(2)).on(&valid("a-b".parse()), Generation::new(1));
    let mut by_ben = event(&tenant, time(3));
    by_ben.principal = principal("Ann \"%_'\\");
    let mut of_key = event(&tenant, time(4)).on_key(ApiKeyId::generate());
    of_key.action = Action::CreateKey;
    for event in [&plain, &on_a, &on_b, &by_ben, &of_key] {
        append(&log, event).await;
    }
    let all = AuditFilter::all;
    let cases = [
        (all(), vec![&plain, &on_a, &on_b, &by_ben, &of_key]),
        (all().with_function(valid("a".parse())), vec![&on_a]),
        (all().with_function(valid("b".parse())), vec![]),
        (all().with_principal(principal("Ann \"%_'\\")), vec![&by_ben]),
        (all().with_principal(principal("ann")), vec![&plain, &on_a, &on_b, &of_key]),
        (all().with_principal(principal("ANN")), vec![]),
        (all().with_action(Action::CreateKey), vec![&of_key]),
        (all().with_action(Action::Delete), vec![]),
        (all().with_from(time(3)), vec![&by_ben, &of_key]),
        (all().with_until(time(1)), vec![&plain]),
        (all().with_from(time(1)).with_until(time(3)), vec![&on_a, &on_b]),
        (all().with_from(time(1)).with_until(time(1)), vec![]),
        (all().with_from(time(3)).with_until(time(1)), vec![]),
    ];
    for (filter, expected) in cases {
        for limit in [1, 10] {
            let expected = newest_first(expected.iter().copied());
            assert_eq!(ids(&log, &tenant, &filter, limit).await, expected, "{filter:?}");
        }
    }
}

/// All filters together hold on every page, and the last page says so also where events follow that are not meant.
pub async fn audit_filters_hold_together_over_pages(log: Log) {
    let tenant = tenant();
    let mut expected = Vec::new();
    for second in 0..36 {
        let (is_f, is_ann, is_delete) = (second % 2 == 0, second % 3 != 0, second % 4 == 0);
        let mut event = event(&tenant, time(second)).on(&valid(if is_f { "f" } else { "g" }.parse()), None);
        event.principal = principal(if is_ann { "ann" } else { "ben" });
        event.action = if is_delete { Action::Delete } else { Action::Update };
        append(&log, &event).await;
        if is_f && is_ann && is_delete && (3..30).contains(&second) {
            expected.push(event);
        }
    }
    let filter = AuditFilter::all()
        .with_function(valid("f".parse()))
        .with_principal(principal("ann"))
        .with_action(Action::Delete)
        .with_from(time(3))
        .with_until(time(30));
    for limit in [1, 2, expected.len(), 100] {
        assert_eq!(ids(&log, &tenant, &filter, limit).await, newest_first(expected.iter()));
    }
    let exact = log.list(&tenant, &filter, &PageRequest::first(expected.len())).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (expected.len(), None));
}

/// Events that come in at the same time are all there.
pub async fn many_events_come_in_at_once(log: Log) {
    let tenant = tenant();
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        let (log, tenant) = (log.clone(), tenant.clone());
        race.spawn(async move {
            let mut kept = Vec::new();
            for second in 0..4 {
                let event = event(&tenant, time(second + i64::try_from(racer % 2).unwrap_or_default()));
                append(&log, &event).await;
                kept.push(event.id);
            }
            kept
        });
    }
    let expected: BTreeSet<_> = race.join_all().await.into_iter().flatten().collect();
    let seen = ids(&log, &tenant, &AuditFilter::all(), 7).await;
    assert_eq!(seen.len(), expected.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// Retention by age deletes what is older, in whichever tenant, a few at a time.
pub async fn audit_retention_goes_by_age(log: Log) {
    let tenants = [tenant(), tenant()];
    let second = |second: i64| Timestamp::from_micros(second * 1_000_000);
    let max_age = Duration::from_secs(1000);
    let oldest = second(2000).minus(max_age);
    let mut kept = Vec::new();
    for number in 0..12 {
        let tenant = tenants.iter().cycle().nth(number).expect("it goes round");
        let is_old = number % 3 != 0;
        let event = event(tenant, if is_old { oldest.minus(Duration::from_micros(1)) } else { oldest });
        append(&log, &event).await;
        if !is_old {
            kept.push(event);
        }
    }
    let retention = Retention::keep_all().with_max_audit_age(max_age);
    let mut deleted = 0;
    loop {
        let batch = log.retain(&retention, second(2000), 3).await.expect("events are deleted");
        assert!(batch <= 3, "{batch} are more than 3");
        deleted += batch;
        if batch < 3 {
            break;
        }
    }
    // Others may be in a log that is shared.
    assert!(deleted >= 8, "{deleted} are too few");
    for tenant in &tenants {
        let left: BTreeSet<_> = ids(&log, tenant, &AuditFilter::all(), 10).await.into_iter().collect();
        let expected = kept.iter().filter(|event| event.tenant == *tenant).map(|event| event.id);
        assert_eq!(left, expected.collect::<BTreeSet<_>>());
    }
}

/// A retention that keeps all events, or a limit of 0, deletes none.
pub async fn no_retention_deletes_no_events(log: Log) {
    let event = event(&tenant(), time(0));
    append(&log, &event).await;
    // That of records is none of events.
    let records = Retention::keep_all().with_max_age(Duration::ZERO).with_max_statistics_age(Duration::ZERO);
    for retention in [Retention::keep_all(), records.with_max_per_function(0)] {
        assert_eq!(log.retain(&retention, time(60), 100).await.expect("nothing is deleted"), 0);
    }
    let all = Retention::keep_all().with_max_audit_age(Duration::ZERO);
    assert_eq!(log.retain(&all, time(60), 0).await.expect("nothing is deleted"), 0);
    assert_eq!(ids(&log, &event.tenant, &AuditFilter::all(), 10).await, [event.id]);
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_give_no_events(log: Log) {
    let event = event(&tenant(), time(0));
    append(&log, &event).await;
    let kinds = super::CURSORS.map(|kind| Cursor::after(kind, "neither time nor id"));
    let records = Cursor::after(CursorKind::Records, &format!("0/{}", event.id));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(Cursor::from_text);
    for cursor in kinds.into_iter().chain([records]).chain(garbage) {
        let page = PageRequest::default().after(cursor);
        let result = log.list(&event.tenant, &AuditFilter::all(), &page).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
    }
}
