-- Policies that an applied version said nothing of, but for rows that were turned away: they hold as before.
ALTER TABLE policy_version ADD COLUMN kept bigint NOT NULL DEFAULT 0;

-- By which function a group was made: 1 by the first one of its system (and by every one of pictures), 2 by `texts.group_of`.
ALTER TABLE split_ledger ADD COLUMN scheme smallint NOT NULL DEFAULT 1;

-- Versions whose texts have their split under the newest scheme too.
CREATE TABLE split_carried (
  system text NOT NULL,
  version text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, version)
);
