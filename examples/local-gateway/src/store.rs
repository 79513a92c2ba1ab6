//! Opens the database.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use function_gateway::store::sql::{SqlStore, SqlStoreOptions};

use crate::config::Config;
use crate::exit::{Failure, Result};

/// Opens the database, and makes the one in the data folder where it is not there yet.
pub(crate) async fn open(config: &Config) -> Result<SqlStore> {
    if config.is_in_data() {
        make_folder(&config.data)
            .and_then(|()| make_file(&config.file_in_data()))
            .map_err(|error| Failure::usage(format!("`data`: {}: {error}", config.data.display())))?;
    }
    let options = SqlStoreOptions::default().with_max_connections(config.store.max_connections);
    Ok(SqlStore::connect(&config.store.url, options).await?)
}

/// A folder that nobody else may enter, and that git leaves alone.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::write(folder.join(".gitignore"), "*\n")
}

/// The database, which nobody else may read: it holds payloads, in a folder that others may be able to enter. What SQLite puts
/// beside it gets the same rights.
fn make_file(file: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}
