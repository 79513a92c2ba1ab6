CREATE TABLE fg_api_keys (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT  NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    hash       BYTEA   NOT NULL,
    format     BIGINT  NOT NULL,
    document   TEXT    NOT NULL
);
CREATE INDEX fg_api_keys_by_time ON fg_api_keys (tenant, created_at, id);

CREATE TABLE fg_audit (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C",
    principal  TEXT COLLATE "C" NOT NULL,
    action     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT  NOT NULL,
    format     BIGINT  NOT NULL,
    document   TEXT    NOT NULL
);
CREATE INDEX fg_audit_by_time ON fg_audit (tenant, created_at, id);
CREATE INDEX fg_audit_by_name ON fg_audit (tenant, name, created_at, id) WHERE name IS NOT NULL;
CREATE INDEX fg_audit_by_principal ON fg_audit (tenant, principal, created_at, id);
CREATE INDEX fg_audit_by_action ON fg_audit (tenant, action, created_at, id);
CREATE INDEX fg_audit_by_age ON fg_audit (created_at);
