//! What a [`FunctionStore`] promises.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use function_gateway_core::{
    Cursor, CursorKind, ErrorKind, Function, FunctionFilter, FunctionId, FunctionKey, FunctionStatus, FunctionStore,
    Generation, Lease, PageRequest, Phase, TenantId, Timestamp, Version,
};
use tokio::task::JoinSet;

use super::{all_pages, function, key, principal, refused, successor, tenant, valid};

type Store = Arc<dyn FunctionStore>;

/// Longer than any case runs.
const LONG: Duration = Duration::from_secs(600);
/// How many tasks race.
const RACERS: usize = 16;

async fn create(store: &Store, function_: &FunctionKey) -> Function {
    let (function, revision) = function(function_);
    store.create(&function, &revision).await.expect("the function is created");
    function
}

async fn get(store: &Store, key: &FunctionKey) -> Option<Arc<Function>> {
    store.get(key).await.expect("a function is read")
}

async fn lease(store: &Store, key: &FunctionKey, ttl: Duration) -> Option<Lease> {
    store.acquire_lease(key, ttl).await.expect("a lease is asked for")
}

async fn delete(store: &Store, key: &FunctionKey) {
    let lease = lease(store, key, LONG).await.expect("the lease is free");
    let version = get(store, key).await.expect("the function is there").version;
    store.delete(&lease, version).await.expect("the function is deleted");
}

async fn names(store: &Store, tenant: &TenantId, filter: &FunctionFilter, limit: usize) -> Vec<String> {
    let functions =
        all_pages(limit, async |page| store.list(tenant, filter, &page).await.expect("a page is read")).await;
    functions.iter().map(|function| function.key.name.to_string()).collect()
}

async fn generations(store: &Store, function: &Function, limit: usize) -> Vec<u64> {
    let tenant = &function.key.tenant;
    let read = async |page| store.revisions(tenant, function.id, &page).await.expect("a page is read");
    all_pages(limit, read).await.iter().map(|revision| revision.generation.get()).collect()
}

/// The identity of the gateway is the same each time.
pub async fn a_gateway_keeps_its_identity(store: Store) {
    let first = store.gateway_id().await.expect("the identity is read");
    assert_eq!(store.gateway_id().await.expect("the identity is read"), first);
}

/// A function is read as it was created, by key and by id, and so is its first revision.
pub async fn a_function_reads_back_as_it_was_created(store: Store) {
    let key = key(&tenant(), "a");
    let (mut function, revision) = function(&key);
    function.spec = function.spec.with_env("GREETING", "'grüß \"dich\"\\ \u{1F600}").with_label("a.b/c", "it's");
    function.spec.input_schema = Some(true.into());
    store.create(&function, &revision).await.expect("the function is created");
    assert_eq!(get(&store, &key).await.as_deref(), Some(&function));
    assert_eq!(store.find(function.id).await.expect("a function is looked for").as_deref(), Some(&function));
    let first = store.revision(&key.tenant, function.id, Generation::FIRST).await.expect("a revision is read");
    assert_eq!(first.as_deref(), Some(&revision));
    let second = store.revision(&key.tenant, function.id, Generation::FIRST.next()).await;
    assert_eq!(second.expect("a revision is read"), None);
    assert_eq!(store.find(FunctionId::generate()).await.expect("a function is looked for"), None);
}

/// The second function of a name is refused and changes nothing, not even where it has another id.
pub async fn a_name_is_taken_once_in_a_tenant(store: Store) {
    let key_a = key(&tenant(), "a");
    let first = create(&store, &key_a).await;
    let (second, revision) = function(&key_a);
    assert_eq!(refused(store.create(&second, &revision).await), ErrorKind::AlreadyExists);
    assert_eq!(get(&store, &key_a).await.as_deref(), Some(&first));
    assert_eq!(store.find(second.id).await.expect("a function is looked for"), None);
    let none = store.revision(&key_a.tenant, second.id, Generation::FIRST).await;
    assert_eq!(none.expect("a revision is read"), None);
    create(&store, &key(&tenant(), "a")).await;
}

/// A first revision that belongs to another function is refused.
pub async fn a_first_revision_of_another_function_is_refused(store: Store) {
    let key = key(&tenant(), "a");
    let (created, _) = function(&key);
    let (_, other) = function(&key);
    assert_eq!(refused(store.create(&created, &other).await), ErrorKind::InvalidArgument);
    assert_eq!(get(&store, &key).await, None);
}

/// What serves a caller gives nothing of another tenant's.
pub async fn tenants_do_not_see_each_other(store: Store) {
    let (mine, foreign) = (tenant(), tenant());
    let function = create(&store, &key(&mine, "a")).await;
    let foreign_key = key(&foreign, "a");
    assert_eq!(get(&store, &foreign_key).await, None);
    assert_eq!(names(&store, &foreign, &FunctionFilter::all(), 10).await, [""; 0]);
    assert_eq!(lease(&store, &foreign_key, LONG).await, None);
    let revision = store.revision(&foreign, function.id, Generation::FIRST).await;
    assert_eq!(revision.expect("a revision is read"), None);
    let revisions = store.revisions(&foreign, function.id, &PageRequest::default()).await;
    assert_eq!(revisions.expect("a page is read").items, []);
}

/// Tenants and owners are compared byte by byte: databases that fold case or ignore blanks at the end must not.
pub async fn names_that_differ_in_case_or_blanks_are_different(store: Store) {
    let lower = tenant();
    let upper = valid(TenantId::new(lower.as_str().to_uppercase()));
    create(&store, &key(&lower, "a")).await;
    assert_eq!(get(&store, &key(&upper, "a")).await, None);
    create(&store, &key(&upper, "a")).await;
    for (name, owner) in [("b", "ann"), ("c", "Ann"), ("d", "ann "), ("e", "änn")] {
        let (mut function, revision) = function(&key(&lower, name));
        function.owner = principal(owner);
        store.create(&function, &revision).await.expect("the function is created");
    }
    let filter = FunctionFilter::all().with_owner(principal("ann"));
    assert_eq!(names(&store, &lower, &filter, 10).await, ["b"]);
}

/// An update replaces the function and gives it with the version after the expected one.
pub async fn an_update_gives_the_next_version(store: Store) {
    let key = key(&tenant(), "a");
    let mut function = create(&store, &key).await;
    function.status.phase = Phase::Ready;
    let updated = store.update(&function, Version::FIRST, None).await.expect("the function is updated");
    assert_eq!((updated.version, updated.status.phase), (Version::FIRST.next(), Phase::Ready));
    assert_eq!(get(&store, &key).await, Some(updated.clone()));

    // What stands in the function as its version does not count.
    function.version = Version::new(77);
    let again = store.update(&function, updated.version, None).await.expect("the function is updated");
    assert_eq!(again.version, updated.version.next());
    assert_eq!(generations(&store, &function, 10).await, [1]);
}

/// An update that expects an older version is refused; nothing of it is kept.
pub async fn a_stale_update_changes_nothing(store: Store) {
    let key = key(&tenant(), "a");
    let function = create(&store, &key).await;
    let current = store.update(&function, Version::FIRST, None).await.expect("the function is updated");
    let (late, revision) = successor(&function, "late");
    for stale in [Version::FIRST, current.version.next()] {
        assert_eq!(refused(store.update(&late, stale, Some(&revision)).await), ErrorKind::Conflict);
    }
    assert_eq!(get(&store, &key).await, Some(current));
    assert_eq!(generations(&store, &function, 10).await, [1]);
}

/// An update of a function that is not there is refused.
pub async fn an_update_of_nothing_is_refused(store: Store) {
    let (missing, _) = function(&key(&tenant(), "a"));
    assert_eq!(refused(store.update(&missing, Version::FIRST, None).await), ErrorKind::NotFound);
    assert_eq!(get(&store, &missing.key).await, None);
}

/// An update meant for a deleted function does not reach the one that bears its name now.
pub async fn an_update_of_a_namesake_is_refused(store: Store) {
    let key = key(&tenant(), "a");
    let former = create(&store, &key).await;
    delete(&store, &key).await;
    let namesake = create(&store, &key).await;
    assert_eq!(refused(store.update(&former, Version::FIRST, None).await), ErrorKind::Conflict);
    assert_eq!(get(&store, &key).await.as_deref(), Some(&namesake));
}

/// Of many that update from the same version at the same time, one wins; its revision is the one that is kept.
pub async fn one_of_many_racing_updates_wins(store: Store) {
    let mut current = Arc::new(create(&store, &key(&tenant(), "a")).await);
    for round in 0..10 {
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let (store, expected) = (store.clone(), current.version);
            let (next, revision) = successor(&current, &format!("round {round}, racer {racer}"));
            race.spawn(async move { store.update(&next, expected, Some(&revision)).await });
        }
        let mut winners = Vec::new();
        for result in race.join_all().await {
            match result {
                Ok(function) => winners.push(function),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
        assert_eq!(winners.len(), 1, "in round {round}");
        let winner = winners.pop().expect("there is one");
        assert_eq!(get(&store, &winner.key).await.as_ref(), Some(&winner));
        let revision = store.revision(&winner.key.tenant, winner.id, winner.generation).await;
        assert_eq!(revision.expect("a revision is read").expect("it is there").spec, winner.spec);
        current = winner;
    }
}

/// An update with a new generation adds its revision; the earlier ones stay.
pub async fn an_update_adds_its_revision(store: Store) {
    let first = create(&store, &key(&tenant(), "a")).await;
    let (next, revision) = successor(&first, "second");
    store.update(&next, Version::FIRST, Some(&revision)).await.expect("the function is updated");
    let tenant = &first.key.tenant;
    let second = store.revision(tenant, first.id, next.generation).await.expect("a revision is read");
    assert_eq!(second.as_deref(), Some(&revision));
    let kept = store.revision(tenant, first.id, Generation::FIRST).await.expect("a revision is read");
    assert_eq!(kept.expect("it is there").spec, first.spec);
}

/// A revision of a generation that there is already, or of another function, is refused; nothing of the update is kept.
pub async fn a_revision_never_changes(store: Store) {
    let function_a = create(&store, &key(&tenant(), "a")).await;
    let (next, revision) = successor(&function_a, "second");
    let current = store.update(&next, Version::FIRST, Some(&revision)).await.expect("the function is updated");

    let (again, other) = successor(&function_a, "another second");
    let result = store.update(&again, current.version, Some(&other)).await;
    assert_eq!(refused(result), ErrorKind::Conflict);

    let (third, _) = successor(&current, "third");
    let (_, foreign) = successor(&function(&key(&tenant(), "a")).0, "foreign");
    for wrong in [&foreign, &revision] {
        let result = store.update(&third, current.version, Some(wrong)).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument);
    }
    let kept = store.revision(&current.key.tenant, current.id, current.generation).await.expect("a revision is read");
    assert_eq!(kept.as_deref(), Some(&revision));
    assert_eq!(get(&store, &current.key).await, Some(current));
}

/// Revisions are listed newest first, by number rather than as text, over many pages, while more are added.
pub async fn revisions_are_listed_newest_first(store: Store) {
    let mut function = Arc::new(create(&store, &key(&tenant(), "a")).await);
    let add = async |function: &Function| {
        let (next, revision) = successor(function, "next");
        store.update(&next, function.version, Some(&revision)).await.expect("the function is updated")
    };
    for _ in 1..25 {
        function = add(&function).await;
    }
    let expected: Vec<u64> = (1..=25).rev().collect();
    for limit in [1, 4, 25, 1000] {
        assert_eq!(generations(&store, &function, limit).await, expected);
    }
    let (tenant, id) = (function.key.tenant.clone(), function.id);
    let meanwhile = all_pages(7, async |page| {
        let page = store.revisions(&tenant, id, &page).await.expect("a page is read");
        function = add(&function).await;
        page
    });
    let seen: Vec<u64> = meanwhile.await.iter().map(|revision| revision.generation.get()).collect();
    assert_eq!(seen, expected);
}

/// A list has every function once, in the order of names by bytes, whatever the size of its pages.
pub async fn a_list_goes_by_name_over_many_pages(store: Store) {
    let tenant = tenant();
    let mut expected =
        ["a", "a-b", "a0", "ab", "b", "0", "00", "zz", "z-z", "z0z", "aa", "a-0", "a1"].map(str::to_owned);
    for name in &expected {
        create(&store, &key(&tenant, name)).await;
    }
    expected.sort();
    for limit in [1, 3, 12, 13, 14, 1000] {
        assert_eq!(names(&store, &tenant, &FunctionFilter::all(), limit).await, expected);
    }
    let none = PageRequest::first(0);
    let page = store.list(&tenant, &FunctionFilter::all(), &none).await.expect("a page is read");
    assert_eq!(page.items.len(), 1, "0 is taken as 1");
}

/// While a list is read page by page and functions are created and deleted, those that are there all the time appear
/// once each, and none appears twice.
pub async fn a_list_stays_whole_while_functions_come_and_go(store: Store) {
    let tenant = tenant();
    let mut doomed = Vec::new();
    let mut lasting = BTreeSet::new();
    for number in 0..30 {
        let (stays, goes) = (format!("f{number:02}-stays"), format!("f{number:02}-goes"));
        create(&store, &key(&tenant, &stays)).await;
        create(&store, &key(&tenant, &goes)).await;
        lasting.insert(stays);
        doomed.push(key(&tenant, &goes));
    }
    let mut added = 0;
    let seen = all_pages(4, async |page| {
        let page = store.list(&tenant, &FunctionFilter::all(), &page).await.expect("a page is read");
        // Before, at and after where the list stands; the function that its cursor names goes, too.
        for name in [format!("f00-{added}"), format!("f{added:02}-new"), format!("z{added}")] {
            create(&store, &key(&tenant, &name)).await;
        }
        added += 1;
        let last = page.items.last().map(|function| function.key.clone());
        let at_cursor = doomed.iter().position(|key| Some(key) == last.as_ref());
        let gone = doomed.swap_remove(at_cursor.unwrap_or(added % doomed.len()));
        delete(&store, &gone).await;
        if added > 20 {
            doomed.push(create(&store, &key(&tenant, &format!("a{added}"))).await.key);
        }
        page
    });
    let seen: Vec<_> = seen.await.iter().map(|function| function.key.name.to_string()).collect();
    let once: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "a function appears twice: {seen:?}");
    assert!(lasting.is_subset(&once), "lost: {:?}", lasting.difference(&once));
}

/// Each filter by itself gives what it names and nothing else.
pub async fn every_filter_holds(store: Store) {
    let tenant = tenant();
    type Change = fn(&mut Function);
    let changes: [(&str, Change); 6] = [
        ("plain", |_| {}),
        ("owned", |function| function.owner = principal("ann \"%_'\\")),
        ("labelled", |function| {
            function.spec.labels = [("tier", "1"), ("a.b/c\"d'", "x%_\\")].map(|(k, v)| (k.into(), v.into())).into();
        }),
        ("half-labelled", |function| function.spec.labels = [("tier".into(), "1".into())].into()),
        ("failed", |function| function.status.phase = Phase::Failed),
        ("elsewhere", |function| function.spec.driver = valid("elsewhere".parse())),
    ];
    for (name, change) in changes {
        let (mut function, revision) = function(&key(&tenant, name));
        change(&mut function);
        store.create(&function, &revision).await.expect("the function is created");
    }
    let all = FunctionFilter::all;
    let cases = [
        (all().with_owner(principal("ann \"%_'\\")), vec!["owned"]),
        (all().with_owner(principal("nobody")), vec![]),
        (all().with_label("tier", "1"), vec!["half-labelled", "labelled"]),
        (all().with_label("tier", "1").with_label("a.b/c\"d'", "x%_\\"), vec!["labelled"]),
        (all().with_label("tier", "2"), vec![]),
        (all().with_label("1", "tier"), vec![]),
        (all().with_phase(Phase::Failed), vec!["failed"]),
        (all().with_driver(valid("elsewhere".parse())), vec!["elsewhere"]),
        (all().with_name_prefix("el"), vec!["elsewhere"]),
    ];
    for (filter, expected) in cases {
        assert_eq!(names(&store, &tenant, &filter, 10).await, expected, "{filter:?}");
    }
}

/// All filters together hold on every page, and the last page says so also where functions follow that are not meant.
pub async fn filters_hold_together_over_pages(store: Store) {
    let tenant = tenant();
    let mut expected = Vec::new();
    for number in 0..24 {
        let (name, is_meant) = (format!("f-{number:02}"), number % 3 == 0);
        let (mut function, revision) = function(&key(&tenant, &name));
        function.owner = principal(if is_meant { "ann" } else { "ben" });
        function.spec.labels.insert("meant".into(), (number % 2 == 0).to_string());
        store.create(&function, &revision).await.expect("the function is created");
        if is_meant && number % 2 == 0 {
            expected.push(name);
        }
    }
    create(&store, &key(&tenant, "g")).await;
    let filter = FunctionFilter::all()
        .with_owner(principal("ann"))
        .with_label("meant", "true")
        .with_phase(Phase::Pending)
        .with_driver(valid("local".parse()))
        .with_name_prefix("f-");
    for limit in [1, 3, 4, 100] {
        assert_eq!(names(&store, &tenant, &filter, limit).await, expected);
    }
    let exact = store.list(&tenant, &filter, &PageRequest::first(4)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (4, None));
}

/// A prefix need not be a valid name, and has no wildcards.
pub async fn a_prefix_is_plain_text(store: Store) {
    let tenant = tenant();
    for name in ["a", "a-b", "a-c", "a0", "ab", "b"] {
        create(&store, &key(&tenant, name)).await;
    }
    let cases = [
        ("", vec!["a", "a-b", "a-c", "a0", "ab", "b"]),
        ("a-", vec!["a-b", "a-c"]),
        ("a", vec!["a", "a-b", "a-c", "a0", "ab"]),
        ("b", vec!["b"]),
        ("A", vec![]),
        ("a%", vec![]),
        ("%", vec![]),
        ("_", vec![]),
        ("a*", vec![]),
        ("\\", vec![]),
        ("zzz", vec![]),
        ("ä", vec![]),
    ];
    for (prefix, expected) in cases {
        let filter = FunctionFilter::all().with_name_prefix(prefix);
        for limit in [1, 10] {
            assert_eq!(names(&store, &tenant, &filter, limit).await, expected, "{prefix:?}");
        }
    }
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_are_refused(store: Store) {
    let function = create(&store, &key(&tenant(), "a")).await;
    let tenant = &function.key.tenant;
    let of_kinds = super::CURSORS.map(|kind| (Some(kind), Cursor::after(kind, "t/1")));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(|text| (None, Cursor::from_text(text)));
    for (kind, cursor) in of_kinds.into_iter().chain(garbage) {
        let page = PageRequest::default().after(cursor);
        if kind != Some(CursorKind::Functions) {
            let result = store.list(tenant, &FunctionFilter::all(), &page).await;
            assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
        }
        if kind != Some(CursorKind::Scan) {
            assert_eq!(refused(store.scan_all(&page).await), ErrorKind::InvalidArgument, "{page:?}");
        }
        // Of its own kind, the cursor's key is no generation.
        let result = store.revisions(tenant, function.id, &page).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
    }
    let page = PageRequest::default().after(Cursor::after(CursorKind::Scan, "no slash"));
    assert_eq!(refused(store.scan_all(&page).await), ErrorKind::InvalidArgument);
}

/// While somebody holds a lease nobody else gets it; there is none of a function that is not there.
pub async fn a_lease_has_one_holder(store: Store) {
    let tenant = tenant();
    let function = create(&store, &key(&tenant, "a")).await;
    let held = lease(&store, &function.key, LONG).await.expect("the lease is free");
    assert_eq!((&held.key, held.function), (&function.key, function.id));
    assert_eq!(lease(&store, &function.key, LONG).await, None);
    assert_eq!(lease(&store, &key(&tenant, "b"), LONG).await, None);
    let other = create(&store, &key(&tenant, "b")).await;
    assert!(lease(&store, &other.key, LONG).await.is_some());
    assert_eq!(get(&store, &function.key).await.map(|function| function.version), Some(Version::FIRST));
}

/// Of many that ask for a lease at the same time, one gets it, and its epoch is greater than that of all before.
pub async fn one_of_many_takes_a_lease(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let mut epoch = 0;
    for round in 0..10 {
        let mut race = JoinSet::new();
        for _ in 0..RACERS {
            let (store, key) = (store.clone(), key.clone());
            race.spawn(async move { store.acquire_lease(&key, LONG).await.expect("a lease is asked for") });
        }
        let mut leases: Vec<_> = race.join_all().await.into_iter().flatten().collect();
        assert_eq!(leases.len(), 1, "in round {round}");
        let lease = leases.pop().expect("there is one");
        assert!(lease.epoch > epoch);
        epoch = lease.epoch;
        store.release_lease(&lease).await.expect("the lease is given back");
    }
}

/// Once the time of a lease is over somebody else gets it, without anybody giving it back.
pub async fn a_lease_runs_out(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let first = lease(&store, &key, Duration::from_millis(5)).await.expect("the lease is free");
    let started = Instant::now();
    let second = loop {
        if let Some(lease) = lease(&store, &key, LONG).await {
            break lease;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the lease does not run out");
        tokio::task::yield_now().await;
    };
    assert!(second.epoch > first.epoch);
}

/// Prolonging sets the end of a lease anew, counted from now.
pub async fn a_lease_is_prolonged_from_now(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let held = lease(&store, &key, LONG).await.expect("the lease is free");
    store.renew_lease(&held, LONG).await.expect("the lease is prolonged");
    assert_eq!(lease(&store, &key, LONG).await, None);
    store.renew_lease(&held, Duration::ZERO).await.expect("the lease is prolonged");
    let next = lease(&store, &key, LONG).await.expect("the lease has run out");
    assert!(next.epoch > held.epoch);
}

async fn assert_writes_nothing(store: &Store, lost: &Lease) {
    let before = get(store, &lost.key).await.expect("the function is there");
    let mut status = before.status.clone();
    status.phase = Phase::Failed;
    let written = store.update_status(lost, before.version, &status).await;
    assert_eq!(refused(written), ErrorKind::Conflict);
    assert_eq!(refused(store.delete(lost, before.version).await), ErrorKind::Conflict);
    assert_eq!(refused(store.renew_lease(lost, LONG).await), ErrorKind::Conflict);
    assert_eq!(get(store, &lost.key).await, Some(before));
}

/// A lease whose time is over is lost, even where nobody else took it.
pub async fn a_lease_that_ran_out_writes_nothing(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let lost = lease(&store, &key, Duration::ZERO).await.expect("the lease is free");
    assert_writes_nothing(&store, &lost).await;
}

/// A lease that somebody else has by now is lost, and giving it back does not take it from its new holder.
pub async fn a_lease_that_was_taken_over_writes_nothing(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let lost = lease(&store, &key, Duration::ZERO).await.expect("the lease is free");
    let held = lease(&store, &key, LONG).await.expect("the lease has run out");
    assert_writes_nothing(&store, &lost).await;
    store.release_lease(&lost).await.expect("a lost lease is given back");
    assert_eq!(lease(&store, &key, LONG).await, None);
    store.renew_lease(&held, LONG).await.expect("the new holder still has it");
}

/// A lease that was given back can be taken at once, and its former holder writes nothing. Giving back twice is fine.
pub async fn a_lease_that_was_given_back_is_free(store: Store) {
    let key = create(&store, &key(&tenant(), "a")).await.key;
    let former = lease(&store, &key, LONG).await.expect("the lease is free");
    for _ in 0..2 {
        store.release_lease(&former).await.expect("the lease is given back");
    }
    assert_writes_nothing(&store, &former).await;
    assert!(lease(&store, &key, LONG).await.expect("the lease is free").epoch > former.epoch);
}

/// A status is written with a lease that holds and the version that is expected, and nothing else is changed.
pub async fn a_status_is_written_with_lease_and_version(store: Store) {
    let function = create(&store, &key(&tenant(), "a")).await;
    let held = lease(&store, &function.key, LONG).await.expect("the lease is free");
    let mut status = function.status.clone();
    status.phase = Phase::Deploying;
    status.reconcile_at = Some(Timestamp::now().plus(LONG));
    let written = store.update_status(&held, Version::FIRST, &status).await.expect("the status is written");
    let mut expected = function.clone();
    (expected.status, expected.version) = (status, Version::FIRST.next());
    assert_eq!(*written, expected);
    assert_eq!(get(&store, &function.key).await, Some(written.clone()));

    let stale = store.update_status(&held, Version::FIRST, &function.status).await;
    assert_eq!(refused(stale), ErrorKind::Conflict);
    assert_eq!(get(&store, &function.key).await, Some(written.clone()));
    let (next, revision) = successor(&written, "the lease does not keep the specification from changing");
    store.update(&next, written.version, Some(&revision)).await.expect("the function is updated");
    store.renew_lease(&held, LONG).await.expect("the lease still holds");
    delete_with(&store, &held).await;
}

async fn delete_with(store: &Store, lease: &Lease) {
    let version = get(store, &lease.key).await.expect("the function is there").version;
    store.delete(lease, version).await.expect("the function is deleted");
}

/// A deletion takes the function, its revisions and its lease away.
pub async fn a_deletion_leaves_nothing(store: Store) {
    let mut function = create(&store, &key(&tenant(), "a")).await;
    function.status.reconcile_at = Some(Timestamp::from_micros(1));
    let (next, revision) = successor(&function, "second");
    store.update(&next, Version::FIRST, Some(&revision)).await.expect("the function is updated");
    let held = lease(&store, &function.key, LONG).await.expect("the lease is free");
    delete_with(&store, &held).await;

    let (tenant, id) = (&function.key.tenant, function.id);
    assert_eq!(get(&store, &function.key).await, None);
    assert_eq!(store.find(id).await.expect("a function is looked for"), None);
    assert_eq!(names(&store, tenant, &FunctionFilter::all(), 10).await, [""; 0]);
    assert_eq!(generations(&store, &function, 10).await, [0; 0]);
    assert_eq!(store.revision(tenant, id, Generation::FIRST).await.expect("a revision is read"), None);
    let due = store.scan_due(Timestamp::from_micros(1), 1000).await.expect("due functions are read");
    assert!(!due.contains(&function.key));
    assert_eq!(refused(store.renew_lease(&held, LONG).await), ErrorKind::Conflict);
    assert_eq!(refused(store.delete(&held, Version::FIRST).await), ErrorKind::Conflict);
    store.release_lease(&held).await.expect("a lost lease is given back");
}

/// A deletion that expects another version is refused.
pub async fn a_stale_deletion_changes_nothing(store: Store) {
    let function = create(&store, &key(&tenant(), "a")).await;
    let held = lease(&store, &function.key, LONG).await.expect("the lease is free");
    let current = store.update(&function, Version::FIRST, None).await.expect("the function is updated");
    assert_eq!(refused(store.delete(&held, Version::FIRST).await), ErrorKind::Conflict);
    assert_eq!(get(&store, &function.key).await, Some(current));
    assert_eq!(generations(&store, &function, 10).await, [1]);
}

/// After a deletion the name can be used again, and a lease of the former function is of no use on the new one.
pub async fn a_name_can_be_used_again(store: Store) {
    let key = key(&tenant(), "a");
    let former = create(&store, &key).await;
    let old_lease = lease(&store, &key, LONG).await.expect("the lease is free");
    store.delete(&old_lease, Version::FIRST).await.expect("the function is deleted");
    let namesake = create(&store, &key).await;
    assert_ne!(namesake.id, former.id);
    assert_eq!(get(&store, &key).await.as_deref(), Some(&namesake));
    assert_eq!(store.find(former.id).await.expect("a function is looked for"), None);
    assert_eq!(generations(&store, &namesake, 10).await, [1]);

    let new_lease = lease(&store, &key, LONG).await.expect("the lease of a new function is free");
    assert_writes_nothing(&store, &old_lease).await;
    store.release_lease(&old_lease).await.expect("a lost lease is given back");
    store.renew_lease(&new_lease, LONG).await.expect("the new lease still holds");
}

/// A scan gives what is due by then, the longest due first, up to a limit; it follows every change of `reconcile_at`.
pub async fn the_longest_due_come_first(store: Store) {
    let tenants = [tenant(), tenant()];
    // Long ago, so that they come before whatever else a shared store holds.
    let at = |micros: i64| Some(Timestamp::from_micros(micros));
    let mut keys = Vec::new();
    for (number, due) in [at(30), at(10), None, at(20), at(40)].into_iter().enumerate() {
        let tenant = tenants.iter().cycle().nth(number).expect("it goes round");
        let (mut function, revision) = function(&key(tenant, &format!("f{number}")));
        function.status.reconcile_at = due;
        store.create(&function, &revision).await.expect("the function is created");
        keys.push(function.key);
    }
    let due = async |now: i64| -> Vec<String> {
        let due = store.scan_due(Timestamp::from_micros(now), 1000).await.expect("due functions are read");
        due.iter().filter(|key| tenants.contains(&key.tenant)).map(|key| key.name.to_string()).collect()
    };
    assert_eq!(due(9).await, [""; 0]);
    assert_eq!(due(30).await, ["f1", "f3", "f0"]);
    assert_eq!(due(1000).await, ["f1", "f3", "f0", "f4"]);
    for limit in 0..3 {
        let some = store.scan_due(Timestamp::from_micros(30), limit).await.expect("due functions are read");
        assert_eq!(some.len(), limit);
    }

    for (key, due) in keys.iter().zip([None, at(50), at(5), at(20), at(40)]) {
        let lease = lease(&store, key, LONG).await.expect("the lease is free");
        let mut status = FunctionStatus::new(Timestamp::now());
        status.reconcile_at = due;
        store.update_status(&lease, Version::FIRST, &status).await.expect("the status is written");
        store.release_lease(&lease).await.expect("the lease is given back");
    }
    assert_eq!(due(1000).await, ["f2", "f3", "f4", "f1"]);
    for key in &keys {
        delete(&store, key).await;
    }
    assert_eq!(due(1000).await, [""; 0]);
}

/// A scan reads the functions of all tenants, in the order of tenant and name, over many pages.
pub async fn a_scan_reads_all_tenants(store: Store) {
    let mut tenants = [tenant(), tenant(), tenant()];
    tenants.sort();
    let mut expected = Vec::new();
    for tenant in &tenants {
        for name in ["a", "b", "c", "d", "e"] {
            expected.push(create(&store, &key(tenant, name)).await.key);
        }
    }
    for limit in [2, 5, 1000] {
        let all = all_pages(limit, async |page| store.scan_all(&page).await.expect("a page is read")).await;
        let mine: Vec<_> =
            all.iter().map(|function| &function.key).filter(|key| tenants.contains(&key.tenant)).collect();
        assert_eq!(mine, expected.iter().collect::<Vec<_>>());
    }
}
