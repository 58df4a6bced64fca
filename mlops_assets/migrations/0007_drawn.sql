-- Drawings of digits that users gave, and what of dataset versions was deleted on request.

-- One digit, drawn by a user who asked for it to be kept, of a code that the caller's back-end verified. Nothing here tells of a code, of
-- an order or of a session: the id is random, rows of one session are shuffled, the time is a day.
CREATE TABLE drawn (
  id text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$'),
  system text NOT NULL,
  writer text NOT NULL,                  -- the user's pseudonym
  label text NOT NULL CHECK (label ~ '^[0-9]$'),
  picture bytea,                         -- PNG; null once landed: the version's objects are the only copy then
  sha256 text NOT NULL,                  -- of the picture
  shape bit(784) NOT NULL,               -- where the prepared picture, 28 x 28, has ink
  on_day date NOT NULL DEFAULT current_date,
  version text,                          -- the dataset version that it was cut into
  folder text,                           -- its writer's folder there, a random name
  aside text,                            -- why the latest cut left it out; looked at again by the next
  CHECK ((version IS NULL) = (folder IS NULL)),
  CHECK (picture IS NOT NULL OR version IS NOT NULL)
);
CREATE INDEX drawn_by_writer ON drawn (system, writer);
CREATE INDEX drawn_waiting ON drawn (system) WHERE version IS NULL;

-- Dataset versions cut from drawings. state: cut (which rows it holds is settled) -> landed (its objects are there, _READY last).
CREATE TABLE drawn_cut (
  system text NOT NULL,
  version text NOT NULL,
  parent text NOT NULL,
  rows bigint NOT NULL,
  writers bigint NOT NULL,
  reason text NOT NULL,
  state text NOT NULL DEFAULT 'cut' CHECK (state IN ('cut', 'landed')),
  at timestamptz NOT NULL DEFAULT now(),
  landed_at timestamptz,
  PRIMARY KEY (system, version)
);

-- Files of dataset versions that were deleted on request. Manifests keep their names and digests, the bytes are gone: that is no damage.
CREATE TABLE forgotten_object (
  system text NOT NULL,
  version text NOT NULL,                 -- the version that the file landed in
  key text NOT NULL,
  sha256 text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  finished boolean NOT NULL DEFAULT false,
  PRIMARY KEY (system, key)
);
CREATE INDEX forgotten_by_version ON forgotten_object (system, version);
