//! Brings the tables of a database to the form that this program works with.

use super::engine::{Engine, Migration, Session};
use super::fault::{Fault, FaultKind};
use crate::{Error, ErrorKind, GatewayId};

/// Of one row, which says what form the other tables have. It never changes itself.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS fg_schema (
    one        BIGINT NOT NULL PRIMARY KEY,
    version    BIGINT NOT NULL,
    min_reader BIGINT NOT NULL,
    gateway    VARCHAR(24) NOT NULL
)";

struct Schema {
    version: i64,
    min_reader: i64,
    gateway: GatewayId,
}

/// Makes or updates the tables, if that is due, and gives the identity of the gateway that they belong to.
pub(super) async fn migrate(engine: &dyn Engine, wanted: Option<&GatewayId>) -> Result<GatewayId, Fault> {
    let known = engine.migrations().last().map_or(0, |migration| migration.version);
    let mut session = engine.reader().await?;
    let found = match read(engine, &mut *session).await {
        Err(fault) if fault.is(FaultKind::NoTable) => None,
        found => found?,
    };
    session.release().await;
    let schema = match found {
        Some(schema) if schema.version >= known => schema,
        _ => update(engine, wanted).await?,
    };
    if schema.min_reader > known {
        let message = format!(
            "the database has tables of version {}, which programs that know version {} or later may use; this one knows {known}: \
             upgrade it",
            schema.version, schema.min_reader
        );
        return Err(Error::new(ErrorKind::Unsupported, message).into());
    }
    if let Some(wanted) = wanted.filter(|wanted| **wanted != schema.gateway) {
        let message = format!("the database belongs to the gateway {}, not to {wanted}", schema.gateway);
        return Err(Error::new(ErrorKind::Misconfigured, message).into());
    }
    Ok(schema.gateway)
}

async fn read(engine: &dyn Engine, session: &mut dyn Session) -> Result<Option<Schema>, Fault> {
    let query = engine.dialect().sql("SELECT version, min_reader, gateway FROM fg_schema WHERE one = 1");
    let Some(mut row) = session.row(query).await? else { return Ok(None) };
    let schema = || {
        let (version, min_reader) = (row.int(0)?, row.int(1)?);
        Ok(Schema { version, min_reader, gateway: row.parse(2)? })
    };
    let mut schema = schema;
    schema().map(Some).map_err(|reason: super::engine::Unreadable| {
        let message = "the table fg_schema says nothing that can be read";
        Error::new(ErrorKind::Misconfigured, message).with_detail(reason.0).into()
    })
}

async fn update(engine: &dyn Engine, wanted: Option<&GatewayId>) -> Result<Schema, Fault> {
    let mut session = engine.exclusive().await?;
    session.script(TABLE).await?;
    // Another process may have been faster.
    let found = read(engine, &mut *session).await?;
    let mut schema = match found {
        Some(schema) => schema,
        None => {
            let gateway = wanted.cloned().unwrap_or_else(GatewayId::generate);
            let insert =
                engine.dialect().sql("INSERT INTO fg_schema (one, version, min_reader, gateway) VALUES (1, 0, 0, ");
            session.execute(insert.arg(gateway.as_str()).sql(")")).await?;
            Schema { version: 0, min_reader: 0, gateway }
        }
    };
    for Migration { version, min_reader, script } in engine.migrations() {
        if *version <= schema.version {
            continue;
        }
        session.script(script).await?;
        let note = engine.dialect().sql("UPDATE fg_schema SET version = ").arg(*version);
        session.execute(note.sql(", min_reader = ").arg(*min_reader).sql(" WHERE one = 1")).await?;
        (schema.version, schema.min_reader) = (*version, *min_reader);
    }
    session.commit().await?;
    Ok(schema)
}
