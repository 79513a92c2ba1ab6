//! A database for each test, gone after it.

use std::cell::RefCell;

use function_gateway_core::FunctionId;
use function_gateway_core::store::sql::{SqlStore, SqlStoreOptions};
use sqlx::{Connection as _, Executor as _};

pub(crate) const POSTGRES: &str = "FUNCTION_GATEWAY_TEST_POSTGRES_URL";
pub(crate) const MYSQL: &str = "FUNCTION_GATEWAY_TEST_MYSQL_URL";

thread_local! {
    /// What goes when the test does, which has a thread of its own.
    static DATABASES: RefCell<Vec<Database>> = const { RefCell::new(Vec::new()) };
}

/// A database of a test.
#[derive(Debug)]
pub(crate) enum Database {
    File(tempfile::TempDir),
    Postgres { server: String, name: String },
    Mysql { server: String, name: String },
}

impl Database {
    pub(crate) fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    pub(crate) async fn postgres() -> Self {
        let (server, name) = (server(POSTGRES), name());
        let mut admin = sqlx::PgConnection::connect(&server).await.unwrap();
        admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        admin.close().await.unwrap();
        Self::Postgres { server, name }
    }

    pub(crate) async fn mysql() -> Self {
        let (server, name) = (server(MYSQL), name());
        let mut admin = sqlx::MySqlConnection::connect(&server).await.unwrap();
        admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        admin.close().await.unwrap();
        Self::Mysql { server, name }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(folder) => format!("sqlite:{}", folder.path().join("gateway.db").display()),
            Self::Postgres { server, name } | Self::Mysql { server, name } => {
                let (server, query) =
                    server.split_once('?').map_or((server.as_str(), ""), |(server, query)| (server, query));
                let (host, _) = server.rsplit_once('/').unwrap();
                format!("{host}/{name}?{query}")
            }
        }
    }

    /// Keeps it until the test's thread ends.
    fn keep(self) {
        DATABASES.with_borrow_mut(|databases| databases.push(self));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = match self {
            Self::File(_) => return,
            Self::Postgres { server, name } => (server.clone(), format!("{name} WITH (FORCE)")),
            Self::Mysql { server, name } => (server.clone(), name.clone()),
        };
        let is_postgres = matches!(self, Self::Postgres { .. });
        let drop_it = async move {
            let statement = sqlx::AssertSqlSafe(format!("DROP DATABASE {name}"));
            match is_postgres {
                true => sqlx::PgConnection::connect(&server).await?.execute(statement).await.map(|_| ()),
                false => sqlx::MySqlConnection::connect(&server).await?.execute(statement).await.map(|_| ()),
            }
        };
        // Whatever runtime the test has, it is over by now.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dropped = std::thread::spawn(move || runtime().block_on(drop_it)).join();
        if let Ok(Err(error)) = dropped {
            eprintln!("a database of a test is left behind: {error}");
        }
    }
}

fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names no server; `cargo xtask test` starts one"))
}

fn name() -> String {
    format!("fg_{}", FunctionId::generate().to_string().replace('-', ""))
}

/// With few connections, since many tests run at a time.
pub(crate) fn options() -> SqlStoreOptions {
    SqlStoreOptions::default().with_max_connections(4)
}

async fn open(database: Database) -> SqlStore {
    let store = SqlStore::connect(&database.url(), options()).await.unwrap();
    database.keep();
    store
}

pub(crate) async fn sqlite() -> SqlStore {
    open(Database::file()).await
}

pub(crate) async fn postgres() -> SqlStore {
    open(Database::postgres().await).await
}

pub(crate) async fn mysql() -> SqlStore {
    open(Database::mysql().await).await
}
