-- Evidence is signed like what follows from it: the gate believes no report that came past the platform. Rows of before have no signature and
-- register nothing any more; evaluating again makes a signed one.
ALTER TABLE report ADD COLUMN signature text, ADD COLUMN key_id text;
