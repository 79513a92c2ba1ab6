//! What a database can do to a store.

use std::time::{Duration, Instant};

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    ApiKeyStore, AuditFilter, AuditLog, Durability, Error, ErrorKind, FunctionFilter, FunctionStore, InvocationStore,
    PageRequest, RecordFilter, Retention, Retry, Timestamp,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::common::{Database, ended, event, function, key, open, options, tenant};

async fn refused(url: &str) -> Error {
    let options = options().with_operation_timeout(Duration::from_millis(500));
    SqlStore::connect(url, options).await.unwrap_err()
}

#[tokio::test]
async fn a_url_that_cant_be_used_says_what_is_wrong_and_shows_no_password() {
    for (url, kind, says) in [
        ("", ErrorKind::InvalidArgument, "sqlite:, postgres:// or mysql://, not with \"\""),
        ("oracle://ann:hunter2@db/x", ErrorKind::InvalidArgument, "not with \"oracle\""),
        ("host=db password=hunter2 options=a:b", ErrorKind::InvalidArgument, "begins with its engine"),
        ("postgres://ann@db/x?sslpassword=hunter2", ErrorKind::InvalidArgument, "\"sslpassword\", which is not known"),
        ("mysql://ann@db/x?ssl_mode=VERIFY_CA", ErrorKind::InvalidArgument, "\"ssl_mode\", which is not known"),
        ("gateway.db", ErrorKind::InvalidArgument, "not with \"\""),
        ("postgres://ann:hunter2@[x/y", ErrorKind::InvalidArgument, "can't be read"),
        ("mysql://ann:hunter2@db:port/y", ErrorKind::InvalidArgument, "can't be read"),
        ("sqlite:", ErrorKind::InvalidArgument, "the path of a file"),
        ("sqlite://gateway.db?mode=ro", ErrorKind::InvalidArgument, "without parameters"),
        ("sqlite:/no/such/folder/gateway.db", ErrorKind::Misconfigured, "its folder"),
    ] {
        let error = refused(url).await;
        assert_eq!(error.kind(), kind, "{url}: {error:?}");
        assert!(error.message().contains(says), "{url}: {error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_in_time() {
    for scheme in ["postgres", "mysql"] {
        let began = Instant::now();
        let error = refused(&format!("{scheme}://ann:hunter2@127.0.0.1:1/x")).await;
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Transient), "{error:?}");
        assert!(error.message().contains("can't be reached"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(60), "{scheme}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "not a database\n".repeat(1000)).unwrap();
    let error = refused(&format!("sqlite:{}", path.display())).await;
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error:?}");
    assert!(error.message().contains("no database"), "{error}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"), "it is left as it is");
}

pub(crate) async fn who_may_not_gets_an_error_without_the_password(database: Database) {
    let url = database.url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, host) = rest.rsplit_once('@').unwrap();
    let stranger = refused(&format!("{scheme}://stranger:hunter2@{host}")).await;
    let elsewhere = refused(&url.replacen("/fg_", "/no_such_", 1)).await;
    for error in [stranger, elsewhere] {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Misconfigured, Retry::Never), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

/// What a server of PostgreSQL says to a wrong password (52.2.1 and 52.7 of its manual, with a password in clear text). Gives what
/// the client has sent as one.
async fn refuse_password(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    // Its length stands first.
    let startup = stream.read_u32().await.unwrap();
    stream.read_exact(&mut vec![0; startup as usize - 4]).await.unwrap();
    stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'p');
    let mut password = vec![0; stream.read_u32().await.unwrap() as usize - 4];
    stream.read_exact(&mut password).await.unwrap();
    let fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"ann\"\0\0";
    stream.write_all(b"E").await.unwrap();
    stream.write_u32(fields.len() as u32 + 4).await.unwrap();
    stream.write_all(fields).await.unwrap();
    String::from_utf8(password).unwrap()
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_shown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://ann:hunter2@{}/x?sslmode=disable", listener.local_addr().unwrap());
    let (error, sent) = futures_util::future::join(refused(&url), refuse_password(listener)).await;
    assert_eq!(sent, "hunter2\0");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Misconfigured, Retry::Never), "{error:?}");
    assert!(error.message().contains("check user, password"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

/// A server that answers a commit before it is on the disk does not do so to a store.
pub(crate) async fn commits_are_on_the_disk_whatever_the_database_says(database: Database) {
    let Database::Postgres { name, .. } = &database else { unreachable!("others are asked when they are opened") };
    database.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let store = open(&database, options()).await;
    let script = "CREATE TABLE seen (setting TEXT);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;
         CREATE TRIGGER see BEFORE INSERT ON fg_invocations FOR EACH ROW EXECUTE FUNCTION see();";
    database.execute(script).await;
    store.finish(ended(&function("a").1), Durability::Durable).await.unwrap();
    assert_eq!(database.number("SELECT COUNT(*) FROM seen WHERE setting = 'on'").await, 1);
    assert_eq!(database.number("SELECT COUNT(*) FROM seen").await, 1);
}

pub(crate) async fn a_row_that_cant_be_read_breaks_no_list(database: Database) {
    let store = open(&database, options()).await;
    let mut records = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let (function, revision) = function(name);
        store.create(&function, &revision).await.unwrap();
        records.push(ended(&revision));
        store.finish(records.last().unwrap().clone(), Durability::Durable).await.unwrap();
    }
    database.execute("UPDATE fg_functions SET spec = '{' WHERE name = 'b'").await;
    database.execute("UPDATE fg_functions SET format = 99 WHERE name = 'c'").await;
    database.execute("UPDATE fg_revisions SET document = '[]'").await;
    database.execute("UPDATE fg_invocations SET document = '{}' WHERE name = 'b'").await;
    let tenant = tenant();

    let filter = FunctionFilter::all();
    for limit in [1, 2, 10] {
        let (mut names, mut unreadable) = (Vec::new(), Vec::new());
        let mut request = PageRequest::first(limit);
        loop {
            let page = FunctionStore::list(&store, &tenant, &filter, &request).await.unwrap();
            names.extend(page.items.iter().map(|function| function.key.name.to_string()));
            unreadable.extend(page.unreadable);
            let Some(next) = page.next else { break };
            request = PageRequest::first(limit).after(next);
        }
        assert_eq!(names, ["a", "d"]);
        assert_eq!(unreadable.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["b", "c"]);
        assert!(unreadable[1].reason.contains("format 99"), "{unreadable:?}");
    }
    assert_eq!(store.scan_all(&PageRequest::default()).await.unwrap().unreadable.len(), 2);

    let key = function("b").0.key;
    let error = FunctionStore::get(&store, &key).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never), "{error:?}");
    let id = records[0].function;
    assert_eq!(store.revisions(&tenant, id, &PageRequest::default()).await.unwrap().unreadable.len(), 1);

    let page = InvocationStore::list(&store, &tenant, &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(page.items.iter().map(|record| record.id).collect::<Vec<_>>(), [3, 2, 0].map(|at| records[at].id));
    assert_eq!(page.unreadable[0].id, records[1].id.to_string());
    assert_eq!(InvocationStore::get(&store, &tenant, records[1].id).await.unwrap_err().kind(), ErrorKind::Store);
    a_key_or_event_that_cant_be_read_breaks_no_list(&database, &store).await;
}

async fn a_key_or_event_that_cant_be_read_breaks_no_list(database: &Database, store: &SqlStore) {
    let (mut keys, mut events) = (Vec::new(), Vec::new());
    for second in 0..4 {
        let at = Timestamp::from_micros(second * 1_000_000);
        keys.push(key(at));
        store.add_key(&keys[keys.len() - 1]).await.unwrap();
        events.push(event(at));
        store.append(events[events.len() - 1].clone()).await.unwrap();
    }
    let short = if matches!(database, Database::Postgres { .. }) { "'\\xab'" } else { "x'ab'" };
    database.execute(&format!("UPDATE fg_api_keys SET hash = {short} WHERE created_at = 1000000")).await;
    database.execute("UPDATE fg_api_keys SET format = 99 WHERE created_at = 2000000").await;
    database.execute("UPDATE fg_audit SET document = '{}' WHERE created_at = 1000000").await;
    let later =
        "UPDATE fg_audit SET document = REPLACE(document, '\"update\"', '\"later\"') WHERE created_at = 2000000";
    database.execute(later).await;
    let tenant = tenant();

    for limit in [1, 2, 10] {
        let mut request = PageRequest::first(limit);
        let (mut seen, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let page = store.keys(&tenant, &request).await.unwrap();
            seen.extend(page.items.iter().map(|key| key.id));
            unreadable.extend(page.unreadable);
            let Some(next) = page.next else { break };
            request = PageRequest::first(limit).after(next);
        }
        assert_eq!(seen, [keys[3].id, keys[0].id]);
        assert_eq!(unreadable.iter().map(|row| &*row.id).collect::<Vec<_>>(), [2, 1].map(|at| keys[at].id.to_string()));
        assert!(
            unreadable[0].reason.contains("format 99") && unreadable[1].reason.contains("no hash"),
            "{unreadable:?}"
        );

        let mut request = PageRequest::first(limit);
        let (mut seen, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let page = AuditLog::list(store, &tenant, &AuditFilter::all(), &request).await.unwrap();
            seen.extend(page.items.iter().map(|event| event.id));
            unreadable.extend(page.unreadable);
            let Some(next) = page.next else { break };
            request = PageRequest::first(limit).after(next);
        }
        assert_eq!(seen, [events[3].id, events[0].id]);
        assert_eq!(
            unreadable.iter().map(|row| &*row.id).collect::<Vec<_>>(),
            [2, 1].map(|at| events[at].id.to_string())
        );
    }
    // Nobody is let in by what can't be read.
    for key in &keys[1..3] {
        let error = store.find_key(key.id).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never), "{error:?}");
    }
    // What can't be read gets old too.
    let retention = Retention::keep_all().with_max_audit_age(Duration::ZERO);
    let deleted = AuditLog::retain(store, &retention, Timestamp::now(), 100).await.unwrap();
    assert_eq!(deleted, 4);
}

/// Makes the database fail when a revision is added, as often as is said.
async fn fail(database: &Database, code: &str, times: u32) {
    match database {
        Database::Sqlite(_) => unreachable!("it can't raise errors of its own"),
        Database::Postgres { .. } => {
            // A sequence goes on although the transaction is undone.
            let script = format!(
                "DROP SEQUENCE IF EXISTS failures CASCADE; CREATE SEQUENCE failures;
                 CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     IF nextval('failures') <= {times} THEN
                         RAISE EXCEPTION 'a failure with hunter2' USING ERRCODE = '{code}';
                     END IF;
                     RETURN NEW;
                 END $$;
                 DROP TRIGGER IF EXISTS fail ON fg_revisions;
                 CREATE TRIGGER fail BEFORE INSERT ON fg_revisions FOR EACH ROW EXECUTE FUNCTION fail();"
            );
            database.execute(&script).await;
        }
        Database::Mysql { .. } => {
            // So does a table that knows no transactions.
            database.execute("DROP TRIGGER IF EXISTS fail").await;
            database.execute("CREATE TABLE IF NOT EXISTS failures (count INT) ENGINE = MyISAM").await;
            database.execute("DELETE FROM failures").await;
            database.execute("INSERT INTO failures VALUES (0)").await;
            let script = format!(
                "CREATE TRIGGER fail BEFORE INSERT ON fg_revisions FOR EACH ROW
                 BEGIN
                     UPDATE failures SET count = count + 1;
                     IF (SELECT count FROM failures) <= {times} THEN
                         SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'a failure with hunter2';
                     END IF;
                 END"
            );
            database.execute(&script).await;
        }
    }
}

pub(crate) async fn failures_of_the_database_are_typed_and_repeated_where_that_is_safe(database: Database) {
    let store = open(&database, options()).await;
    // Serialization failure, deadlock, lock timeout; and a server that is about to stop.
    let (passing, lasting): (&[_], &[_]) = match &database {
        Database::Mysql { .. } => (
            &["1205", "1213", "1053"],
            &[
                ("1021", ErrorKind::Store, Retry::Transient, "no room"),
                ("1290", ErrorKind::Store, Retry::Never, "only be read"),
                ("1142", ErrorKind::Misconfigured, Retry::Never, "rights"),
                ("1146", ErrorKind::Misconfigured, Retry::Never, "lacks a table"),
                ("1406", ErrorKind::InvalidArgument, Retry::Never, "does not take a value"),
                ("1048", ErrorKind::Store, Retry::Never, "a constraint forbids it"),
                ("4025", ErrorKind::Store, Retry::Never, "a constraint forbids it"),
                ("1969", ErrorKind::Store, Retry::Transient, "did not answer in time"),
                ("1105", ErrorKind::Store, Retry::Never, "failed"),
            ],
        ),
        _ => (
            &["40001", "40P01", "55P03", "57P01"],
            &[
                ("53100", ErrorKind::Store, Retry::Transient, "no room"),
                ("25006", ErrorKind::Store, Retry::Never, "only be read"),
                ("42501", ErrorKind::Misconfigured, Retry::Never, "rights"),
                ("42P01", ErrorKind::Misconfigured, Retry::Never, "lacks a table"),
                ("22001", ErrorKind::InvalidArgument, Retry::Never, "does not take a value"),
                ("23502", ErrorKind::Store, Retry::Never, "a constraint forbids it"),
                ("23514", ErrorKind::Store, Retry::Never, "a constraint forbids it"),
                ("57014", ErrorKind::Store, Retry::Transient, "did not answer in time"),
                ("XX000", ErrorKind::Store, Retry::Never, "failed"),
            ],
        ),
    };
    for (number, code) in passing.iter().enumerate() {
        fail(&database, code, 3).await;
        let (function, revision) = function(&format!("passes-{number}"));
        store.create(&function, &revision).await.unwrap_or_else(|error| panic!("{code}: {error:?}"));
        assert_eq!(FunctionStore::get(&store, &function.key).await.unwrap().as_deref(), Some(&function));
    }
    for (number, (code, kind, retry, says)) in lasting.iter().enumerate() {
        fail(&database, code, u32::MAX >> 1).await;
        let (function, revision) = function(&format!("lasts-{number}"));
        let error = store.create(&function, &revision).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (*kind, *retry), "{code}: {error:?}");
        assert!(error.message().contains(says), "{code}: {error}");
        assert!(!error.to_string().contains("hunter2"), "what the database says is no public message");
        assert_eq!(FunctionStore::get(&store, &function.key).await.unwrap(), None, "nothing of it is kept");
    }
}

pub(crate) async fn a_pool_that_is_exhausted_says_so_and_recovers(database: Database) {
    let options = options().with_max_connections(2).with_operation_timeout(Duration::from_millis(500));
    let store = open(&database, options).await;
    let (function, revision) = function("a");
    store.create(&function, &revision).await.unwrap();
    let lock = database.lock().await;
    let calls = (0..6).map(|_| FunctionStore::get(&store, &function.key));
    let errors: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap_err).collect();
    for error in &errors {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Transient), "{error:?}");
    }
    assert!(errors.iter().any(|error| error.message().contains("max_connections")), "{errors:?}");
    // Those that have a connection wait for the lock; the server may be the one who ends that.
    let waited =
        |error: &Error| error.message().contains("operation_timeout") || error.message().contains("lock timeout");
    assert!(errors.iter().any(waited), "{errors:?}");
    lock.release().await;
    assert_eq!(FunctionStore::get(&store, &function.key).await.unwrap().as_deref(), Some(&function));
}

#[tokio::test]
async fn a_change_waits_for_another_process_and_fails_in_time_if_that_does_not_end() {
    let database = Database::sqlite();
    let options = options().with_operation_timeout(Duration::from_millis(300));
    let store = open(&database, options).await;
    let (function, revision) = function("a");
    let lock = database.lock().await;
    let error = store.create(&function, &revision).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Transient), "{error:?}");
    lock.release().await;
    store.create(&function, &revision).await.unwrap();
}
