-- Every table of the spine. Append-only tables refuse UPDATE, DELETE and TRUNCATE by trigger: a mistake in code cannot rewrite history.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP;
END $$;

-- Arrival: one row per (key, etag) that a tick has ever seen. state: pending -> accepted | quarantined;
-- only cleaning may move a frozen file between the last two, when the configuration says otherwise than before.
CREATE TABLE landing_object (
  system text NOT NULL,
  version text NOT NULL,
  key text NOT NULL,
  etag text NOT NULL,
  size bigint NOT NULL,
  last_modified timestamptz NOT NULL,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'accepted', 'quarantined')),
  reason_code text,
  reason text,
  sha256 text,
  PRIMARY KEY (system, version, key, etag),
  CHECK ((state = 'quarantined') = (reason_code IS NOT NULL))
);

-- One row per dataset version. state: open -> closed (requested to freeze) -> frozen (manifest exists) | refused.
CREATE TABLE dataset_version (
  system text NOT NULL,
  version text NOT NULL,
  parent text,
  state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed', 'frozen', 'refused')),
  reason text,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  changed_at timestamptz NOT NULL DEFAULT now(),
  closed_at timestamptz,
  frozen_at timestamptz,
  manifest_sha256 text,
  manifest_key text,
  object_count bigint,
  byte_count bigint,
  PRIMARY KEY (system, version),
  FOREIGN KEY (system, parent) REFERENCES dataset_version (system, version),
  -- A version of which cleaning leaves nothing is refused after it was frozen: its manifest stays.
  CHECK (CASE state WHEN 'frozen' THEN manifest_sha256 IS NOT NULL WHEN 'refused' THEN true ELSE manifest_sha256 IS NULL END)
);
CREATE INDEX dataset_version_open ON dataset_version (system) WHERE state = 'open';

-- The trigger ledger: which run was asked for, for which version, as which attempt. run_key = system:version:attempt.
CREATE TABLE run_request (
  system text NOT NULL,
  version text NOT NULL,
  attempt integer NOT NULL,
  reason text NOT NULL,
  requested_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, version, attempt)
);

-- Rows (not objects) that cleaning turned away.
CREATE TABLE quarantined_row (
  system text NOT NULL,
  version text NOT NULL,
  source text NOT NULL,
  line bigint NOT NULL,
  reason_code text NOT NULL,
  excerpt text NOT NULL,
  PRIMARY KEY (system, version, source, line)
);

CREATE TABLE split_ledger (
  system text NOT NULL,
  group_sha256 bytea NOT NULL,
  split text NOT NULL CHECK (split IN ('train', 'validation', 'holdout')),
  first_version text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, group_sha256)
);

-- The cleaned reviews of sentiment, one row per accepted review and version.
CREATE TABLE review (
  version text NOT NULL,
  id text NOT NULL,
  document text NOT NULL,
  label smallint NOT NULL,
  split text NOT NULL,
  source text NOT NULL,
  PRIMARY KEY (version, id)
);

-- A training that produced a bundle.
CREATE TABLE attempt (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  system text NOT NULL,
  variant text NOT NULL,
  dataset_version text NOT NULL,
  manifest_sha256 text NOT NULL,
  config jsonb NOT NULL,
  config_sha256 text NOT NULL,
  code_version text NOT NULL,
  git_commit text NOT NULL,
  seed bigint NOT NULL,
  fingerprint text NOT NULL,
  parent_bundle_sha256 text,
  bundle_sha256 text NOT NULL,
  bundle_files jsonb NOT NULL,
  metrics jsonb NOT NULL,
  mlflow_run_id text,
  dagster_run_id text,
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (system, variant, dataset_version, bundle_sha256)
);

-- An evaluation of one attempt's bundle on the holdout.
CREATE TABLE report (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  attempt_id bigint NOT NULL REFERENCES attempt,
  system text NOT NULL,
  bundle_sha256 text NOT NULL,
  manifest_sha256 text NOT NULL,
  holdout_sha256 text NOT NULL,
  body json NOT NULL, -- json, not jsonb: the digest is over the text as it was written
  body_sha256 text NOT NULL,
  dagster_run_id text,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX report_by_bundle ON report (system, bundle_sha256, id DESC);

-- Every decision of the gate inside the registrar, refusals too.
CREATE TABLE verdict (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  system text NOT NULL,
  variant text NOT NULL,
  dataset_version text NOT NULL,
  attempt_id bigint,
  report_id bigint,
  outcome text NOT NULL CHECK (outcome IN ('refused', 'registered', 'promoted')),
  code text NOT NULL,
  sentence text NOT NULL,
  actor text NOT NULL,
  dagster_run_id text,
  at timestamptz NOT NULL DEFAULT now()
);

-- A registered model version. payload is the canonical JSON that is signed.
CREATE TABLE receipt (
  system text NOT NULL,
  version integer NOT NULL,
  variant text NOT NULL,
  dataset_version text NOT NULL,
  attempt_id bigint NOT NULL REFERENCES attempt,
  report_id bigint NOT NULL REFERENCES report,
  bundle_sha256 text NOT NULL,
  payload text NOT NULL,
  signature text NOT NULL,
  key_id text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, version),
  UNIQUE (system, bundle_sha256)
);

-- The promotion ledger that the servers follow: the latest row of a channel is what it serves.
CREATE TABLE promotion (
  system text NOT NULL,
  sequence bigint NOT NULL,
  channel text NOT NULL CHECK (channel IN ('champion', 'candidate')),
  kind text NOT NULL CHECK (kind IN ('promote', 'rollback', 'stage')),
  version integer NOT NULL,
  bundle_sha256 text NOT NULL,
  payload text NOT NULL,
  signature text NOT NULL,
  key_id text NOT NULL,
  actor text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, sequence),
  FOREIGN KEY (system, version) REFERENCES receipt (system, version)
);
CREATE INDEX promotion_by_channel ON promotion (system, channel, sequence DESC);

-- Retention: bundles whose bytes are gone, and bundles that must stay whatever their age.
CREATE TABLE bundle_deleted (
  system text NOT NULL,
  bundle_sha256 text NOT NULL,
  bytes bigint NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, bundle_sha256)
);
CREATE TABLE hold (
  system text NOT NULL,
  version integer NOT NULL,
  reason text NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, version)
);

-- What the MLflow mirror (and Slack) still have to be told. Delivered in order per topic, at least once; the receivers are idempotent.
CREATE TABLE outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  topic text NOT NULL,
  payload jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  delivered_at timestamptz,
  tries integer NOT NULL DEFAULT 0,
  error text
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE delivered_at IS NULL;

-- The small values that assets hand to each other (references to the rows above), by run.
CREATE TABLE asset_value (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  asset text NOT NULL,
  partition text NOT NULL,
  run_id text NOT NULL,
  value jsonb NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX asset_value_latest ON asset_value (asset, partition, id DESC);

-- Which bundle gave which answer.
CREATE TABLE answer (
  request_id text NOT NULL,
  system text NOT NULL,
  version integer NOT NULL,
  bundle_sha256 text NOT NULL,
  inputs integer NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (request_id, system, at)  -- a client may send its own id twice: both answers stay traceable
);

-- NOTIFY wakes servers; polling is what they rely on.
CREATE FUNCTION announce_promotion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('promotion', NEW.system);
  RETURN NEW;
END $$;
CREATE TRIGGER promotion_announced AFTER INSERT ON promotion FOR EACH ROW EXECUTE FUNCTION announce_promotion();

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['run_request', 'split_ledger', 'attempt', 'report', 'verdict', 'receipt', 'promotion',
                              'asset_value'] LOOP
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
  END LOOP;
END $$;
