//! What a [`DocumentStore`] promises.

use std::collections::BTreeSet;
use std::sync::Arc;

use function_gateway_core::{
    Cursor, CursorKind, DocumentStore, ErrorKind, PageRequest, StoredDocument, TenantId, Version,
};
use tokio::task::JoinSet;

use super::{all_pages, refused, tenant, valid};

type Store = Arc<dyn DocumentStore>;

/// How many tasks race.
const RACERS: usize = 16;
/// A text that a store mixes up where it can.
const NASTY: &str = "grüß \"dich\"'\\ %_?$1\n\u{1F600} ";

async fn add(store: &Store, document: &StoredDocument) -> StoredDocument {
    store.put_document(document, None).await.expect("the document is added")
}

async fn get(store: &Store, document: &StoredDocument) -> Option<StoredDocument> {
    read(store, &document.tenant, &document.kind, &document.name).await
}

async fn read(store: &Store, tenant: &TenantId, kind: &str, name: &str) -> Option<StoredDocument> {
    store.document(tenant, kind, name).await.expect("a document is read")
}

async fn list(store: &Store, tenant: &TenantId, kind: &str, limit: usize) -> Vec<StoredDocument> {
    all_pages(limit, async |page| store.documents(tenant, kind, &page).await.expect("a page is read")).await
}

async fn names(store: &Store, tenant: &TenantId, kind: &str, limit: usize) -> Vec<String> {
    list(store, tenant, kind, limit).await.into_iter().map(|document| document.name).collect()
}

async fn delete(store: &Store, document: &StoredDocument, expected: Option<Version>) {
    let StoredDocument { tenant, kind, name, .. } = document;
    store.delete_document(tenant, kind, name, expected).await.expect("the document is deleted");
}

/// A document is read as it was added, with its first version, by its name and in the list, whatever it is named and holds.
pub async fn a_document_reads_back_as_it_was_added(store: Store) {
    let tenant = tenant();
    let long =
        [StoredDocument::MAX_KIND, StoredDocument::MAX_NAME, StoredDocument::MAX_CONTENT].map(|len| "x".repeat(len));
    let [longest_kind, longest_name, longest_content] = long;
    let documents = [
        StoredDocument::new(tenant.clone(), "subscription", "plain", r#"{"a": 1}"#),
        StoredDocument::new(tenant.clone(), NASTY, NASTY, NASTY),
        StoredDocument::new(tenant.clone(), "subscription", "empty", ""),
        StoredDocument::new(tenant.clone(), "", "", "nameless"),
        StoredDocument::new(tenant.clone(), "subscription", "ä".repeat(StoredDocument::MAX_NAME / 2), ""),
        StoredDocument::new(tenant.clone(), longest_kind, longest_name, longest_content),
    ];
    for document in &documents {
        assert_eq!(get(&store, document).await, None);
        assert_eq!(add(&store, document).await, *document);
        assert_eq!(get(&store, document).await.as_ref(), Some(document));
        let listed = list(&store, &tenant, &document.kind, 10).await;
        assert!(listed.contains(document), "it is not listed");
    }
}

/// A name is taken once among those of its kind and tenant; the document that has it stays as it is.
pub async fn a_name_is_of_one_document(store: Store) {
    let first = StoredDocument::new(tenant(), "kind", "name", "first");
    add(&store, &first).await;
    let second = StoredDocument::new(first.tenant.clone(), "kind", "name", "second");
    assert_eq!(refused(store.put_document(&second, None).await), ErrorKind::AlreadyExists);
    assert_eq!(get(&store, &first).await, Some(first.clone()));
    let others = [
        StoredDocument::new(first.tenant.clone(), "kind", "other", "second"),
        StoredDocument::new(first.tenant.clone(), "other", "name", "second"),
        StoredDocument::new(tenant(), "kind", "name", "second"),
    ];
    for other in &others {
        add(&store, other).await;
    }
    for document in [&first].into_iter().chain(&others) {
        assert_eq!(get(&store, document).await.as_ref(), Some(document));
    }
}

/// Kinds and names that differ in case, blanks or accents are different.
pub async fn names_that_differ_a_little_are_different(store: Store) {
    let tenant = tenant();
    let texts = ["name", "Name", "NAME", "name ", " name", "náme", "ńame", "name\n"];
    for kind in texts {
        for name in texts {
            add(&store, &StoredDocument::new(tenant.clone(), kind, name, format!("{kind}/{name}"))).await;
        }
    }
    for kind in texts {
        assert_eq!(list(&store, &tenant, kind, 3).await.len(), texts.len());
        for name in texts {
            let content = read(&store, &tenant, kind, name).await.map(|document| document.content);
            assert_eq!(content, Some(format!("{kind}/{name}")));
        }
    }
}

/// Each replacement gives the next version, and what is read is the last one.
pub async fn a_replacement_gives_the_next_version(store: Store) {
    let mut document = StoredDocument::new(tenant(), "kind", "name", "1");
    add(&store, &document).await;
    for content in ["2", "2", "3", ""] {
        let expected = document.version;
        document.content = content.to_owned();
        let replaced = store.put_document(&document, Some(expected)).await.expect("the document is replaced");
        document.version = expected.next();
        assert_eq!(replaced, document);
        assert_eq!(get(&store, &document).await.as_ref(), Some(&document));
    }
    assert_eq!(list(&store, &document.tenant, "kind", 10).await, [document]);
}

/// A replacement of another version than the one that there is changes nothing, and one of nothing is refused.
pub async fn a_stale_replacement_changes_nothing(store: Store) {
    let first = StoredDocument::new(tenant(), "kind", "name", "1");
    add(&store, &first).await;
    let mut second = StoredDocument::new(first.tenant.clone(), "kind", "name", "2");
    second = store.put_document(&second, Some(Version::FIRST)).await.expect("the document is replaced");
    for version in [Version::FIRST, second.version.next(), Version::new(0)] {
        assert_eq!(refused(store.put_document(&first, Some(version)).await), ErrorKind::Conflict);
    }
    assert_eq!(get(&store, &first).await.as_ref(), Some(&second));
    let nothing = StoredDocument::new(first.tenant.clone(), "kind", "other", "2");
    assert_eq!(refused(store.put_document(&nothing, Some(Version::FIRST)).await), ErrorKind::NotFound);
    assert_eq!(get(&store, &nothing).await, None);
}

/// Of many that replace one version at the same time, one does, and of many that add one name.
pub async fn one_of_many_racing_writes_wins(store: Store) {
    let tenant = tenant();
    for expected in [None, Some(Version::FIRST), Some(Version::FIRST.next())] {
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let (store, content) = (store.clone(), racer.to_string());
            let document = StoredDocument::new(tenant.clone(), "kind", "name", content);
            race.spawn(async move { store.put_document(&document, expected).await });
        }
        let mut winners = Vec::new();
        for result in race.join_all().await {
            match (result, expected) {
                (Ok(document), _) => winners.push(document),
                (Err(error), None) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
                (Err(error), Some(_)) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
        }
        let kept = read(&store, &tenant, "kind", "name").await.expect("the document is there");
        assert_eq!(winners, [kept]);
    }
}

/// A list goes by name, as bytes, over pages of any size, and holds nothing of another kind or tenant.
pub async fn documents_are_listed_by_name(store: Store) {
    let (mine, foreign) = (tenant(), tenant());
    let mut expected = vec!["", "B", "a", "a b", "a-b", "a/b", "aa", "b", "z", "ä", "\u{1F600}"];
    for name in expected.iter().rev() {
        add(&store, &StoredDocument::new(mine.clone(), "kind", *name, *name)).await;
    }
    add(&store, &StoredDocument::new(mine.clone(), "Kind", "other", "")).await;
    add(&store, &StoredDocument::new(foreign.clone(), "kind", "foreign", "")).await;
    expected.sort_unstable();
    for limit in [1, 4, 11, 1000] {
        assert_eq!(names(&store, &mine, "kind", limit).await, expected);
    }
    let exact = store.documents(&mine, "kind", &PageRequest::first(11)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (11, None));
    assert_eq!(names(&store, &foreign, "kind", 10).await, ["foreign"]);
    assert_eq!(names(&store, &mine, "none", 10).await, Vec::<String>::new());
}

/// While a list is read page by page and documents come and go, those that stay appear once each.
pub async fn a_list_of_documents_stays_whole_while_they_come_and_go(store: Store) {
    let tenant = tenant();
    let document = |name: String| StoredDocument::new(tenant.clone(), "kind", name, "");
    for number in 0..20 {
        add(&store, &document(format!("{number:02}"))).await;
    }
    let mut turn = 0;
    let seen = all_pages(3, async |page| {
        let page = store.documents(&tenant, "kind", &page).await.expect("a page is read");
        turn += 1;
        add(&store, &document(format!("{turn:02}-more"))).await;
        add(&store, &document(format!("{:02}-more", 20 - turn))).await;
        delete(&store, &document(format!("{:02}", turn * 2)), None).await;
        page
    });
    let seen: Vec<_> = seen.await.into_iter().map(|document| document.name).collect();
    let once: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "a document appears twice");
    let stay = (0..20).filter(|number| number % 2 == 1);
    assert!(stay.map(|number| format!("{number:02}")).all(|name| once.contains(&name)), "a document is lost");
}

/// What serves a tenant gives nothing of another's, and changes nothing of it.
pub async fn tenants_do_not_see_each_others_documents(store: Store) {
    let document = StoredDocument::new(tenant(), "kind", "name", "content");
    add(&store, &document).await;
    let upper = valid(TenantId::new(document.tenant.as_str().to_uppercase()));
    for foreign in [tenant(), upper] {
        assert_eq!(read(&store, &foreign, "kind", "name").await, None);
        assert_eq!(list(&store, &foreign, "kind", 10).await, []);
        let mut theirs = document.clone();
        theirs.tenant = foreign.clone();
        assert_eq!(refused(store.put_document(&theirs, Some(Version::FIRST)).await), ErrorKind::NotFound);
        assert_eq!(refused(store.delete_document(&foreign, "kind", "name", None).await), ErrorKind::NotFound);
    }
    assert_eq!(get(&store, &document).await, Some(document));
}

/// A document goes by its name alone, or by its version as well; one of another version stays. Its name is free again.
pub async fn a_deleted_document_is_gone(store: Store) {
    let document = StoredDocument::new(tenant(), "kind", "name", "content");
    let StoredDocument { tenant, .. } = &document;
    for expected in [None, Some(Version::FIRST.next())] {
        assert_eq!(add(&store, &document).await, document, "it begins with the first version");
        store.put_document(&document, Some(Version::FIRST)).await.expect("the document is replaced");
        for stale in [Version::FIRST, Version::new(3)] {
            let result = store.delete_document(tenant, "kind", "name", Some(stale)).await;
            assert_eq!(refused(result), ErrorKind::Conflict);
        }
        assert!(get(&store, &document).await.is_some());
        delete(&store, &document, expected).await;
        assert_eq!(get(&store, &document).await, None);
        assert_eq!(list(&store, tenant, "kind", 10).await, []);
        for expected in [None, Some(Version::FIRST)] {
            let result = store.delete_document(tenant, "kind", "name", expected).await;
            assert_eq!(refused(result), ErrorKind::NotFound);
        }
    }
}

/// Texts that are too long, or that not every database takes, are refused.
pub async fn texts_of_documents_are_checked(store: Store) {
    let tenant = tenant();
    let text = |len: usize| "x".repeat(len);
    let cases = [
        StoredDocument::new(tenant.clone(), text(StoredDocument::MAX_KIND + 1), "name", ""),
        StoredDocument::new(tenant.clone(), "kind", text(StoredDocument::MAX_NAME + 1), ""),
        StoredDocument::new(tenant.clone(), "kind", "name", text(StoredDocument::MAX_CONTENT + 1)),
        StoredDocument::new(tenant.clone(), "a\0b", "name", ""),
        StoredDocument::new(tenant.clone(), "kind", "\0", ""),
        StoredDocument::new(tenant.clone(), "kind", "name", "\0"),
    ];
    for document in &cases {
        for expected in [None, Some(Version::FIRST)] {
            let result = store.put_document(document, expected).await;
            assert_eq!(refused(result), ErrorKind::InvalidArgument);
        }
    }
    assert_eq!(list(&store, &tenant, "kind", 10).await, []);
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_give_no_documents(store: Store) {
    let document = StoredDocument::new(tenant(), "kind", "name", "content");
    add(&store, &document).await;
    let others = super::CURSORS.into_iter().filter(|kind| *kind != CursorKind::Documents);
    let kinds = others.map(|kind| Cursor::after(kind, "name"));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(Cursor::from_text);
    for cursor in kinds.chain(garbage) {
        let page = PageRequest::default().after(cursor);
        let result = store.documents(&document.tenant, "kind", &page).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
    }
}
