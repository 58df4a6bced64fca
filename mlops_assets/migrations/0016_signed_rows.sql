-- What a later step reads is signed where it is made. `payload` is the text that was signed, the row's own number in it; the other columns
-- are what rows are looked for by. Rows of before have no signature and lead to nothing any more; receipts of before stay what they are.
ALTER TABLE attempt ADD COLUMN payload text, ADD COLUMN signature text, ADD COLUMN key_id text;
ALTER TABLE asset_value ADD COLUMN payload text, ADD COLUMN signature text, ADD COLUMN key_id text;

-- The cleaned table of a version: the newest row. What a store holds and no row names is no table: anybody who can write there may put it.
CREATE TABLE cleaned_table (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  system text NOT NULL CONSTRAINT system_name CHECK (system ~ '^[a-z][a-z0-9_-]{0,62}$'),
  version text NOT NULL CONSTRAINT version_name CHECK (version ~ '^[a-z0-9][a-z0-9._-]{0,62}$' AND version !~ '[.][.]'),
  manifest_sha256 text NOT NULL,
  sha256 text NOT NULL,                  -- over the rows' number and the digests of the parts
  body json NOT NULL,                    -- the parts with their digests, the counts, what made it
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX cleaned_table_newest ON cleaned_table (system, version, manifest_sha256, id DESC);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON cleaned_table FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON cleaned_table FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
