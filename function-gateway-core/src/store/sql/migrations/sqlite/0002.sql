CREATE TABLE fg_api_keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    hash       BLOB    NOT NULL,
    format     INTEGER NOT NULL,
    document   TEXT    NOT NULL
) STRICT;
CREATE INDEX fg_api_keys_by_time ON fg_api_keys (tenant, created_at, id);

CREATE TABLE fg_audit (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    name       TEXT,
    principal  TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    format     INTEGER NOT NULL,
    document   TEXT    NOT NULL
) STRICT;
CREATE INDEX fg_audit_by_time ON fg_audit (tenant, created_at, id);
CREATE INDEX fg_audit_by_name ON fg_audit (tenant, name, created_at, id) WHERE name IS NOT NULL;
CREATE INDEX fg_audit_by_principal ON fg_audit (tenant, principal, created_at, id);
CREATE INDEX fg_audit_by_action ON fg_audit (tenant, action, created_at, id);
CREATE INDEX fg_audit_by_age ON fg_audit (created_at);
