-- Disposal policies: one row per content that a policy ever had. The current ones have no valid_to.
CREATE TABLE policy (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key text COLLATE "C" NOT NULL,                   -- the place that it is for, and which of that place's rules
  content_hash text COLLATE "C" NOT NULL,
  sido text COLLATE "C" NOT NULL,
  sigungu text COLLATE "C" NOT NULL,
  content json NOT NULL,               -- read whole, never searched: as text it is written faster
  valid_from timestamptz NOT NULL,     -- from when it was what the platform answered
  valid_to timestamptz CHECK (valid_to >= valid_from),
  version text NOT NULL,               -- the dataset version that brought it
  closed_by text,                      -- the one that changed or removed it
  CHECK ((valid_to IS NULL) = (closed_by IS NULL))
);
CREATE UNIQUE INDEX policy_current ON policy (key) WHERE valid_to IS NULL;
-- No index on the region: the sheet has some thousand rows, and keeping one took a third of an upsert's time.

-- Which dataset versions were applied to `policy`, in which order. An older one is never applied after a newer one.
CREATE TABLE policy_version (
  version text PRIMARY KEY,
  arrived_at timestamptz NOT NULL,     -- when the version was complete: the order of versions
  table_sha256 text NOT NULL,          -- of the cleaned table that was applied
  applied_at timestamptz NOT NULL,
  new bigint NOT NULL,
  changed bigint NOT NULL,
  gone bigint NOT NULL,
  unchanged bigint NOT NULL
);

-- What cleaning noticed in the cells of a row that it kept: repaired, or (before = after) left as it is.
CREATE TABLE row_finding (
  system text NOT NULL,
  version text NOT NULL,
  source text NOT NULL,
  line bigint NOT NULL,
  field text NOT NULL,
  rule text NOT NULL,
  before text NOT NULL,
  after text,                          -- NULL: the cell counts as empty
  PRIMARY KEY (system, version, source, line, field, rule)
);
