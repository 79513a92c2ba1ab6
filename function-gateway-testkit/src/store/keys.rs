//! What an [`ApiKeyStore`] promises.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::{
    ApiKey, ApiKeyId, ApiKeyState, ApiKeyStore, Cursor, CursorKind, ErrorKind, PageRequest, TenantId, Timestamp,
};
use tokio::task::JoinSet;

use super::{all_pages, principal, refused, tenant, valid};

type Store = Arc<dyn ApiKeyStore>;

/// How many tasks race.
const RACERS: usize = 16;

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_000 + seconds) * 1_000_000)
}

fn key(tenant: &TenantId, at: Timestamp) -> ApiKey {
    let created = (at, principal("creator"));
    ApiKey::new(ApiKeyId::generate(), tenant.clone(), principal("holder"), [7; 32], created)
}

async fn add(store: &Store, key: &ApiKey) {
    store.add_key(key).await.expect("the key is added");
}

async fn find(store: &Store, id: ApiKeyId) -> Option<Arc<ApiKey>> {
    store.find_key(id).await.expect("a key is looked for")
}

async fn list(store: &Store, tenant: &TenantId, limit: usize) -> Vec<Arc<ApiKey>> {
    all_pages(limit, async |page| store.keys(tenant, &page).await.expect("a page is read")).await
}

async fn ids(store: &Store, tenant: &TenantId, limit: usize) -> Vec<ApiKeyId> {
    list(store, tenant, limit).await.iter().map(|key| key.id).collect()
}

/// A key is read as it was added, with everything that it holds, by its id and in the list.
pub async fn a_key_reads_back_as_it_was_added(store: Store) {
    let tenant = tenant();
    let plain = key(&tenant, time(0));
    let mut full = key(&tenant, Timestamp::from_micros(time(1).as_micros() + 1));
    full.principal = principal("grüß \"dich\"'\\ %_\u{1F600} ");
    full.created_by = principal("ann");
    full.scopes = ["read", "invoke:img-*", "", "it's \"x\" \u{0} \u{1F600}"].map(str::to_owned).into();
    full.description = "for 'it' \\ \"all\"\u{0}\n\u{1F600}".to_owned();
    full.hash = std::array::from_fn(|index| u8::try_from(index * 8).unwrap_or_default());
    full.expires_at = Some(Timestamp::from_micros(i64::MAX));
    full.revoked_at = Some(Timestamp::from_micros(-1));
    for key in [&plain, &full] {
        assert_eq!(find(&store, key.id).await, None);
        add(&store, key).await;
        assert_eq!(find(&store, key.id).await.as_deref(), Some(key));
    }
    let listed = list(&store, &tenant, 10).await;
    assert_eq!(listed.iter().map(|key| &**key).collect::<Vec<_>>(), [&full, &plain]);
}

/// The second key of an id is refused and changes nothing, in the same tenant and in another.
pub async fn an_id_is_of_one_key_in_all_tenants(store: Store) {
    let (mine, foreign) = (tenant(), tenant());
    let first = key(&mine, time(0));
    add(&store, &first).await;
    for tenant in [&mine, &foreign] {
        let mut second = key(tenant, time(1));
        (second.id, second.hash) = (first.id, [8; 32]);
        assert_eq!(refused(store.add_key(&second).await), ErrorKind::AlreadyExists);
    }
    assert_eq!(find(&store, first.id).await.as_deref(), Some(&first));
    assert_eq!(ids(&store, &mine, 10).await, [first.id]);
    assert_eq!(ids(&store, &foreign, 10).await, []);
}

/// A list goes by `created_at` and then by id, newest first, whatever the size of its pages, and revoked keys stay in it.
pub async fn keys_are_listed_newest_first(store: Store) {
    let tenant = tenant();
    let mut expected = Vec::new();
    for second in 0..6_u8 {
        // The later, the smaller the id; two at each time.
        for number in [1, 2] {
            let mut key = key(&tenant, time(second.into()));
            let mut id = *key.id.as_bytes();
            id.rotate_left(8);
            let [first, ..] = &mut id;
            *first = 0xf0 - second * 16 + number;
            key.id = ApiKeyId::from_bytes(id);
            expected.push(key);
        }
    }
    for key in &expected {
        add(&store, key).await;
    }
    for key in expected.iter().step_by(3) {
        store.revoke_key(&tenant, key.id, time(100)).await.expect("the key is revoked");
    }
    let newest_first: Vec<_> = expected.iter().rev().map(|key| key.id).collect();
    for limit in [1, 5, 12, 1000] {
        assert_eq!(ids(&store, &tenant, limit).await, newest_first);
    }
    let exact = store.keys(&tenant, &PageRequest::first(12)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (12, None));
}

/// While a list is read page by page and keys are added and revoked, those that were there at first appear once each, and
/// none appears twice.
pub async fn a_list_of_keys_stays_whole_while_more_are_added(store: Store) {
    let tenant = tenant();
    let mut first = Vec::new();
    for second in 0..20 {
        let key = key(&tenant, time(second));
        add(&store, &key).await;
        first.push(key.id);
    }
    let mut added = 0;
    let seen = all_pages(3, async |page| {
        let page = store.keys(&tenant, &page).await.expect("a page is read");
        added += 1;
        add(&store, &key(&tenant, time(100 + added))).await;
        add(&store, &key(&tenant, time(20 - added))).await;
        let revoked = first.get(usize::try_from(added).unwrap_or_default()).copied().expect("there is one");
        store.revoke_key(&tenant, revoked, time(200)).await.expect("the key is revoked");
        page
    });
    let seen: Vec<_> = seen.await.iter().map(|key| key.id).collect();
    let once: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "a key appears twice");
    assert!(first.iter().all(|id| once.contains(id)), "a key is lost");
}

/// What serves a caller gives nothing of another tenant's, and revokes nothing of it.
pub async fn tenants_do_not_see_each_others_keys(store: Store) {
    let (mine, foreign) = (tenant(), tenant());
    let key = key(&mine, time(0));
    add(&store, &key).await;
    let upper = valid(TenantId::new(mine.as_str().to_uppercase()));
    for tenant in [&foreign, &upper] {
        assert_eq!(ids(&store, tenant, 10).await, []);
        assert_eq!(refused(store.revoke_key(tenant, key.id, time(1)).await), ErrorKind::NotFound);
    }
    assert_eq!(find(&store, key.id).await.as_deref(), Some(&key));
}

/// A revoked key is read as revoked; revoking it again changes nothing, whatever the time.
pub async fn a_revocation_keeps_its_first_time(store: Store) {
    let tenant = tenant();
    let mut key = key(&tenant, time(0));
    key.expires_at = Some(time(1000));
    add(&store, &key).await;
    key.revoked_at = Some(time(10));
    for at in [time(10), time(11), time(9)] {
        let revoked = store.revoke_key(&tenant, key.id, at).await.expect("the key is revoked");
        assert_eq!(*revoked, key);
        assert_eq!(find(&store, key.id).await.as_deref(), Some(&key));
        assert_eq!(list(&store, &tenant, 10).await, [Arc::new(key.clone())]);
    }
    assert_eq!(key.state(time(0)), ApiKeyState::Revoked);
}

/// Of many that revoke a key at the same time, one sets the time, and all are told that.
pub async fn one_of_many_racing_revocations_wins(store: Store) {
    let tenant = tenant();
    for round in 0..5 {
        let key = key(&tenant, time(round));
        add(&store, &key).await;
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let (store, tenant) = (store.clone(), tenant.clone());
            let at = time(100).plus(Duration::from_secs(u64::try_from(racer).unwrap_or_default()));
            race.spawn(async move { store.revoke_key(&tenant, key.id, at).await.expect("the key is revoked") });
        }
        let told: BTreeSet<_> = race.join_all().await.iter().map(|key| key.revoked_at).collect();
        let kept = find(&store, key.id).await.expect("the key is there").revoked_at;
        assert_eq!(told, BTreeSet::from([kept]), "in round {round}");
        assert!(kept.is_some());
    }
}

/// A key that is not there can't be revoked, and is not there afterwards.
pub async fn a_revocation_of_nothing_is_refused(store: Store) {
    let (tenant, id) = (tenant(), ApiKeyId::generate());
    assert_eq!(refused(store.revoke_key(&tenant, id, time(0)).await), ErrorKind::NotFound);
    assert_eq!(find(&store, id).await, None);
}

/// Keys that are added at the same time are all there.
pub async fn many_keys_are_added_at_once(store: Store) {
    let tenant = tenant();
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        let (store, tenant) = (store.clone(), tenant.clone());
        race.spawn(async move {
            let key = key(&tenant, time(i64::try_from(racer % 4).unwrap_or_default()));
            add(&store, &key).await;
            key.id
        });
    }
    let expected: BTreeSet<_> = race.join_all().await.into_iter().collect();
    let seen = ids(&store, &tenant, 5).await;
    assert_eq!(seen.len(), expected.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_give_no_keys(store: Store) {
    let key = key(&tenant(), time(0));
    add(&store, &key).await;
    let kinds = super::CURSORS.map(|kind| Cursor::after(kind, "neither time nor id"));
    let audit = Cursor::after(CursorKind::Audit, &format!("0/{}", key.id));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(Cursor::from_text);
    for cursor in kinds.into_iter().chain([audit]).chain(garbage) {
        let page = PageRequest::default().after(cursor);
        assert_eq!(refused(store.keys(&key.tenant, &page).await), ErrorKind::InvalidArgument, "{page:?}");
    }
}
