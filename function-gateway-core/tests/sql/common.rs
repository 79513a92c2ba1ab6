//! A database for each test, gone after it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::store::sql::{SqlStore, SqlStoreOptions};
use function_gateway_core::{
    Acceptance, Action, ApiKey, ApiKeyId, AuditEvent, CallContext, DriverRef, Function, FunctionId, FunctionKey,
    FunctionSpec, Generation, InvocationId, InvocationRecord, InvocationState, InvokeRequest, Principal,
    ProcessWorkload, Revision, RevisionReason, StoredRequest, Submission, TenantId, Timestamp,
};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, MySqlConnection, PgConnection, Row as _, SqliteConnection};

/// Name servers on which a test may make databases; `cargo xtask test` starts some where they are not set.
const POSTGRES: &str = "FUNCTION_GATEWAY_TEST_POSTGRES_URL";
const MYSQL: &str = "FUNCTION_GATEWAY_TEST_MYSQL_URL";

thread_local! {
    /// What goes when the test does, which has a thread of its own.
    static DATABASES: RefCell<Vec<Database>> = const { RefCell::new(Vec::new()) };
}

/// A database of a test.
#[derive(Debug)]
pub(crate) enum Database {
    Sqlite(tempfile::TempDir),
    Postgres { server: String, name: String },
    Mysql { server: String, name: String },
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub(crate) async fn postgres() -> Self {
        Self::postgres_on(variable(POSTGRES)).await
    }

    pub(crate) async fn postgres_on(server: String) -> Self {
        let name = name();
        execute_on(&server, &format!("CREATE DATABASE {name}")).await.unwrap();
        Self::Postgres { server, name }
    }

    pub(crate) async fn mysql() -> Self {
        let (server, name) = (variable(MYSQL), name());
        execute_on(&server, &format!("CREATE DATABASE {name}")).await.unwrap();
        Self::Mysql { server, name }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("gateway.db").display()),
            Self::Postgres { server, name } | Self::Mysql { server, name } => {
                let (server, query) = server.split_once('?').unwrap_or((server, ""));
                let (host, _) = server.rsplit_once('/').unwrap();
                format!("{host}/{name}?{query}")
            }
        }
    }

    /// Does something that the store knows nothing of.
    pub(crate) async fn execute(&self, statement: &str) {
        execute_on(&self.url(), statement).await.unwrap();
    }

    /// Changes rows in one transaction while others change them too, which may end it: then again.
    pub(crate) async fn change(&self, statements: &str) {
        let begin = if matches!(self, Self::Sqlite(_)) { "BEGIN IMMEDIATE" } else { "BEGIN" };
        let transaction = format!("{begin}; {statements}; COMMIT");
        let mut result = Ok(());
        for _ in 0..100 {
            result = execute_on(&self.url(), &transaction).await;
            if result.is_ok() {
                return;
            }
        }
        result.unwrap();
    }

    /// Where its server listens, and the URL of the database by way of another address.
    pub(crate) fn by_way_of(&self, proxy: std::net::SocketAddr) -> (Listens, String) {
        let (url, unix) = (self.url(), |path: PathBuf| Listens::Unix(path));
        let (scheme, rest) = url.split_once("://").unwrap();
        let user = rest.rsplit_once('@').map(|(user, _)| format!("{user}@")).unwrap_or_default();
        let (listens, name) = match self {
            Self::Sqlite(_) => panic!("it has no server"),
            Self::Postgres { name, .. } => {
                let options: PgConnectOptions = url.parse().unwrap();
                let (host, port) = (options.get_host(), options.get_port());
                let folder = options.get_socket().cloned().or_else(|| host.starts_with('/').then(|| host.into()));
                let socket = folder.map(|folder| unix(folder.join(format!(".s.PGSQL.{port}"))));
                (socket.unwrap_or_else(|| Listens::Tcp(format!("{host}:{port}"))), name)
            }
            Self::Mysql { name, .. } => {
                let options: MySqlConnectOptions = url.parse().unwrap();
                let tcp = || Listens::Tcp(format!("{}:{}", options.get_host(), options.get_port()));
                (options.get_socket().cloned().map_or_else(tcp, unix), name)
            }
        };
        (listens, format!("{scheme}://{user}{proxy}/{name}"))
    }

    /// Reads a number that the store does not tell.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let (url, query) = (self.url(), sqlx::AssertSqlSafe(query.to_owned()));
        let query = sqlx::raw_sql(query);
        match self {
            Self::Sqlite(_) => {
                query.fetch_one(&mut SqliteConnection::connect(&url).await.unwrap()).await.unwrap().get(0)
            }
            Self::Postgres { .. } => {
                query.fetch_one(&mut PgConnection::connect(&url).await.unwrap()).await.unwrap().get(0)
            }
            Self::Mysql { .. } => {
                query.fetch_one(&mut MySqlConnection::connect(&url).await.unwrap()).await.unwrap().get(0)
            }
        }
    }

    /// Keeps everybody else from writing until it is dropped.
    pub(crate) async fn lock(&self) -> Lock {
        let url = self.url();
        match self {
            Self::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&url).await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                Lock::Sqlite(connection)
            }
            Self::Postgres { .. } => {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                sqlx::raw_sql("BEGIN; LOCK TABLE fg_invocations, fg_functions IN ACCESS EXCLUSIVE MODE")
                    .execute(&mut connection)
                    .await
                    .unwrap();
                Lock::Postgres(connection)
            }
            Self::Mysql { .. } => {
                let mut connection = MySqlConnection::connect(&url).await.unwrap();
                sqlx::raw_sql("LOCK TABLES fg_invocations WRITE, fg_functions WRITE")
                    .execute(&mut connection)
                    .await
                    .unwrap();
                Lock::Mysql(connection)
            }
        }
    }

    /// Keeps it until the test's thread ends.
    fn keep(self) {
        DATABASES.with_borrow_mut(|databases| databases.push(self));
    }
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum Listens {
    Tcp(String),
    Unix(PathBuf),
}

pub(crate) enum Lock {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    Mysql(MySqlConnection),
}

impl Lock {
    pub(crate) async fn release(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.unwrap(),
            Self::Postgres(connection) => connection.close().await.unwrap(),
            Self::Mysql(connection) => connection.close().await.unwrap(),
        }
    }
}

async fn execute_on(url: &str, statement: &str) -> sqlx::Result<()> {
    let file = format!("{url}?mode=rwc");
    let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
    match url.split(':').next().unwrap() {
        "sqlite" => statement.execute(&mut SqliteConnection::connect(&file).await?).await.map(|_| ()),
        "mysql" => statement.execute(&mut MySqlConnection::connect(url).await?).await.map(|_| ()),
        _ => statement.execute(&mut PgConnection::connect(url).await?).await.map(|_| ()),
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, statement) = match self {
            Self::Sqlite(_) => return,
            Self::Postgres { server, name } => (server.clone(), format!("DROP DATABASE {name} WITH (FORCE)")),
            Self::Mysql { server, name } => (server.clone(), format!("DROP DATABASE {name}")),
        };
        // Whatever runtime the test has, it may be over by now.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dropped = std::thread::spawn(move || runtime().block_on(execute_on(&server, &statement))).join();
        if let Ok(Err(error)) = dropped {
            eprintln!("a database of a test is left behind: {error}");
        }
    }
}

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; `cargo xtask test` starts servers and sets it"))
}

fn name() -> String {
    format!("fg_{}", FunctionId::generate().to_string().replace('-', ""))
}

/// With few connections, since many tests run at a time.
pub(crate) fn options() -> SqlStoreOptions {
    SqlStoreOptions::default().with_max_connections(4)
}

pub(crate) async fn open(database: &Database, options: SqlStoreOptions) -> SqlStore {
    SqlStore::connect(&database.url(), options).await.unwrap()
}

/// A store on a database that goes when the test's thread does.
pub(crate) async fn opened(database: Database) -> SqlStore {
    let store = open(&database, options()).await;
    database.keep();
    store
}

/// A store of SQLite without a file.
pub(crate) async fn in_memory() -> SqlStore {
    SqlStore::connect("sqlite::memory:", options()).await.unwrap()
}

pub(crate) fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

/// A function with its first revision.
pub(crate) fn function(name: &str) -> (Function, Revision) {
    function_of(tenant(), name)
}

pub(crate) fn function_of(tenant: TenantId, name: &str) -> (Function, Revision) {
    let key = FunctionKey::new(tenant, name.parse().unwrap());
    let spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat"));
    let created = (Timestamp::now(), "ann".parse().unwrap());
    let reason = RevisionReason::Created;
    let revision = Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, reason);
    (Function::new(&revision, DriverRef::new("v1")), revision)
}

/// The record of an execution that has ended.
pub(crate) fn ended(revision: &Revision) -> Arc<InvocationRecord> {
    let now = Timestamp::now();
    let mut record = InvocationRecord::new(InvocationId::generate(), revision, "bob".parse().unwrap(), now);
    record.state = InvocationState::Succeeded;
    record.finished_at = Some(now.plus(Duration::from_millis(1)));
    Arc::new(record)
}

pub(crate) fn running(revision: &Revision) -> Arc<InvocationRecord> {
    Arc::new(InvocationRecord::new(InvocationId::generate(), revision, "bob".parse().unwrap(), Timestamp::now()))
}

/// An invocation of a function to be accepted, with its record.
pub(crate) fn acceptance(revision: &Revision) -> Acceptance {
    let caller = Principal::new(revision.key.tenant.clone(), "bob".parse().unwrap());
    let request = InvokeRequest::new("payload");
    let stored = StoredRequest::of(&request).unwrap();
    let now = Timestamp::now();
    let submission = Submission::new(InvocationId::generate(), revision, caller, now, stored, "payload".into());
    let mut record = InvocationRecord::new(submission.id, revision, "bob".parse().unwrap(), now);
    record.state = InvocationState::Queued;
    Acceptance::new(Arc::new(submission), Some(Arc::new(record)))
}

/// How an invocation ends that was accepted with this record.
pub(crate) fn succeeded(accepted: &Submission, revision: &Revision) -> Arc<InvocationRecord> {
    let mut record = InvocationRecord::new(accepted.id, revision, "bob".parse().unwrap(), accepted.created_at);
    record.state = InvocationState::Succeeded;
    record.finished_at = Some(accepted.created_at.plus(Duration::from_millis(1)));
    Arc::new(record)
}

/// Whether what is counted in the queue is what there is, and everything open is found when it is due.
pub(crate) async fn assert_counted(database: &Database) {
    let wrong = |name: &str, column: &str, condition: &str| {
        format!(
            "SELECT COUNT(*) FROM fg_queue_depth d WHERE {name} AND {column} <> (SELECT COUNT(*) FROM fg_submissions s \
             WHERE s.tenant = d.tenant AND (d.name = '' OR s.name = d.name) AND {condition})"
        )
    };
    for (column, condition) in [
        ("open", "s.due_at IS NOT NULL"),
        ("open", "s.state IN ('waiting', 'leased', 'running')"),
        ("dead", "s.dead_at IS NOT NULL"),
        ("dead", "s.state = 'dead'"),
        ("pinned", "s.pinned IS NOT NULL"),
    ] {
        for name in ["d.name = ''", "d.name <> ''"] {
            assert_eq!(database.number(&wrong(name, column, condition)).await, 0, "{column}: {condition}");
        }
    }
    let hidden = "SELECT COUNT(*) FROM fg_submissions s WHERE s.due_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM \
                  fg_queue_depth d WHERE d.tenant = s.tenant AND d.name = '' AND d.next_due_at <= s.due_at)";
    assert_eq!(database.number(hidden).await, 0, "what is due would not be found");
    let uncounted = "SELECT COUNT(*) FROM fg_submissions s WHERE NOT EXISTS (SELECT 1 FROM fg_queue_depth d \
                     WHERE d.tenant = s.tenant AND d.name = s.name)";
    assert_eq!(database.number(uncounted).await, 0);
    let unrecorded = "SELECT COUNT(*) FROM fg_submissions s JOIN fg_invocations i ON i.id = s.id \
                      WHERE (s.due_at IS NULL) <> (i.finished_at IS NOT NULL) \
                      OR (s.state = 'running') <> (i.state = 'running')";
    assert_eq!(database.number(unrecorded).await, 0, "record and queue tell the same");
}

/// A key of the tenant's that expires in the year 2100.
pub(crate) fn key(at: Timestamp) -> ApiKey {
    let created = (at, "ann".parse().unwrap());
    let mut key = ApiKey::new(ApiKeyId::generate(), tenant(), "bob".parse().unwrap(), [7; 32], created);
    key.scopes = ["read".to_owned()].into();
    key.expires_at = Some(Timestamp::from_micros(4_102_444_800_000_000));
    key
}

/// An update of the function `a` by `ann`.
pub(crate) fn event(at: Timestamp) -> AuditEvent {
    let cx = CallContext::new(Principal::new(tenant(), "ann".parse().unwrap()));
    AuditEvent::new(at, &cx, Action::Update, true).on(&"a".parse().unwrap(), Some(Generation::FIRST))
}
