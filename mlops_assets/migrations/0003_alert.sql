-- What people were told last about something, so that they are told once: written in the transaction of the outbox row that tells them.
CREATE TABLE alert (
  kind text NOT NULL,     -- refused | run_ended_badly | live_accuracy
  subject text NOT NULL,  -- an attempt and its report, a dataset version | a run's id | a system and its promotion
  state text NOT NULL,    -- the sentence | failed, refused | below, recovered
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (kind, subject)
);
